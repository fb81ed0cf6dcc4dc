"""Which layouts tensors of given shapes could be, and what keeps them from being another."""

from collections.abc import Iterable
from math import prod

from .canonical import Geometry, Granularity
from .layout import Layout
from .table import LAYOUTS

Shapes = dict[str, tuple[int, ...]]


def fitting(shapes: Shapes, geometry: Geometry) -> list[tuple[Layout, Granularity | None]]:
    """Every layout that tensors of these shapes could be, each with the gate's granularity."""
    fits = []
    for layout in LAYOUTS.values():
        # A head of one channel has one gate row either way.
        grains = [g for g in layout.granularities if not layout.mistakes(shapes, geometry, g)]
        fits += [(layout, g) for g in grains[:1]]
    return fits


def misfit(layouts: Iterable[Layout], shapes: Shapes, geometry: Geometry) -> str:
    """What keeps these shapes from being the nearest of the layouts, as `slug: mistakes`; of equals the first."""
    pairs = [(layout, g) for layout in layouts for g in layout.granularities]
    layout, granularity = min(pairs, key=lambda pair: _distance(*pair, shapes, geometry))
    mistakes = layout.mistakes(shapes, geometry, granularity)
    more = f"; and {len(mistakes) - 3} more" if len(mistakes) > 3 else ""
    return f"{layout.slug}: {'; '.join(mistakes[:3])}{more}"


def _distance(layout: Layout, granularity: Granularity | None, shapes: Shapes, geometry: Geometry) -> tuple[int, int]:
    """Tensors that are wrong, then weights too many or too few."""
    always, maybe = layout.shapes(geometry, granularity)
    n_meant = sum(prod(shape) for name, shape in (always | maybe).items() if name in always or name in shapes)
    n_off = abs(n_meant - sum(prod(shape) for shape in shapes.values()))
    return len(layout.mistakes(shapes, geometry, granularity)), n_off
