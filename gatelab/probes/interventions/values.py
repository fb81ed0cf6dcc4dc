"""Edits of a key: its value made zero, the mean or c times itself; or the key masked, and the softmax taken over the rest.

Notable: of y = Σ p v an edit of a value changes one summand; masking changes every weight of the row. A dose d of masking
leaves the key (1 − d) times its weight before the row is normalised anew. A query that sees no other key keeps it. Frozen, the
sink moves at a fixed gate: later gates would else answer to what the edit does to the hidden state that they read.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import ClassVar, Literal

from ..external.interpose import interposed
from .anatomy import Anatomy, met_layers
from .around import Around
from .frozen import FROZEN, gates_held, gates_kept
from .intervention import Given, Intervention, Kind, Recording
from .taps import edited_layer


class KeyEdit(Intervention):
    """An edit of a key, in all heads or those named.

    Its control edits as many other heads of the same layers where heads are named, and another key of the same heads else.
    """

    kinds: ClassVar[dict[str, Kind]] = {
        "zero-value": Kind("makes a key's value zero", at="key"),
        "mean-value": Kind("makes a key's value the mean of the head's values in the text", at="key"),
        "value": Kind("multiplies a key's value", at="key", value="factor"),
        "mask-key": Kind("takes a key out of the softmax", at="key", doses=(0.5, 0.9, 1.0)),
        f"zero-value{FROZEN}": Kind("makes a key's value zero and keeps the gates", at="key"),
        f"mask-key{FROZEN}": Kind(
            "takes a key out of the softmax and keeps the gates", at="key", doses=(0.5, 0.9, 1.0)
        ),
    }

    @property
    def needs(self) -> Literal["", "own gates"]:
        return "own gates" if self.kind.endswith(FROZEN) else ""

    def control(self) -> "KeyEdit":
        """Other heads, drawn for each seed, or another key of the middle half of the text."""
        if "other-" in f"{self.at}{self.where}":
            raise ValueError(f"{self.word} is a control itself; give the edit that it belongs to")
        if self.places and all(head is not None for _, head in self.places):
            return self.model_copy(update={"where": f"other-{self.where}"})
        return self.model_copy(update={"at": f"other-{self.at}"})

    @contextmanager
    def applied(self, anatomy: Anatomy, given: Given) -> Iterator[None]:
        """By taps, or by standing around the attention functions of transformers."""
        with ExitStack() as stack:
            if self.needs:
                stack.enter_context(gates_held(anatomy, self.word, given))
            if anatomy.is_own:
                for attention, layer in anatomy.attention.items():
                    if self.acts_in(layer):
                        stack.enter_context(edited_layer(self, attention, layer, given))
            else:
                met = stack.enter_context(met_layers(anatomy, {layer for layer, _ in self.places}, self.word))
                stack.enter_context(interposed(anatomy.model, Around(self, anatomy, given, met)))
            yield

    def recording(self, anatomy: Anatomy) -> AbstractContextManager[Recording]:
        """Keeps the scores of every gate."""
        return gates_kept(anatomy, self.word) if self.needs else super().recording(anatomy)
