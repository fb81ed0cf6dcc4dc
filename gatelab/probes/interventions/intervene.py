"""intervened: edit the forward passes of a model, any of transformers or Gatelab's own, while a block runs.

    with intervened(model, parse("zero-value@first:l3h1")):
        model(ids)

Notable: to look at an edited model, enter the probes' block first, and this one inside it: edits come before hooks that are
there already. Only the gates of a transformers model are shown by the probes as they were. Nothing is left behind, also after
an exception. `KINDS` is the table of all words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from ...config.base import nearest, validate
from ...record import Row
from .activations import ActivationEdit
from .anatomy import Anatomy, anatomy
from .gate import GateEdit
from .inputs import InputEdit
from .intervention import Given, Intervention, Recording
from .values import KeyEdit

CLASSES: tuple[type[Intervention], ...] = (KeyEdit, InputEdit, GateEdit, ActivationEdit)
KINDS: dict[str, type[Intervention]] = {word: c for c in CLASSES for word in c.kinds}

_WORD = re.compile(
    r"(?P<like>like-)?(?P<kind>[^@=:~]*)(@(?P<at>[^@=:~]*))?(=(?P<value>[^@=:~]*))?(:(?P<where>[^@=:~]*))?(~(?P<dose>[^@=:~]*))?"
)


def parse(word: str) -> Intervention:
    """The intervention that a word stands for.

    Raises:
        ValueError: naming the part that is wrong, what is allowed and the nearest match.
    """
    found = _WORD.fullmatch(word)
    if found is None:
        raise ValueError(
            f"intervention {word!r}: expected kind@key=value:layers~dose, each part behind the kind at most once and in "
            "this order, as in value@first=0.5:l18h8,l19~0.5"
        )
    parts = found.groupdict()
    kind = parts["kind"]
    if kind not in KINDS:
        raise ValueError(
            f"intervention {word!r}: no kind {kind!r}; expected one of {', '.join(KINDS)}{nearest(kind, list(KINDS))}"
        )
    given: dict[str, object] = {"kind": kind, "is_like": parts["like"] is not None}
    for name, sign in (("at", "@"), ("value", "="), ("where", ":"), ("dose", "~")):
        if parts[name] == "":
            raise ValueError(f"intervention {word!r}: nothing follows {sign!r}; leave it out, or say what is meant")
        if parts[name] is not None:
            given[name] = parts[name]
    return validate(KINDS[kind], given)


def control(intervention: Intervention) -> Intervention:
    """The edit of the same size elsewhere that an intervention is compared with; its class's docstring says which.

    Raises:
        ValueError: of a control.
    """
    return intervention.control()


@contextmanager
def intervened(
    model: nn.Module,
    intervention: Intervention,
    *,
    seed: int = 0,
    positions: Mapping[tuple[int, int], int] | None = None,
    recorded: Recording | None = None,
) -> Iterator[None]:
    """Edit what a model computes, until the block ends.

    Args:
        model: of transformers 5, or with GatedAttention layers; of one stack, not compiled. Run whole sequences in it.
        seed: of whatever is drawn: other keys and heads, shuffles, directions.
        positions: (layer, head) -> the key that `strongest` means; heads without an entry are left alone.
        recorded: what `recorded` gave, for the kinds that take something of another pass.

    Raises:
        ValueError: a model or a layer that the edit cannot be made in; from the forward pass, what only it can tell.
    """
    own = anatomy(model)
    _check_layers(intervention, own)
    if intervention.dose == 0:
        yield
        return
    with intervention.applied(own, Given(seed, positions, recorded)):
        yield


@contextmanager
def recorded(model: nn.Module, intervention: Intervention) -> Iterator[Recording]:
    """Keep of the forward pass in this block what an intervention takes from it: the gates' scores of the text, or the run,
    that `gate-transplant` takes them from; of the same text the norms for `clip-massive-frozen`, the gates for
    `mask-key-frozen`, the attention patterns for `gate-shuffle-frozen`.

    Raises:
        ValueError: an intervention that needs none.
    """
    own = anatomy(model)
    _check_layers(intervention, own)
    with intervention.recording(own) as recording:
        yield recording


def strongest_keys(rows: Iterable[Row]) -> dict[tuple[int, int], int]:
    """(layer, head) -> the key at which its sink most often is, of the rows `sink_position` that the probe `anywhere` gives
    of causal self-attention; heads whose sink is nowhere have none."""
    shares: dict[tuple[int, int], tuple[float, int]] = {}
    for row in rows:
        if (
            row.metric == "sink_position"
            and None not in (row.head, row.key)
            and (row.stack, row.domain) == (None, None)
        ):
            place = (row.layer, row.head)
            shares[place] = max(shares.get(place, (0.0, -1)), (row.value, row.key))
    return {place: key for place, (_, key) in shares.items() if key >= 0}


def _check_layers(intervention: Intervention, own: Anatomy) -> None:
    beyond = [layer for layer, _ in intervention.places if layer >= own.n_layers]
    if beyond:
        raise ValueError(
            f"{intervention.word}: {type(own.model).__name__} has layers 0 to {own.n_layers - 1}, and no layer {beyond[0]}"
        )
