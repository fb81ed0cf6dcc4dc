"""The charts of interventions: a forest plot and dose–response curves, controls in grey."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..charts import Figure, short
from ..style import BASELINE
from .altair_charts import fitted, table
from .figures import HEIGHT, WIDTH, Series, band, drawn


@dataclass(frozen=True)
class Estimate:
    """One row of a forest plot; bounds are None where none were given. A control is drawn in grey."""

    label: str
    value: float
    low: float | None
    high: float | None
    is_control: bool


def forest(estimates: Sequence[Estimate], alt_text: str, *, x_title: str, colour: str) -> Figure:
    """One estimate a row, its words above its interval, so that a narrow page keeps room for both."""
    import altair as alt

    values = [0.0, *(v for e in estimates for v in (e.value, e.low, e.high) if v is not None)]
    margin = 0.06 * (max(values) - min(values)) or 1.0
    left = short(min(values) - margin)
    x_scale = alt.Scale(domain=[left, short(max(values) + margin)], nice=False, zero=False)
    records = [
        {"i": i, "label": e.label, "v": short(e.value), "c": BASELINE if e.is_control else colour,
         **({"a": short(e.low), "b": short(e.high)} if e.low is not None and e.high is not None else {})}
        for i, e in enumerate(estimates)
    ]  # fmt: skip
    x = alt.X("v:Q", title=x_title, scale=x_scale, axis=alt.Axis(tickCount=4, labelOverlap=True))
    y = alt.Y("i:O", axis=None)
    tips = [alt.Tooltip("label:N", title="intervention"), alt.Tooltip("v:Q", title="change"),
            alt.Tooltip("a:Q", title="low"), alt.Tooltip("b:Q", title="high")]  # fmt: skip
    base = table(records).encode(y=y, color=alt.Color("c:N", scale=None))
    bounded = base.transform_filter("isValid(datum.a)")
    layers = [
        table([{"x": 0}]).mark_rule(opacity=0.5).encode(x=alt.X("x:Q", scale=x_scale)),
        bounded.mark_rule(strokeWidth=3, opacity=0.55, yOffset=6).encode(x=alt.X("a:Q", scale=x_scale), x2="b:Q", tooltip=tips),
        base.mark_point(filled=True, size=70, opacity=1, yOffset=6).encode(x=x, tooltip=tips),
        table([{**r, "x": left} for r in records])
        .mark_text(align="left", dy=-8, limit=330)
        .encode(x=alt.X("x:Q", scale=x_scale), y=y, text="label:N"),
    ]  # fmt: skip
    return fitted(alt.layer(*layers), alt_text, WIDTH, 36 * len(estimates))


def dose_response(series: Sequence[Series], alt_text: str, *, x_title: str, y_title: str) -> Figure:
    """Lines with their intervals over the dose; a rule at no change."""
    import altair as alt

    doses = sorted({px for s in series for px, _ in s.points})
    # A dose that spans more than a factor of 50 cannot be read on an even axis.
    kind = "log" if doses[0] > 0 and doses[-1] / doses[0] > 50 else "linear"
    x = alt.X(
        "x:Q", title=x_title, scale=alt.Scale(type=kind, zero=False, nice=False), axis=alt.Axis(tickCount=5, grid=False)
    )
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))
    layers = [table([{"y": 0}]).mark_rule(opacity=0.5).encode(y="y:Q")]
    layers += [band(s, x, y, "dose", None) for s in series if s.low]
    layers += drawn(alt, series, x, y, "dose", y_title, None)
    return fitted(alt.layer(*layers).resolve_scale(color="independent"), alt_text, WIDTH, HEIGHT)
