"""Where the attention layers of a checkpoint are, by the names of their output projections, and which layouts they may have."""

import re
from typing import Any

from ..layouts import LAYOUTS, geometry_of
from ..layouts.fit import fitting, misfit
from .tensors import Tensors

OUTPUTS = tuple(dict.fromkeys(layout.o_proj for layout in LAYOUTS.values()))
_ATTENTION = re.compile(rf"^(|.*\.)(?:{'|'.join(OUTPUTS)})\.weight$")


def attention_prefixes(tensors: Tensors) -> list[str]:
    """What the names of each attention layer begin with, in the order of the checkpoint."""
    return list(dict.fromkeys(found[1] for name in tensors.shapes if (found := _ATTENTION.match(name))))


def layer_number(prefix: str) -> int | None:
    """The layer that a prefix names last; None where it names none."""
    numbers = re.findall(r"\d+", prefix)
    return int(numbers[-1]) if numbers else None


def shapes_below(tensors: Tensors, prefix: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): s for n, s in tensors.shapes.items() if n.startswith(prefix)}


def gate_hint(config: dict[str, Any], tensors: Tensors) -> str:
    """A clause on the gated layout that the first attention layer's shapes have or come nearest to; "" where none is meant."""
    for prefix in attention_prefixes(tensors)[:1]:
        shapes = shapes_below(tensors, prefix)
        try:
            geometry = geometry_of(config, layer=layer_number(prefix))
            fits = list(dict.fromkeys(layout.slug for layout, granularity in fitting(shapes, geometry) if granularity))
        except ValueError:
            return ""
        if fits:
            said = " or ".join(
                f"{slug} ({', '.join((*LAYOUTS[slug].fields, *LAYOUTS[slug].model_types))})" for slug in fits
            )
            return f"; {prefix.removesuffix('.')} has the shapes of gated layout {said}, of which its config.json says nothing"
        nearest = misfit(LAYOUTS.values(), shapes, geometry).partition(":")[0]
        if nearest != "gatelab":
            return f"; the nearest layout of {prefix.removesuffix('.')} is {nearest}"
    return ""
