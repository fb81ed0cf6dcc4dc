"""Presets: the names people know for points of the space, as changes of a model's fields.

A preset is used in the place of a gate (`model.gate=qwen3-next`), or, where it changes more than the gate, as
`model.preset=marin/two-sigmoid`. Free of torch and of the rest of config.
"""

from .known import KNOWN
from .paper import PAPER
from .preset import Preset

PRESETS: dict[str, Preset] = PAPER | KNOWN

__all__ = ["PRESETS", "Preset"]
