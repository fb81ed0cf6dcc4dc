"""The charts of an anomaly's card: a metric over training as medians with the range of seeds, and gate scores layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from .charts import Arms, Figure, channel, fitted, layer, short, shorts
from .measured import Points
from .style import RAMP

WIDE = 300  # pixels
_FEW = 25  # looks that have a dot each
_FLOOR = 1e-4  # share of scores below which a bin is blank


@dataclass(frozen=True)
class Band:
    """An arm's median over its seeds with the smallest and the largest, at the steps that all `n_seeds` have."""

    arm: str
    n_seeds: int
    median: Points
    low: Points
    high: Points


def band(arm: str, curves: Sequence[dict[float, float]]) -> Band | None:
    """Of the curves {step: value} of an arm's seeds, over the steps that all of them have; None where there is none."""
    steps = sorted(set(curves[0]).intersection(*curves[1:])) if curves else []
    if not steps:
        return None
    at = {step: [c[step] for c in curves] for step in steps}
    return Band(arm, len(curves), *([(x, f(at[x])) for x in steps] for f in (median, min, max)))


def bands(runs: Sequence[Band], arms: Arms, y_title: str, alt_text: str) -> Figure:
    """A line an arm over steps, in the band of its seeds."""
    curves = [
        {"arm": b.arm, "x": shorts([x for x, _ in b.median]),
         **{name: shorts([y for _, y in points]) for name, points in (("y", b.median), ("low", b.low), ("high", b.high))}}
        for b in runs
    ]  # fmt: skip
    few = max(len(b.median) for b in runs) <= _FEW
    end = max(b.median[-1][0] for b in runs)
    axis = {"tickCount": 4, "labelExpr": "format(datum.value, '~s')", "grid": False}
    x = channel("x:Q") | {"title": "step", "scale": {"domain": [0, end or 1], "nice": False}, "axis": axis}
    y = {"title": y_title if y_title not in ("", "1") else None, "scale": {"zero": False}, "axis": {"tickCount": 4}}
    flat = {"transform": [{"flatten": ["x", "y", "low", "high"]}]}
    area = {"x": x, "y": channel("low:Q") | y, "y2": channel("high"), "color": arms.colour()}
    line = {"x": x, "y": channel("y:Q") | y, **arms.looks()}
    layers = [
        layer(curves, {"type": "area", "opacity": 0.18}, area) | flat,
        layer(curves, {"type": "line", "strokeWidth": 2, **({"point": {"size": 22}} if few else {})}, line) | flat,
    ]
    return fitted(layers, alt_text, WIDE, 130)


def gate_map(shares: dict[int, dict[int, float]], alt_text: str) -> Figure:
    """Gate scores from 0 to 1 (across) by layer (down); the colour is the square root of a bin's share of its layer's scores."""
    n_bins = max(b for of_layer in shares.values() for b in of_layer) + 1
    values = [
        {"l": number, "x": short(b / n_bins), "x2": short((b + 1) / n_bins), "v": short(share)}
        for number, of_layer in sorted(shares.items())
        for b, share in sorted(of_layer.items())
        if share >= _FLOOR
    ]
    down = max(4, min(22, 300 // len(shares)))
    said = sorted(shares)[:: ceil(13 / down)]
    x = channel("x:Q") | {"title": "gate score", "scale": {"domain": [0, 1]}, "axis": {"tickCount": 5, "grid": False}}
    # All layers, also one whose every bin is below the floor.
    y = channel("l:O") | {
        "title": "layer", "scale": {"domain": sorted(shares)}, "axis": {"ticks": False, "domain": False, "values": said},
    }  # fmt: skip
    scale = {"type": "sqrt", "domain": [0, 1], "range": list(RAMP), "clamp": True}
    tips = [
        channel("l:O") | {"title": "layer"},
        channel("x:Q") | {"title": "from"},
        channel("v:Q") | {"title": "share"},
    ]
    colour = channel("v:Q") | {"scale": scale, "legend": None}
    rects = layer(values, {"type": "rect"}, {"x": x, "x2": channel("x2"), "y": y, "color": colour, "tooltip": tips})
    return fitted([rects], alt_text, WIDE, 40 + down * len(shares))
