"""Everybody's gated attention layers in one canonical form: which layout a checkpoint has, reading it, writing another.

layout = recognise(config, shapes)
canonical = read(layout, tensors, geometry_of(config), prefix="model.layers.3.self_attn.")
tensors = write("gatelab", canonical)
take_apart(model, "qwen3-next", geometry)  # q and gate as modules of their own, for LoRA; put_together(model) fuses them
"""

from .apart import Apart, put_together, take_apart, views
from .canonical import Canonical, Gain, Geometry
from .geometry import geometry_of
from .layout import Block, Layout
from .reading import read
from .recognise import recognise
from .stating import stated
from .table import LAYOUTS
from .writing import notes, write

__all__ = [
    "LAYOUTS",
    "Apart",
    "Block",
    "Canonical",
    "Gain",
    "Geometry",
    "Layout",
    "geometry_of",
    "notes",
    "put_together",
    "read",
    "recognise",
    "stated",
    "take_apart",
    "views",
    "write",
]
