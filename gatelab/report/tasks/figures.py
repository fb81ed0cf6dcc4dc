"""The charts of tasks: accuracy over multiples of the length of training, over depth, and both at once.

Notable: seeds are drawn one by one and the thick line is their median, for accuracies of seeds that solve a task and of those
that do not have no mean that any of them shows.
"""

from collections.abc import Sequence

from ..charts import Arms, Figure, Line, by_seed, channel, columns, fitted, layer, lines, records, short, stepped
from ..figures import NARROW, SMALL
from ..measured import Points
from ..style import BASELINE, DASHED, DOTTED, RAMP
from .scores import Score

N_DEPTHS = 11
# What a score stands beside: its name, how its line is drawn, how opaque.
BESIDE = {"copying": (DOTTED, 1.0), "chance": (DASHED, 0.6), "untrained": ((1, 5), 1.0)}


def lengths_chart(
    seeds: Sequence[Line],
    medians: dict[str, Points],
    beside: dict[str, Points],
    arms: Arms,
    score: Score,
    alt_text: str,
) -> Figure:
    """A score over multiples of the length of training: every seed thin, each arm's median thick, and what it stands beside
    (names of `BESIDE`) in grey."""
    times = sorted({x for line in seeds for x, _ in line.points})
    axis = {"values": times, "labelExpr": "datum.label + '×'", "format": "d", "grid": False}
    scale = {"type": "log", "base": 2, "domain": [times[0] * 0.95, times[-1] * 1.05]}
    x = channel("x:Q") | {"title": "length over that of training", "scale": scale, "axis": axis}
    at = {"x": x, "y": score.y()}
    layers = [
        layer(
            records(points),
            {"type": "line", "strokeDash": list(dash), "color": BASELINE, "strokeWidth": 1.5, "opacity": opacity},
            at,
        )
        for name, (dash, opacity) in BESIDE.items()
        if (points := beside.get(name))
    ]
    dots = [r for n in seeds for r in records(n.points, arm=n.arm, seed=n.seed)]
    told = (("x:Q", "length, times"), ("y:Q", score.axis))
    tips = [channel("arm:N"), channel("seed:N"), *(channel(field) | {"title": title} for field, title in told)]
    layers += [
        *by_seed(seeds, medians, arms, at),
        layer(dots, {"type": "point", "size": 22, "strokeWidth": 1.2}, at | {"color": arms.colour(), "tooltip": tips}),
    ]
    return fitted(layers, alt_text, NARROW, 220)


def depth_chart(
    bins: dict[str, Sequence[float]],
    ranges: dict[str, Sequence[tuple[float, float]]],
    arms: Arms,
    score: Score,
    alt_text: str,
) -> Figure:
    """A score over eleven depths, an arm a line, with the interval of each depth as a band."""
    scale, axis = {"domain": [0, 1], "nice": False}, {"format": "%", "tickCount": 5, "grid": False}
    x = channel("x:Q") | {"title": "depth of the evidence", "scale": scale, "axis": axis}
    band = [
        {"arm": arm, "x": short(b / (N_DEPTHS - 1)), "low": short(low), "high": short(high)}
        for arm, own in ranges.items()
        for b, (low, high) in enumerate(own)
        if low == low
    ]
    points = {arm: [(b / (N_DEPTHS - 1), v) for b, v in enumerate(own) if v == v] for arm, own in bins.items()}
    edges = {"x": x, "y": channel("low:Q"), "y2": channel("high"), "color": arms.colour()}
    layers = [
        layer(band, {"type": "area", "opacity": 0.16}, edges),
        lines(
            [{"arm": arm, **columns(own)} for arm, own in points.items()],
            {"type": "line", "strokeWidth": 2},
            {"x": x, "y": score.y(), **arms.looks()},
        ),
    ]
    return fitted(layers, alt_text, SMALL, 180)


def depth_map(values: dict[tuple[int, int], float], alt_text: str) -> Figure:
    """Accuracy by length (multiple of that of training, down) and depth (bin 0 to 10, across), on the scale from 0 to 1."""
    order = [f"{times}×" for times in sorted({times for times, _ in values})]
    told = [{"t": f"{t}×", "d": b * 10, "v": short(v)} for (t, b), v in sorted(values.items())]
    axis = {"ticks": False, "domain": False, "labelAngle": 0}
    at = {
        "x": channel("d:O") | {"title": "depth [%]", "axis": axis},
        "y": channel("t:N") | {"title": "length", "sort": order, "axis": axis},
    }
    colour = channel("v:Q") | {"scale": {"clamp": True, "domain": [0, 1], "range": list(RAMP)}, "legend": None}
    shown = (("t:N", "length"), ("d:O", "depth [%]"), ("v:Q", "accuracy"))
    tips = [channel(field) | {"title": title} for field, title in shown]
    ink = {"value": "#fff", "condition": {"test": "datum.v > 0.62", "value": "#000"}}
    said = {"text": channel("v:Q") | {"format": ".2f"}, "color": ink}
    layers = [
        {"mark": {"type": "rect"}, "encoding": at | {"color": colour, "tooltip": tips}},
        {"mark": {"type": "text", "fontSize": 9}, "encoding": at | said},
    ]
    return stepped(told, layers, alt_text, 27, 24)
