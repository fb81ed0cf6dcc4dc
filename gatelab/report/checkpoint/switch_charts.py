"""The charts of the off-switches, whose data a script fills in and replaces: a map by layer and head, bars by layer."""

from typing import Any

from ..charts import Figure
from ..style import BASELINE, BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW
from .altair_charts import fitted
from .maps import cell_of, down, height_of, labelled, over_heads
from .off_switch import SWITCHES, HeadValues

# switch -> (colour, letter, the letter's colour)
LOOKS = {
    "gate": (GREEN, "G", "#000"),
    "slot": (SKY, "S", "#000"),
    "drained": (BLUE, "D", "#fff"),
    "writes": (ORANGE, "W", "#000"),
    "unknown": (PURPLE, "U", "#000"),
    "diffuse": (YELLOW, "F", "#000"),
    "other": (f"{BASELINE}66", "", "#000"),
}
# What a script needs to show a switch: its words, letter and place in the order.
SHOWN = {name: {"k": words, "g": LOOKS[name][1], "o": i} for i, (name, words) in enumerate(SWITCHES.items())}
_NAMED = "heads"


def class_map(heads: list[HeadValues], n_layers: int, alt_text: str) -> Figure:
    """A cell a head in its switch's colour, with its letter where there is room."""
    import altair as alt

    n = 1 + max(head.head for head in heads)
    cell, x = cell_of(n), over_heads(n, "head", end=n - 0.5)
    base = alt.Chart(alt.NamedData(name=_NAMED)).transform_calculate(
        x="datum.h - 0.5", x2="datum.h + 0.5", y="datum.l - 0.5", y2="datum.l + 0.5"
    )
    y = down(n_layers)
    layers = [base.mark_rect().encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=_by_switch(0), tooltip=_tips())]
    if cell >= 16 and height_of(n_layers) / n_layers >= 12:
        layers.append(base.mark_text(fontSize=9).encode(x="h:Q", y="l:Q", text="g:N", color=_by_switch(2)))
    chart = alt.layer(*layers).resolve_scale(color="independent")
    return fitted(chart, alt_text, round(n * cell + 46), height_of(n_layers))


def stacked_bars(n_layers: int, alt_text: str) -> Figure:
    """The share of a layer's heads that use each switch, layers running down as in the map."""
    import altair as alt

    axis = alt.Axis(values=labelled(n_layers), grid=False, domain=False, ticks=False)
    scale = alt.Scale(domain=list(range(n_layers)), paddingInner=0.15, paddingOuter=0)
    y = alt.Y("l:O", title="layer", axis=axis, scale=scale)
    x = alt.X("n:Q", stack="normalize", title="share of heads", axis=alt.Axis(format="%", tickCount=4, grid=False))
    tips = [alt.Tooltip("l:O", title="layer"), alt.Tooltip("k:N", title="switch"), alt.Tooltip("n:Q", title="heads")]
    chart = (
        alt.Chart(alt.NamedData(name=_NAMED))
        .transform_aggregate(n="count()", groupby=["l", "s", "k", "o"])
        .mark_bar()
        .encode(x=x, y=y, color=_by_switch(0), order="o:Q", tooltip=tips)
    )
    return fitted(chart, alt_text, 400, height_of(n_layers))


def _by_switch(index: int) -> Any:
    import altair as alt

    return alt.Color(
        "s:N", scale=alt.Scale(domain=list(LOOKS), range=[look[index] for look in LOOKS.values()]), legend=None
    )


def _tips() -> list:
    import altair as alt

    names = {"l": "layer", "h": "head", "k": "switch", "m": "mass of its key", "d": "value ratio of it", "e": "entropy",
             "q": "openness"}  # fmt: skip
    return [alt.Tooltip(f"{field}:{'N' if field == 'k' else 'Q'}", title=words) for field, words in names.items()]
