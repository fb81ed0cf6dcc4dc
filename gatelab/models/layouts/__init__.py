"""Everybody's gated attention layers in one canonical form: which layout a checkpoint has, reading it, writing another.

layout = recognise(config, shapes)
canonical = read(layout, tensors, geometry_of(config), prefix="model.layers.3.self_attn.")
tensors = write("gatelab", canonical)
"""

from .canonical import Canonical, Gain, Geometry
from .geometry import geometry_of
from .layout import Block, Layout
from .reading import read
from .recognise import recognise
from .table import LAYOUTS
from .writing import notes, write

__all__ = [
    "LAYOUTS",
    "Block",
    "Canonical",
    "Gain",
    "Geometry",
    "Layout",
    "geometry_of",
    "notes",
    "read",
    "recognise",
    "write",
]
