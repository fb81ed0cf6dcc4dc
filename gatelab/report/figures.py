"""The charts, one Vega-Lite specification each: effects, curves, maps, histograms, layers.

Notable: a chart has no title and no legend of its own; the page names it, and an arm has one colour everywhere. Maps of
the whole page share one colour scale (`map_top`), so that a cell of one map can be compared with a cell of any other.
Numbers are rounded to five significant digits; the CSV files hold all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from ..record import Finding
from .markup import number
from .measured import Points
from .style import BASELINE, RAMP

WIDE = 560  # pixels; a wide chart is narrowed to the space there is
NARROW = 380
_STEPS = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]


@dataclass(frozen=True)
class Arms:
    """The arms of a study in its order: their words, and the one colour and dash pattern of each."""

    labels: dict[str, str]
    colours: dict[str, tuple[str, list[int]]]
    baseline: str

    def scale(self, channel: str) -> Any:
        """The Altair scale from arm to colour ('color') or dash pattern ('dash')."""
        import altair as alt

        index = 0 if channel == "color" else 1
        return alt.Scale(domain=list(self.labels), range=[self.colours[arm][index] for arm in self.labels])


@dataclass(frozen=True)
class Figure:
    """A chart: its specification, what it shows in words, and the width up to which it fills its place (None: its own)."""

    spec: dict[str, Any]
    alt: str
    fit: int | None = None


@dataclass(frozen=True)
class Line:
    """One seed's curve (or table of layers) of an arm; `cut` says why it ends early, if it does."""

    arm: str
    seed: int
    points: Points
    cut: str = ""


def forest(findings: Sequence[Finding], arms: Arms, absent: Sequence[str] = ()) -> Figure:
    """Effect and interval of each arm on one metric in one cell, with every seed's difference and the band of nothing."""
    import altair as alt

    tested = [f for f in findings if isfinite(f.low) and isfinite(f.high)]
    names = [arms.labels[f.arm] for f in findings] + [arms.labels[arm] for arm in absent]
    points = [
        {
            "arm": f.arm,
            "label": arms.labels[f.arm],
            "effect": _short(f.effect),
            "low": _short(f.low),
            "high": _short(f.high),
        }
        for f in tested
    ]
    seeds = [
        {"arm": f.arm, "label": arms.labels[f.arm], "seed": seed, "difference": _short(difference)}
        for f in findings
        for seed, difference in zip(f.seeds, f.differences, strict=True)
        if isfinite(difference)
    ]
    y = alt.Y(
        "label:N", sort=names, scale=alt.Scale(domain=names), title=None, axis=alt.Axis(ticks=False, domain=False)
    )
    colour = alt.Color("arm:N", scale=arms.scale("color"), legend=None)
    x_title = f"{arms.labels[arms.baseline]} = 0; difference{_unit(findings)}"
    layers = [_at_zero(alt).encode(x=alt.X("x:Q", title=x_title))]
    if findings and findings[0].equivalence is not None:
        band = alt.Chart(_data([{"x": -findings[0].equivalence, "x2": findings[0].equivalence}]))
        layers.insert(0, band.mark_rect(opacity=0.16, color=BASELINE).encode(x="x:Q", x2="x2:Q"))
    interval = alt.Chart(_data(points)).encode(y=y, color=colour)
    tips = [alt.Tooltip("label:N", title="arm"), "effect:Q", "low:Q", "high:Q"]
    each = alt.Chart(_data(seeds)).mark_tick(thickness=1.5, size=13, opacity=0.75)
    holes = [
        {"label": name, "text": "no finished pair", "x": 0} for name in names if name in map(arms.labels.get, absent)
    ]
    holes += [
        {"label": arms.labels[f.arm], "text": "no interval", "x": 0}
        for f in findings
        if f not in tested and not any(map(isfinite, f.differences))
    ]
    layers += [
        interval.mark_rule(strokeWidth=3, opacity=0.55).encode(x="low:Q", x2="high:Q", tooltip=tips),
        each.encode(x="difference:Q", y=y, color=colour, tooltip=["label:N", "seed:N", "difference:Q"]),
        interval.mark_point(filled=True, size=75, opacity=1).encode(x="effect:Q", tooltip=tips),
    ]
    if holes:
        words = alt.Chart(_data(holes)).mark_text(align="left", dx=6, fontStyle="italic")
        layers.append(words.encode(x="x:Q", y=y, text="text:N"))
    alt_text = "; ".join(
        f"{arms.labels[f.arm]} {number(f.effect)} (interval {number(f.low)} to {number(f.high)})" for f in findings
    )
    return _figure(
        alt.layer(*layers), f"Difference from the baseline: {alt_text or 'nothing to show'}", NARROW, alt.Step(30)
    )


def curves(
    lines: Sequence[Line],
    means: dict[str, Points],
    arms: Arms,
    *,
    alt_text: str,
    y_title: str,
    domain: Sequence[float] | None = None,
    marks: Sequence[Line] = (),
    reference: Points = (),
    zero: bool = False,
    along: Literal["step", "log step", "layer"] = "step",
) -> Figure:
    """Every seed as a thin line, each arm's mean thick; `marks` are points of seeds, `reference` one dotted grey line."""
    import altair as alt

    end = max((x for line in lines for x, _ in line.points), default=1)
    x = alt.X("x:Q", title=along.removeprefix("log "), scale=_x_scale(alt, along, end), axis=_x_axis(alt, along, end))
    y_scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=zero)
    y = alt.Y("y:Q", title=y_title, scale=y_scale, axis=alt.Axis(tickCount=5))
    looks = {
        "color": alt.Color("arm:N", scale=arms.scale("color"), legend=None),
        "strokeDash": alt.StrokeDash("arm:N", scale=arms.scale("dash"), legend=None),
    }
    layers = [_at_zero(alt).encode(y="x:Q")] if zero and domain is None else []
    if reference:
        straight = alt.Chart(_data(_points(reference))).mark_line(strokeDash=[2, 3], color=BASELINE, strokeWidth=1.5)
        layers.append(straight.encode(x=x, y=y))
    seeds = _lines(alt, [{"arm": n.arm, "seed": n.seed, **_columns(n.points)} for n in lines])
    layers.append(seeds.mark_line(strokeWidth=1, opacity=0.45, clip=True).encode(x=x, y=y, detail="seed:N", **looks))
    thick = _lines(alt, [{"arm": arm, **_columns(points)} for arm, points in means.items() if points])
    layers.append(thick.mark_line(strokeWidth=2.6, clip=True).encode(x=x, y=y, **looks))
    ends = [
        {"arm": n.arm, "seed": n.seed, "x": n.points[-1][0], "y": n.points[-1][1], "why": n.cut} for n in lines if n.cut
    ]
    for kind, values in (("cross", ends), ("circle", [p for n in marks for p in _points(n.points, n)])):
        dots = alt.Chart(_data(values)).mark_point(
            shape=kind,
            size=42 if kind == "cross" else 26,
            angle=45 if kind == "cross" else 0,
            strokeWidth=1.3,
            clip=True,
        )
        tips = ["arm:N", "seed:N", alt.Tooltip("x:Q", title=along), alt.Tooltip("y:Q", title=y_title)]
        if kind == "cross":
            tips.append(alt.Tooltip("why:N", title="state"))
        if values:
            layers.append(dots.encode(x=x, y=y, color=looks["color"], tooltip=tips))
    return _figure(alt.layer(*layers), alt_text, WIDE, 240)


def _x_scale(alt: Any, along: str, end: float) -> Any:
    # A symmetric logarithm, because step 0 is a look too.
    return alt.Scale(type="symlog" if along == "log step" else "linear", domain=[0, end], nice=False)


def _x_axis(alt: Any, along: str, end: float) -> Any:
    if along == "layer":
        return alt.Axis(format="d", tickMinStep=1, grid=False)
    if along == "step":
        return alt.Axis(format="~s", tickCount=6, grid=False)
    return alt.Axis(format="~s", values=[step for step in _STEPS if step <= end], grid=False)


def map_top(values: Sequence[float]) -> float:
    """The upper end of the one scale of all maps: the largest value, rounded up to one that reads well."""
    largest = max((v for v in values if isfinite(v)), default=1.0)
    return next(top for top in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if largest <= top or top == 1.0)


def mass_map(table: dict[tuple[int, int], float], top: float, alt_text: str, *, small: bool = False) -> Figure:
    """First-token mass by layer (down) and head (across), on the scale from 0 to `top`."""
    import altair as alt

    n_heads, n_layers = (len({key[i] for key in table}) for i in (1, 0))
    side = min(26 if small else 36, max(5, 190 // n_heads), max(5, 400 // n_layers))
    values = [{"l": layer, "h": head, "v": _short(value)} for (layer, head), value in sorted(table.items())]
    spaced = max(1, -(-14 // side))
    axis = {"ticks": False, "domain": False, "labelAngle": 0, "labelOverlap": "parity" if spaced > 1 else False}
    base = alt.Chart(_data(values)).encode(
        x=alt.X("h:O", title="head", axis=alt.Axis(**axis)), y=alt.Y("l:O", title="layer", axis=alt.Axis(**axis))
    )
    scale = alt.Scale(domain=[0, top], range=list(RAMP), clamp=True)
    tips = [alt.Tooltip("l:O", title="layer"), alt.Tooltip("h:O", title="head"), alt.Tooltip("v:Q", title="mass")]
    layers = [base.mark_rect().encode(color=alt.Color("v:Q", scale=scale, legend=None), tooltip=tips)]
    if side >= 26:
        ink = alt.condition(f"datum.v > {0.62 * top}", alt.value("#000"), alt.value("#fff"))
        layers.append(base.mark_text(fontSize=10).encode(text=alt.Text("v:Q", format=".2f"), color=ink))
    chart = alt.layer(*layers).properties(width=alt.Step(side), height=alt.Step(side))
    return Figure(_plain(chart, alt_text), alt_text)


def gate_histogram(
    shares: dict[str, dict[int, float]], means: dict[str, float], arms: Arms, alt_text: str, *, top: float, log: bool
) -> Figure:
    """Gate scores of one layer as stepped lines, an arm each, with the mean gate as a dashed upright line."""
    import altair as alt

    floor = 1e-4
    lines = []
    for arm, bins in shares.items():
        width = 1 / (max(bins) + 1)
        y = [max(bins.get(b, 0.0), floor if log else 0.0) for b in range(max(bins) + 1)]
        points = [(b * width, value) for b, value in enumerate([*y, y[-1]])]
        lines.append({"arm": arm, **_columns(points)})
    y_scale = alt.Scale(type="log", domain=[floor, 1]) if log else alt.Scale(domain=[0, top])
    y_axis = alt.Axis(values=[1e-4, 1e-3, 1e-2, 0.1, 1], format="~g") if log else alt.Axis(format="~g", tickCount=4)
    colour = alt.Color("arm:N", scale=arms.scale("color"), legend=None)
    x = alt.X("x:Q", title="gate score", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False, tickCount=5))
    steps = _lines(alt, lines).mark_line(interpolate="step-after", strokeWidth=1.8)
    middle = alt.Chart(_data([{"arm": arm, "x": _short(mean)} for arm, mean in means.items()]))
    chart = alt.layer(
        steps.encode(x=x, y=alt.Y("y:Q", title="share of scores", scale=y_scale, axis=y_axis), color=colour),
        middle.mark_rule(strokeDash=[5, 3], strokeWidth=1.5).encode(
            x="x:Q", color=colour, tooltip=["arm:N", alt.Tooltip("x:Q", title="mean gate")]
        ),
    )
    return _figure(chart, alt_text, 300, 110)


def _figure(chart: Any, alt_text: str, width: int, height: Any) -> Figure:
    chart = chart.properties(width=width, height=height, autosize={"type": "fit-x", "contains": "padding"})
    return Figure(_plain(chart, alt_text), alt_text, width)


def _plain(chart: Any, alt_text: str) -> dict[str, Any]:
    """The specification without what the page supplies once: the schema's address and the theme."""
    spec = chart.properties(description=alt_text).to_dict()
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def _at_zero(alt: Any) -> Any:
    return alt.Chart(_data([{"x": 0}])).mark_rule(opacity=0.5)


def _data(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=values)


def _lines(alt: Any, values: list[dict[str, Any]]) -> Any:
    """A chart over whole curves, kept as two columns a line: a third of the size of one record a point."""
    return alt.Chart(_data(values)).transform_flatten(["x", "y"])


def _columns(points: Points) -> dict[str, list[float]]:
    return {"x": [_short(x) for x, _ in points], "y": [_short(y) for _, y in points]}


def _points(points: Points, line: Line | None = None) -> list[dict[str, Any]]:
    whose = {"arm": line.arm, "seed": line.seed} if line else {}
    return [{**whose, "x": _short(x), "y": _short(y)} for x, y in points]


def _short(x: float) -> float:
    value = float(f"{x:.5g}")
    return int(value) if value.is_integer() else value


def _unit(findings: Sequence[Finding]) -> str:
    unit = findings[0].unit if findings else ""
    return "" if unit in ("", "1") else f" [{unit}]"
