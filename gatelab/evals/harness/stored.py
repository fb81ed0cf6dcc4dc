"""A model of ours as what is asked: its decoder, and the tokenizer that lies beside it."""

from typing import Any

import torch

from ...models.external import External, Loading
from ...models.interop import Stored
from ...models.interop.folder import load
from ...models.model import Model

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_stored(found: Stored, loading: Loading) -> External:
    """The model and its tokenizer; weights of ours are float32, and `auto` leaves them so.

    Raises:
        ValueError: there is no tokenizer, no such device, or weights that are not finite.
    """
    if found.companions is None or not any((found.companions / name).is_file() for name in _FILES):
        raise ValueError(
            f"{found.title}: has no tokenizer, so it cannot be asked in words; take a model that reads text"
        )
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(found.companions)
    return External(found.title, placed(found, loading), tokenizer, found.config.max_seq_len)


def placed(found: Stored, loading: Loading) -> Model:
    """The model where it is to be asked.

    Raises:
        ValueError: no such device, or weights that are not finite.
    """
    if loading.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this torch sees no CUDA device; take --device cpu")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if loading.device == "auto" else loading.device
    return load(found).to(device, torch.bfloat16 if loading.dtype == "bfloat16" else torch.float32)
