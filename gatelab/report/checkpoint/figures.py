"""The line charts and ridges of a checkpoint's page, one Vega-Lite specification each.

Notable: like the study page's, a chart has no title and no legend; what lies below the floor of a logarithmic axis is
drawn on it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..charts import Figure, short
from ..markup import Html, number, tag
from ..parts import swatch
from ..style import ORANGE, RAMP, SOLID
from .altair_charts import fitted, lines, table
from .maps import OCTAVE_LABEL

# An axis' own format gives all its labels the prefix of the largest: 0k for 300.
_LOG_LABEL = "datum.value < 1000 ? format(datum.value, '~g') : format(datum.value, '~s')"

Points = Sequence[tuple[float, float]]
Along = Literal["layer", "octave", "dose"]

WIDTH, HEIGHT = 500, 210


@dataclass(frozen=True)
class Series:
    """One line and, where `low` and `high` are given for each of its points, the band around it. `dash` as in SVG."""

    label: str
    colour: str
    points: Points
    dash: tuple[int, int] = SOLID
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Mark:
    """An upright rule with words, at a layer."""

    at: float
    words: str


def line_chart(
    series: Sequence[Series],
    alt_text: str,
    *,
    along: Along,
    x_title: str,
    y_title: str,
    end: float,
    floor: float | None = None,
    thin: Mapping[int, Points] | None = None,
    marks: Sequence[Mark] = (),
) -> Figure:
    """Lines over the layers or over octaves, from 0 to `end`, broken where one has no point; of a band, what is between;
    `thin` lines are layers, coloured by their depth. With a `floor` the axis of y is logarithmic."""
    import altair as alt

    x, y = _across(alt, along, x_title, end), _upright(alt, y_title, floor, _values(series, thin))
    layers = []
    if thin:
        depth = alt.Color("d:Q", scale=alt.Scale(domain=[0, max(thin)], range=list(RAMP[:7])), legend=None)
        some = lines([{"d": d, **_columns(points, floor)} for d, points in sorted(thin.items()) if points])
        tips = [alt.Tooltip("d:Q", title="layer"), alt.Tooltip("y:Q", title=y_title)]
        layers.append(
            some.mark_line(strokeWidth=1, opacity=0.6).encode(x=x, y=y, color=depth, detail="d:N", tooltip=tips)
        )
    layers += [band(s, x, y, along, floor) for s in series if s.low]
    for mark in marks:
        layers += _marked(alt, mark, end, x)
    layers += drawn(alt, series, x, y, along, y_title, floor)
    return fitted(alt.layer(*layers).resolve_scale(color="independent"), alt_text, WIDTH, HEIGHT)


def drawn(
    alt: Any, series: Sequence[Series], x: Any, y: Any, along: Along, y_title: str, floor: float | None
) -> list[Any]:
    """The series as lines, and as points that say their numbers."""
    names = [s.label for s in series]
    colour = alt.Color("s:N", scale=alt.Scale(domain=names, range=[s.colour for s in series]), legend=None)
    dash = alt.StrokeDash("s:N", scale=alt.Scale(domain=names, range=[list(s.dash) for s in series]), legend=None)
    whole = lines(
        [
            {"s": s.label, **_columns(part, floor), "p": i}
            for s in series
            for i, part in enumerate(_parts(s.points, along))
        ]
    )
    tips = [alt.Tooltip("s:N", title="line"), alt.Tooltip("x:Q", title=along), alt.Tooltip("y:Q", title=y_title)]
    dots = whole.mark_point(filled=True, size=22, opacity=1).encode(x=x, y=y, color=colour, tooltip=tips)
    # Round ends would fill the gaps between dashes.
    return [
        whole.mark_line(strokeWidth=2.2, strokeCap="butt").encode(
            x=x, y=y, color=colour, strokeDash=dash, detail="p:N"
        ),
        dots,
    ]


def band(s: Series, x: Any, y: Any, along: Along, floor: float | None) -> Any:
    """What is between a series' low and high values."""
    edges = dict(zip((px for px, _ in s.points), zip(s.low, s.high, strict=True), strict=True))
    parts = []
    for i, part in enumerate(_parts(s.points, along)):
        low, high = (_columns([(px, edges[px][side]) for px, _ in part], floor) for side in (0, 1))
        parts.append({"x": low["x"], "y": low["y"], "y2": high["y"], "p": i})
    area = table(parts).transform_flatten(["x", "y", "y2"])
    return area.mark_area(opacity=0.16, color=s.colour).encode(x=x, y=y, y2="y2:Q", detail="p:N")


def _marked(alt: Any, mark: Mark, end: float, x: Any) -> list[Any]:
    """The rule, and its words on the side where there is room."""
    is_right = mark.at > 0.55 * end
    at = table([{"x": mark.at, "words": mark.words}])
    words = at.mark_text(align="right" if is_right else "left", dx=-5 if is_right else 5, baseline="bottom")
    return [
        at.mark_rule(strokeDash=[3, 3], opacity=0.7).encode(x=x),
        words.encode(x=x, y=alt.value(-3), text="words:N"),
    ]


def ridges(
    shares: Mapping[int, Mapping[int, float]], means: Mapping[int, float], alt_text: str, *, n_bins: int
) -> Figure:
    """{layer: {bin over [0, 1]: share}} as one ridge a layer, each as high as its largest bin allows; the mean is a dot."""
    import altair as alt

    step = min(26.0, max(9.0, 420 / len(shares)))
    places = {layer: i for i, layer in enumerate(sorted(shares))}
    records = []
    for layer, place in places.items():
        top = max(shares[layer].values())
        heights = [max(0.0, shares[layer].get(b, 0.0)) / (top if top > 0 else 1.0) for b in range(n_bins)]
        up = [short(place - 1.5 * h) for h in heights]
        records.append(
            {"l": layer, "p": place, "x": [b / n_bins for b in range(n_bins + 1)], "y": [*up, up[-1]],
             "s": [short(shares[layer].get(min(b, n_bins - 1), 0.0)) for b in range(n_bins + 1)]}
        )  # fmt: skip
    ticks = list(range(0, len(places), math.ceil(13 / step)))
    names = "[" + ",".join(str(layer) for layer in places) + "][datum.value]"
    scale = alt.Scale(domain=[len(places) - 0.7, -1.6], nice=False, zero=False)
    axis = alt.Axis(values=ticks, labelExpr=names, grid=False, domain=False, ticks=False, labelOverlap=False)
    x = alt.X("x:Q", title="gate score", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False, tickCount=5))
    y = alt.Y("y:Q", title="layer", scale=scale, axis=axis)
    tips = [
        alt.Tooltip("l:Q", title="layer"),
        alt.Tooltip("x:Q", title="score from"),
        alt.Tooltip("s:Q", title="share"),
    ]
    area = table(records).transform_flatten(["x", "y", "s"])
    dots = table([{"l": layer, "p": places[layer], "x": short(m)} for layer, m in means.items() if layer in places])
    said = [alt.Tooltip("l:Q", title="layer"), alt.Tooltip("x:Q", title="mean score")]
    colour = RAMP[3]
    chart = alt.layer(
        area.mark_area(interpolate="step-after", color=colour, opacity=0.5, line={"color": colour, "strokeWidth": 1})
        .encode(x=x, y=y, y2="p:Q", detail="l:O", tooltip=tips),
        dots.mark_point(filled=True, size=34, opacity=1, color=ORANGE).encode(x=x, y="p:Q", tooltip=said),
    )  # fmt: skip
    return fitted(chart, alt_text, WIDTH, round(step * (len(places) + 0.9)))


def _across(alt: Any, along: Along, title: str, end: float) -> Any:
    if along == "octave":
        axis = alt.Axis(values=list(range(int(end) + 1)), labelExpr=OCTAVE_LABEL, grid=False, labelOverlap=True)
        return alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(domain=[-0.25, end + 0.25], nice=False, zero=False))
    axis = alt.Axis(values=list(range(0, int(end) + 1, max(1, math.ceil(end / 12)))), format="d", grid=False)
    return alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(domain=[-0.25, end + 0.25], nice=False, zero=False))


def _upright(alt: Any, title: str, floor: float | None, values: Sequence[float]) -> Any:
    if floor is None:
        return alt.Y("y:Q", title=title, axis=alt.Axis(tickCount=5), scale=alt.Scale(zero=True))
    low, high = (f(max(v, floor) for v in (values or [floor])) for f in (min, max))
    # Whole decades, one at least: between them the axis would have no labels.
    first = math.floor(math.log10(low) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(high) - 1e-9))
    ticks = [float(f"1e{k}") for k in range(first, last + 1, math.ceil((last - first) / 6))]
    scale = alt.Scale(type="log", domain=[float(f"1e{first}"), float(f"1e{last}")], nice=False)
    return alt.Y("y:Q", title=title, axis=alt.Axis(values=ticks, labelExpr=_LOG_LABEL), scale=scale)


def _values(series: Sequence[Series], thin: Mapping[int, Points] | None) -> list[float]:
    drawn = [py for points in [*(s.points for s in series), *(thin or {}).values()] for _, py in points]
    return drawn + [v for s in series for v in (*s.low, *s.high)]


def _parts(points: Points, along: Along) -> list[Points]:
    """A line over layers or octaves as its unbroken pieces: no line is drawn through what was not observed."""
    if along == "dose":
        return [points]
    starts = [i for i, (px, _) in enumerate(points) if i == 0 or px > points[i - 1][0] + 1]
    return [points[a:b] for a, b in zip(starts, [*starts[1:], len(points)], strict=True)]


def _columns(points: Points, floor: float | None) -> dict[str, list[float]]:
    lowest = float("-inf") if floor is None else floor
    return {"x": [short(px) for px, _ in points], "y": [short(max(py, lowest)) for _, py in points]}


def points_of(values: Mapping[int, float]) -> list[tuple[float, float]]:
    """{x: y} as a line's points."""
    return sorted(values.items())


def ends(series: Sequence[Series]) -> str:
    """Where lines over the layers begin and end, for those who cannot see them."""
    said = [
        f"{s.label}: {number(s.points[0][1])} in layer {s.points[0][0]}, {number(s.points[-1][1])} in layer {s.points[-1][0]}"
        for s in series
        if s.points
    ]
    return "; ".join(said)


def key(series: Sequence[Series]) -> Html:
    """The lines of charts, each a piece of it beside its words."""
    return tag("ul", [tag("li", swatch(s.colour, s.dash), s.label) for s in series], class_="legend")
