"""A model of ours as what is asked: its decoder, and the tokenizer that lies beside it."""

from typing import Any

import torch

from ...models.external import External, Loading
from ...models.interop import Stored
from ...models.interop.folder import load
from ...models.model import Model
from ..reach import stretched

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_stored(found: Stored, loading: Loading) -> External:
    """The model and its tokenizer; weights of ours are float32, and `auto` leaves them so.

    Raises:
        ValueError: there is no tokenizer, no such device, weights that are not finite, or positions that cannot be extended.
    """
    if found.companions is None or not any((found.companions / name).is_file() for name in _FILES):
        raise ValueError(
            f"{found.title}: has no tokenizer, so it cannot be asked in words; take a model that reads text"
        )
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(found.companions)
    model, notes = placed(found, loading)
    return External(found.title, model, tokenizer, model.config.max_seq_len, notes)


def placed(found: Stored, loading: Loading, *, trained: int | None = None) -> tuple[Model, tuple[str, ...]]:
    """The model where it is to be asked, with its positions extended where that is asked for, and notes on it.

    Args:
        trained: the length of training in tokens, from which positions are extended; all that it has unless stated.

    Raises:
        ValueError: no such device, weights that are not finite, or positions that cannot be extended.
    """
    if loading.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this torch sees no CUDA device; take --device cpu")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if loading.device == "auto" else loading.device
    model = load(found).to(device, torch.bfloat16 if loading.dtype == "bfloat16" else torch.float32)
    if loading.extension is None:
        return model, ()
    model, note = stretched(model, loading.extension.factor, found.title, trained=trained)
    return model, (note,)
