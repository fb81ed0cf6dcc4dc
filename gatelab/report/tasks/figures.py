"""The charts of tasks: accuracy over multiples of the length of training, over depth, and both at once.

Notable: seeds are drawn one by one and the thick line is their median, for accuracies of seeds that solve a task and of those
that do not have no mean that any of them shows.
"""

from collections.abc import Sequence
from typing import Any

from ..charts import Arms, Figure, Line, columns, fitted, lines, records, short, specification, table
from ..figures import NARROW, SMALL
from ..measured import Points
from ..style import BASELINE, DASHED, DOTTED, RAMP

N_DEPTHS = 11
# What a score stands beside: its name, how its line is drawn, how opaque.
BESIDE = {"copying": (DOTTED, 1.0), "chance": (DASHED, 0.6), "untrained": ((1, 5), 1.0)}


def lengths_chart(
    seeds: Sequence[Line], medians: dict[str, Points], beside: dict[str, Points], arms: Arms, alt_text: str
) -> Figure:
    """Accuracy over multiples of the length of training: every seed thin, each arm's median thick, and what it stands beside
    (names of `BESIDE`) in grey."""
    import altair as alt

    times = sorted({x for line in seeds for x, _ in line.points})
    axis = alt.Axis(values=times, labelExpr="datum.label + '×'", format="d", grid=False)
    ends = [times[0] * 0.95, times[-1] * 1.05]
    x = alt.X("x:Q", title="length over that of training", scale=alt.Scale(type="log", base=2, domain=ends), axis=axis)
    y = _accuracy(alt)
    layers = [
        table(records(points))
        .mark_line(strokeDash=list(dash), color=BASELINE, strokeWidth=1.5, opacity=opacity)
        .encode(x=x, y=y)
        for name, (dash, opacity) in BESIDE.items()
        if (points := beside.get(name))
    ]
    cap = "butt" if arms.is_dashed else "round"
    thin = lines([{"arm": n.arm, "seed": n.seed, **columns(n.points)} for n in seeds])
    thick = lines([{"arm": arm, **columns(points)} for arm, points in medians.items()])
    dots = [r for n in seeds for r in records(n.points, arm=n.arm, seed=n.seed)]
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("seed:N"),
        alt.Tooltip("x:Q", title="length, times"),
        alt.Tooltip("y:Q", title="accuracy"),
    ]
    layers += [
        thin.mark_line(strokeWidth=1, opacity=0.45, strokeCap=cap).encode(
            x=x, y=y, detail=alt.Detail("seed:N"), **arms.looks()
        ),
        thick.mark_line(strokeWidth=2.6, strokeCap=cap).encode(x=x, y=y, **arms.looks()),
        table(dots).mark_point(size=22, strokeWidth=1.2).encode(x=x, y=y, color=arms.colour(), tooltip=tips),
    ]
    return fitted(alt.layer(*layers), alt_text, NARROW, 220)


def depth_chart(
    bins: dict[str, Sequence[float]], ranges: dict[str, Sequence[tuple[float, float]]], arms: Arms, alt_text: str
) -> Figure:
    """Accuracy over eleven depths, an arm a line, with the interval of each depth as a band."""
    import altair as alt

    scale, axis = alt.Scale(domain=[0, 1], nice=False), alt.Axis(format="%", tickCount=5, grid=False)
    x, y = alt.X("x:Q", title="depth of the evidence", scale=scale, axis=axis), _accuracy(alt)
    band = [
        {"arm": arm, "x": short(b / (N_DEPTHS - 1)), "low": short(low), "high": short(high)}
        for arm, own in ranges.items()
        for b, (low, high) in enumerate(own)
        if low == low
    ]
    points = {arm: [(b / (N_DEPTHS - 1), v) for b, v in enumerate(own) if v == v] for arm, own in bins.items()}
    drawn = lines([{"arm": arm, **columns(own)} for arm, own in points.items()])
    chart = alt.layer(
        table(band).mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), color=arms.colour()),
        drawn.mark_line(strokeWidth=2).encode(x=x, y=y, **arms.looks()),
    )
    return fitted(chart, alt_text, SMALL, 180)


def depth_map(values: dict[tuple[int, int], float], alt_text: str) -> Figure:
    """Accuracy by length (multiple of that of training, down) and depth (bin 0 to 10, across), on the scale from 0 to 1."""
    import altair as alt

    order = [f"{times}×" for times in sorted({times for times, _ in values})]
    told = [{"t": f"{t}×", "d": b * 10, "v": short(v)} for (t, b), v in sorted(values.items())]
    axes = [alt.Axis(ticks=False, domain=False, labelAngle=0) for _ in range(2)]
    base = table(told).encode(
        x=alt.X("d:O", title="depth [%]", axis=axes[0]), y=alt.Y("t:N", title="length", sort=order, axis=axes[1])
    )
    scale = alt.Scale(domain=[0, 1], range=list(RAMP), clamp=True)
    tips = [
        alt.Tooltip("t:N", title="length"),
        alt.Tooltip("d:O", title="depth [%]"),
        alt.Tooltip("v:Q", title="accuracy"),
    ]
    ink = alt.ColorValue("#fff", condition={"test": "datum.v > 0.62", "value": "#000"})
    chart = alt.layer(
        base.mark_rect().encode(color=alt.Color("v:Q", scale=scale, legend=None), tooltip=tips),
        base.mark_text(fontSize=9).encode(text=alt.Text("v:Q", format=".2f"), color=ink),
    ).properties(width=alt.Step(27), height=alt.Step(24))
    return Figure(specification(chart, alt_text), alt_text)


def _accuracy(alt: Any) -> Any:
    scale, axis = alt.Scale(domain=[0, 1], nice=False), alt.Axis(tickCount=5)
    return alt.Y("y:Q", title="accuracy [share]", scale=scale, axis=axis)
