"""Somebody's checkpoint: a folder in Hugging Face's layout, a GGUF file, or a model of the hub; transformers reads it."""

from .checkpoint import Checkpoint, External, load_external, open_external
from .hub import is_hub_id
from .loading import Loading
from .positions import Extension, extend_positions

__all__ = [
    "Checkpoint",
    "Extension",
    "External",
    "Loading",
    "extend_positions",
    "is_hub_id",
    "load_external",
    "open_external",
]
