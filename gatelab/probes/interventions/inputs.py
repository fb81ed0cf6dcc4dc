"""Edits of the text: its first token dropped, repeated, or another put before it; and, as controls, the same in the middle.

Notable: the dose is a number of tokens. What an edit does to the loss is asked of the same target tokens, so an edited text
says where each of its old tokens has gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .intervention import Given, Intervention, Kind

_MIDDLE = {"drop-first": "drop-middle", "repeat-first": "repeat-middle", "prepend": "insert-middle"}


@dataclass(frozen=True)
class EditedText:
    """Token ids after an edit, and the new position of each old token; −1 where it is gone."""

    ids: list[int]
    position: list[int]


class InputEdit(Intervention):
    """An edit of the token ids. Its control is the same edit at a random token of the middle half."""

    kinds: ClassVar[dict[str, Kind]] = {
        "drop-first": Kind("drops the first tokens", where="", doses=(1.0,), is_counted=True),
        "repeat-first": Kind("repeats the first token", where="", doses=(1.0,), is_counted=True),
        "prepend": Kind("puts a token before the text", value="id", where="", doses=(1.0,), is_counted=True),
        "drop-middle": Kind("drops tokens of the middle", where="", doses=(1.0,), is_counted=True),
        "repeat-middle": Kind("repeats a token of the middle", where="", doses=(1.0,), is_counted=True),
        "insert-middle": Kind("puts a token in the middle", value="id", where="", doses=(1.0,), is_counted=True),
    }

    def control(self) -> "InputEdit":
        """The same in the middle of the text."""
        if self.kind not in _MIDDLE:
            raise ValueError(f"{self.word} is a control itself; give the edit that it belongs to")
        return self.model_copy(update={"kind": _MIDDLE[self.kind]})

    def edited(self, ids: list[int], seed: int = 0) -> EditedText:
        """The text after the edit.

        Raises:
            ValueError: a text that is too short for it.
        """
        n, count = len(ids), int(self.dose)
        action, _, place = self.kind.partition("-")
        at = 0 if place != "middle" else _middle(self.word, n, count if action == "drop" else 1, seed)
        if action == "drop":
            if n - count < 2:
                raise ValueError(f"{self.word} leaves {max(0, n - count)} of {n} tokens; a loss takes two at least")
            position = [j if j < at else j - count if j >= at + count else -1 for j in range(n)]
            return EditedText(ids[:at] + ids[at + count :], position)
        # A repeated token's copies stand behind it in the middle; at the start it makes no difference.
        new, cut = (ids[at], at + 1 if place == "middle" else at) if action == "repeat" else (int(self.value), at)
        return EditedText(ids[:cut] + [new] * count + ids[cut:], [j + count * (j >= cut) for j in range(n)])

    @contextmanager
    def applied(self, anatomy: Anatomy, given: Given) -> Iterator[None]:
        """The model reads edited ids; its output is then of the edited positions."""
        vocabulary = next((m for m in anatomy.model.modules() if isinstance(m, nn.Embedding)), None)
        self.check_id(None if vocabulary is None else vocabulary.num_embeddings)

        def before(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            name = next((k for k in ("input_ids", "tokens_BT") if keywords.get(k) is not None), None)
            ids_BT = keywords[name] if name else args[0] if args else None
            if not isinstance(ids_BT, Tensor) or ids_BT.dim() != 2 or ids_BT.is_floating_point():
                raise ValueError(f"{self.word} edits token ids [B, T], and the model was given none")
            T = ids_BT.shape[1]
            if _is_padded(keywords.get("attention_mask")):
                raise ValueError(f"{self.word}: edit texts without padding, one at a time")
            others = [k for k, v in keywords.items() if k not in (name, "attention_mask") and _is_of_tokens(v, T)]
            if others:
                raise ValueError(f"{self.word}: {others[0]} numbers the tokens as they were; leave it out")
            rows = [self.edited(ids, given.seed).ids for ids in ids_BT.tolist()]
            edited_BT = torch.tensor(rows, device=ids_BT.device)
            keywords = {k: v for k, v in keywords.items() if k != "attention_mask"}
            return (args, keywords | {name: edited_BT}) if name else ((edited_BT, *args[1:]), keywords)

        handle = anatomy.model.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def check_id(self, n_ids: int | None) -> None:
        """Refuse an id that the model does not have.

        Raises:
            ValueError: in a sentence.
        """
        if self.value is not None and n_ids is not None and int(self.value) >= n_ids:
            raise ValueError(f"{self.word}: this model has ids 0 to {n_ids - 1}, and no {self.value}")


def _middle(word: str, n: int, width: int, seed: int) -> int:
    """A random position of the middle half, with `width` tokens before the text's end."""
    first = max(1, n // 4)
    last = min(max(first, 3 * n // 4 - 1), n - width)
    if last < first:
        raise ValueError(f"{word}: a text of {n} tokens has no {width} in its middle; take a longer text")
    return int(np.random.default_rng(seed).integers(first, last + 1))


def _is_padded(mask: Any) -> bool:
    return isinstance(mask, Tensor) and not bool((mask == 1).all())


def _is_of_tokens(value: Any, n_tokens: int) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == n_tokens
