"""The charts, one Vega-Lite specification each: effects, curves, maps, histograms.

Notable: a chart has no title and no legend of its own; the page names it, and an arm has one colour everywhere. Maps of
the whole page share one colour scale (`map_top`), so that a cell of one map can be compared with a cell of any other.
"""

from collections.abc import Sequence
from math import ceil, isfinite
from typing import Any, Literal

from ..record import Finding
from .charts import (
    Arms,
    Figure,
    Line,
    Spec,
    by_seed,
    channel,
    columns,
    extent,
    fitted,
    layer,
    lines,
    records,
    short,
    stepped,
)
from .markup import number
from .measured import Points
from .style import BASELINE, DOTTED, RAMP

WIDE, NARROW, SMALL = 560, 380, 320  # pixels
_STEPS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
_CROSS = "M-1,-1L1,1M-1,1L1,-1"
_HISTOGRAM_FLOOR = 1e-4
# An axis' own format gives all its labels the prefix of the largest: 0k for 300.
_SHORT_LABEL = "format(datum.value, '~s')"

Along = Literal["step", "log step", "layer"]


def forest(findings: Sequence[Finding], arms: Arms, absent: Sequence[str] = ()) -> Figure:
    """Effect and interval of each arm on one metric in one cell, every seed's difference, the band of nothing.

    `absent` are arms without a finding; they keep their row. An interval that does not exist is not drawn.
    """
    names = [arms.labels[arm] for arm in (*(f.arm for f in findings), *absent)]
    tested = [_row(f, arms, effect=f.effect, low=f.low, high=f.high) for f in findings if isfinite(f.high - f.low)]
    seeds = [
        _row(f, arms, seed=seed, difference=difference)
        for f in findings
        for seed, difference in zip(f.seeds, f.differences, strict=True)
        if isfinite(difference)
    ]
    seen = {row["label"] for row in (*tested, *seeds)}
    refused = {arms.labels[f.arm] for f in findings if f.verdict == "refused"}
    holes = [
        {"label": name, "text": "refused" if name in refused else "no finished pair", "x": 0}
        for name in names
        if name not in seen
    ]
    bound = findings[0].equivalence if findings else None

    values = [0.0, bound or 0.0, -(bound or 0.0), *(r[k] for r in tested for k in ("low", "high"))]
    values += [row["difference"] for row in seeds]
    margin = 0.06 * (max(values) - min(values)) or 1.0
    x_scale = {"domain": [short(min(values) - margin), short(max(values) + margin)], "nice": False, "zero": False}
    x_axis = {"tickCount": 4, "labelOverlap": True}
    unit = findings[0].unit if findings and findings[0].unit != "1" else ""
    title = f"difference from {arms.labels[arms.baseline]}{f' [{unit}]' if unit else ''}"
    axis = {"ticks": False, "domain": False}
    y = channel("label:N") | {"sort": names, "scale": {"domain": names}, "title": None, "axis": axis}
    color = arms.colour()
    tips = [channel("label:N") | {"title": "arm"}, *(channel(f"{name}:Q") for name in ("effect", "low", "high"))]
    each = [channel("label:N"), channel("seed:N"), channel("difference:Q")]
    zero = channel("x:Q") | {"title": title, "scale": x_scale, "axis": x_axis}
    bars = {"x": channel("low:Q"), "x2": channel("high"), "y": y, "color": color, "tooltip": tips}
    layers = [
        layer([{"x": 0}], {"type": "rule", "opacity": 0.5}, {"x": zero}),
        layer(tested, {"type": "rule", "strokeWidth": 3, "opacity": 0.55}, bars),
        layer(
            seeds,
            {"type": "tick", "thickness": 1.5, "size": 13, "opacity": 0.75},
            {"x": channel("difference:Q"), "y": y, "color": color, "tooltip": each},
        ),
        layer(
            tested,
            {"type": "point", "filled": True, "size": 75, "opacity": 1},
            {"x": channel("effect:Q"), "y": y, "color": color, "tooltip": tips},
        ),
    ]
    if bound is not None:
        band = {"type": "rect", "opacity": 0.16, "color": BASELINE}
        layers.insert(0, layer([{"x": -bound, "x2": bound}], band, {"x": channel("x:Q"), "x2": channel("x2")}))
    if holes:
        words = {"type": "text", "align": "left", "dx": 6, "fontStyle": "italic"}
        layers.append(layer(holes, words, {"x": channel("x:Q"), "y": y, "text": channel("text:N")}))
    said = "; ".join(f"{arms.labels[f.arm]} {number(f.effect)} ({number(f.low)} to {number(f.high)})" for f in findings)
    alt_text = f"Difference from the baseline with its interval. {said or 'Nothing to show.'}"
    return fitted(layers, alt_text, NARROW, 40 + 28 * len(names))


def _row(f: Finding, arms: Arms, **values: float) -> dict[str, Any]:
    return {"arm": f.arm, "label": arms.labels[f.arm], **{name: short(value) for name, value in values.items()}}


def curves(
    seeds: Sequence[Line],
    means: dict[str, Points],
    arms: Arms,
    *,
    alt_text: str,
    y_title: str,
    along: Along = "step",
    domain: Sequence[float] | None = None,
    marks: Sequence[Line] = (),
    reference: Points = (),
) -> Figure:
    """Every seed as a thin line and each arm's mean thick; a cross where a run stopped early.

    `marks` are drawn as circles, `reference` as one dotted line. What lies outside `domain` (of y) is cut off; without
    one the axis holds all values and, where they have both signs, a line at zero.
    """
    # A run without training has step 0 alone, and an axis has two ends.
    x = _x(along, max((line.points[-1][0] for line in (*seeds, *marks) if line.points), default=1) or 1)
    scale = {"domain": list(domain)} if domain else {"zero": along == "layer"}
    y = channel("y:Q") | {"title": y_title, "scale": scale, "axis": {"tickCount": 5}}
    low, high = domain or extent(seeds) or (0, 0)
    layers = []
    if domain is None and low < 0 < high:
        layers.append(layer([{"y": 0}], {"type": "rule", "opacity": 0.5}, {"y": channel("y:Q")}))
    if reference:
        dotted = {"type": "line", "strokeDash": list(DOTTED), "color": BASELINE, "strokeWidth": 1.5}
        layers.append(layer(records(reference), dotted, {"x": x, "y": y}))
    layers += by_seed(seeds, means, arms, {"x": x, "y": y}, is_clipped=True)
    circles = [r for n in marks for r in records(n.points, arm=n.arm, seed=n.seed) if low <= r["y"] <= high]
    ends = [r for n in seeds if n.cut for r in records(n.points[-1:], arm=n.arm, seed=n.seed, state=n.cut)]
    title = {"title": y_title}
    tips = [channel("arm:N"), channel("seed:N"), channel("x:Q") | {"title": along}, channel("y:Q") | title]
    at = {"x": x, "y": y, "color": arms.colour()}
    if circles:
        layers.append(layer(circles, {"type": "point", "size": 26, "strokeWidth": 1.3}, at | {"tooltip": tips}))
    if ends:
        cross = {"type": "point", "shape": _CROSS, "size": 60, "strokeWidth": 2, "clip": True}
        layers.append(layer(ends, cross, at | {"tooltip": [*tips, channel("state:N")]}))
    return fitted(layers, alt_text, WIDE, 240)


def _x(along: Along, end: float) -> Spec:
    if along == "layer":
        layers = range(0, int(end) + 1, max(1, ceil(end / 12)))
        scale, axis = {"domain": [-0.25, end + 0.25]}, {"values": list(layers), "format": "d", "grid": False}
    elif along == "log step":
        # A symmetric logarithm, because step 0 is a look too.
        scale = {"type": "symlog", "domain": [0, end], "nice": False}
        axis = {"values": [step for step in _STEPS if step <= end], "labelExpr": _SHORT_LABEL, "grid": False}
    else:
        scale = {"domain": [0, end], "nice": False}
        axis = {"tickCount": 6, "labelExpr": _SHORT_LABEL, "grid": False}
    return channel("x:Q") | {"title": along.removeprefix("log "), "scale": scale, "axis": axis}


def map_top(values: Sequence[float]) -> float:
    """The upper end of the one scale of all maps: the largest value, rounded up to one that reads well."""
    largest = max(values, default=1.0)
    return next(top for top in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if largest <= top or top == 1.0)


def mass_map(values: dict[tuple[int, int], float], top: float, alt_text: str, *, side: int) -> Figure:
    """First-token mass by layer (down) and head (across), on the scale from 0 to `top`.

    A cell is `side` pixels wide at most, less where there are many; from 26 on its number is written into it.
    """
    n_layers, n_heads = (len({key[i] for key in values}) for i in (0, 1))
    side = min(side, max(6, 240 // n_heads), max(6, 400 // n_layers))
    axes = [
        {
            "ticks": False, "domain": False, "labelAngle": 0,
            "values": sorted({key[i] for key in values})[:: ceil(room / side)],
        }
        for i, room in ((0, 13), (1, 19 if n_heads > 10 else 9))
    ]  # fmt: skip
    cells = [{"l": layer, "h": head, "v": short(v)} for (layer, head), v in sorted(values.items())]
    at = {
        "x": channel("h:O") | {"title": "head", "axis": axes[1]},
        "y": channel("l:O") | {"title": "layer", "axis": axes[0]},
    }
    scale = {"clamp": True, "domain": [0, top], "range": list(RAMP)}
    tips = [channel(f) | {"title": title} for f, title in (("l:O", "layer"), ("h:O", "head"), ("v:Q", "mass"))]
    colour = channel("v:Q") | {"scale": scale, "legend": None}
    layers: list[Spec] = [{"mark": {"type": "rect"}, "encoding": at | {"color": colour, "tooltip": tips}}]
    if side >= 26:
        ink = {"value": "#fff", "condition": {"test": f"datum.v > {0.62 * top}", "value": "#000"}}
        said = {"text": channel("v:Q") | {"format": ".2f"}, "color": ink}
        layers.append({"mark": {"type": "text", "fontSize": 10}, "encoding": at | said})
    return stepped(cells, layers, alt_text, side, side)


def gate_histogram(
    shares: dict[str, dict[int, float]], means: dict[str, float], arms: Arms, alt_text: str, *, top: float, is_log: bool
) -> Figure:
    """Gate scores of one layer as stepped lines, an arm each, with the mean gate as a dashed upright line.

    `shares` are {arm: {bin over [0, 1]: share}}; on a logarithmic axis what is below its floor lies on it.
    """
    floor = _HISTOGRAM_FLOOR if is_log else 0.0
    steps = []
    for arm, bins in shares.items():
        heights = [max(bins.get(b, 0.0), floor) for b in range(max(bins) + 1)]
        edges = [b / len(heights) for b in range(len(heights) + 1)]
        steps.append({"arm": arm, **columns(list(zip(edges, [*heights, heights[-1]], strict=True)))})
    if is_log:
        y_scale = {"type": "log", "domain": [floor, 1]}
        y_axis = {"values": [1e-4, 1e-2, 1], "format": "~g"}
    else:
        y_scale, y_axis = {"domain": [0, top]}, {"format": "~g", "tickCount": 4}
    x_axis = {"grid": False, "tickCount": 5}
    x = channel("x:Q") | {"title": "gate score", "scale": {"domain": [0, 1]}, "axis": x_axis}
    y = channel("y:Q") | {"title": "share of scores", "scale": y_scale, "axis": y_axis}
    middle = [{"arm": arm, "x": short(mean)} for arm, mean in means.items()]
    tips = [channel("arm:N"), channel("x:Q") | {"title": "mean gate"}]
    layers = [
        lines(
            steps,
            {"type": "line", "interpolate": "step-after", "strokeWidth": 1.8},
            {"x": x, "y": y, "color": arms.colour()},
        ),
        layer(
            middle,
            {"type": "rule", "strokeDash": [5, 3], "strokeWidth": 1.5},
            {"x": channel("x:Q"), "color": arms.colour(), "tooltip": tips},
        ),
    ]
    return fitted(layers, alt_text, SMALL, 130)
