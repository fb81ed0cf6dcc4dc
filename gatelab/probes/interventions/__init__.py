"""Causal probes: edits of a forward pass as values, each with its control (docs of the words: `KINDS`)."""

from .inputs import EditedText, InputEdit
from .intervene import KINDS, control, intervened, parse, recorded, strongest_keys
from .intervention import Given, Intervention, Kind, Recording

__all__ = [
    "KINDS", "EditedText", "Given", "InputEdit", "Intervention", "Kind", "Recording", "control", "intervened", "parse",
    "recorded", "strongest_keys",
]  # fmt: skip
