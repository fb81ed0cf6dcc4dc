"""The charts of the off-switches, whose data a script fills in and replaces: a map by layer and head, bars by layer."""

from math import ceil

from ..charts import Figure, fitted
from ..style import BASELINE
from .off_switch import SWITCHES, HeadValues
from .sheet import down, height_of

# switch -> (colour, letter, the letter's colour)
LOOKS = {
    "gate": ("#009e73", "G", "#000"),
    "slot": ("#56b4e9", "S", "#000"),
    "drained": ("#0072b2", "D", "#fff"),
    "writes": ("#d55e00", "W", "#000"),
    "unknown": ("#cc79a7", "U", "#000"),
    "diffuse": ("#f0e442", "F", "#000"),
    "other": (f"{BASELINE}66", "", "#000"),
}
_NAMED = "heads"
_CELLS = 384


def class_map(heads: list[HeadValues], n_layers: int, alt_text: str) -> Figure:
    """A cell a head in its switch's colour, with its letter where there is room."""
    import altair as alt

    n = 1 + max(head.head for head in heads)
    cell = min(22.0, max(5.0, _CELLS / n))
    axis = alt.Axis(values=list(range(0, n, ceil(22 / cell))), format="d", grid=False, domain=False, ticks=False)
    x = alt.X("x:Q", title="head", axis=axis, scale=alt.Scale(domain=[-0.5, n - 0.5], nice=False, zero=False))
    base = alt.Chart(alt.NamedData(name=_NAMED)).transform_calculate(
        x="datum.h - 0.5", x2="datum.h + 0.5", y="datum.l - 0.5", y2="datum.l + 0.5"
    )
    y = down(n_layers)
    layers = [base.mark_rect().encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=_colour(), tooltip=_tips())]
    if cell >= 16 and height_of(n_layers) / n_layers >= 12:
        ink = alt.Color(
            "s:N", scale=alt.Scale(domain=list(LOOKS), range=[k for _, _, k in LOOKS.values()]), legend=None
        )
        letters = base.mark_text(fontSize=9).encode(x="h:Q", y="l:Q", text="g:N", color=ink)
        layers.append(letters)
    chart = alt.layer(*layers).resolve_scale(color="independent")
    return fitted(chart, alt_text, round(n * cell + 46), height_of(n_layers))


def stacked_bars(n_layers: int, alt_text: str) -> Figure:
    """The share of a layer's heads that use each switch, layers running down as in the map."""
    import altair as alt

    axis = alt.Axis(values=list(range(0, n_layers, ceil(n_layers * 13 / height_of(n_layers)))), grid=False, domain=False,
                    ticks=False)  # fmt: skip
    scale = alt.Scale(domain=list(range(n_layers)), paddingInner=0.15, paddingOuter=0)
    y = alt.Y("l:O", title="layer", axis=axis, scale=scale)
    x = alt.X("n:Q", stack="normalize", title="share of heads", axis=alt.Axis(format="%", tickCount=4, grid=False))
    tips = [alt.Tooltip("l:O", title="layer"), alt.Tooltip("k:N", title="switch"), alt.Tooltip("n:Q", title="heads")]
    chart = (
        alt.Chart(alt.NamedData(name=_NAMED))
        .transform_aggregate(n="count()", groupby=["l", "s", "k", "o"])
        .mark_bar()
        .encode(x=x, y=y, color=_colour(), order="o:Q", tooltip=tips)
    )
    return fitted(chart, alt_text, 400, height_of(n_layers))


def _colour() -> object:
    import altair as alt

    return alt.Color("s:N", scale=alt.Scale(domain=list(LOOKS), range=[c for c, _, _ in LOOKS.values()]), legend=None)


def _tips() -> list:
    import altair as alt

    names = {"l": "layer", "h": "head", "k": "switch", "m": "mass of its key", "d": "value ratio of it", "e": "entropy",
             "q": "openness"}  # fmt: skip
    return [alt.Tooltip(f"{field}:{'N' if field == 'k' else 'Q'}", title=words) for field, words in names.items()]


def shown(names: list[str]) -> dict[str, dict[str, object]]:
    """What a script needs to show a switch: its words, letter and place in the order."""
    return {name: {"k": SWITCHES[name], "g": LOOKS[name][1], "o": i} for i, name in enumerate(names)}
