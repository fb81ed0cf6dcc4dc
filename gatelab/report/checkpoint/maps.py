"""Maps with the layers running down: heads across with the layers' means as bars beside them, or octaves across.

Notable: cells lie on number axes, so that a layer without rows stays a gap, bars share the map's axis, and the whole
narrows to a phone's width. Values stand in columns, a layer a record, which is a third of the size of a record a cell.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from ..charts import Figure, short
from ..style import BASELINE
from .altair_charts import fitted, table
from .sheet import Scale

_CELLS, _BARS, _AXIS = 384, 62, 46  # pixels across: all cells, the bars, what stands left of them


def head_map(
    values: Mapping[tuple[int, int], float],
    means: Mapping[int, float],
    scale: Scale,
    alt_text: str,
    *,
    n_layers: int,
    word: str,
    across: str = "head",
) -> Figure:
    """{(layer, head): value} as a map, {layer: mean} as bars, both on one scale; `word` names the value in a tooltip."""
    import altair as alt

    n = 1 + max(head for _, head in values)
    cell = cell_of(n)
    gap, bars = 14 / cell, _BARS / cell
    start = n - 0.5 + gap
    zero = start + bars / 2 if scale.is_diverging else start
    rows = [
        {"l": layer, "a": short(min(zero, end)), "b": short(max(zero, end)), "v": short(mean)}
        for layer, mean in sorted(means.items())
        for end in [start + bars * scale.share(mean)]
    ]
    x, y = over_heads(n, across, end=start + bars), down(n_layers)
    tips = [alt.Tooltip("l:Q", title="layer"), alt.Tooltip("v:Q", title=f"mean {word}")]
    edges = table([{"x": short(at)} for at in (start, zero, start + bars)])
    layers = [
        _cells(alt, values, scale, x, y, [across, word]),
        edges.mark_rule(opacity=0.22).encode(x="x:Q"),
        table(rows)
        .transform_calculate(y="datum.l - 0.38", y2="datum.l + 0.38")
        .mark_rect(color=BASELINE)
        .encode(x="a:Q", x2="b:Q", y=y, y2="y2:Q", tooltip=tips),
        *(
            table([{"x": short(at), "t": words}])
            .mark_text(align=align, baseline=baseline, dy=dy)
            .encode(x="x:Q", y=alt.value(edge), text="t:N")
            for at, words, align, baseline, dy, edge in (
                (start + bars / 2, "layer mean", "center", "bottom", -4, 0),
                (start, scale.ends[0], "left", "top", 5, height_of(n_layers)),
                (start + bars, scale.ends[1], "right", "top", 5, height_of(n_layers)),
            )
        ),
    ]
    width = round(n * cell + 14 + _BARS + _AXIS)
    return fitted(alt.layer(*layers), alt_text, width, height_of(n_layers))


def octave_map(
    bins: Mapping[int, Mapping[int, float]], scale: Scale, alt_text: str, *, n_layers: int, word: str
) -> Figure:
    """{layer: {octave: value}}: octave n holds positions from 2ⁿ − 1; an octave is labelled by its first position."""
    import altair as alt

    n = 1 + max(b for of_layer in bins.values() for b in of_layer)
    values = {(layer, b): v for layer, of_layer in bins.items() for b, v in of_layer.items()}
    axis = alt.Axis(
        values=list(range(n)), labelExpr=OCTAVE_LABEL, grid=False, domain=False, ticks=False, labelOverlap=True
    )
    x_scale = alt.Scale(domain=[-0.5, n - 0.5], nice=False, zero=False)
    x = alt.X("x:Q", title="position, octaves from", axis=axis, scale=x_scale)
    cells = _cells(alt, values, scale, x, down(n_layers), ["octave", word])
    return fitted(cells, alt_text, min(480, 44 * n) + _AXIS, height_of(n_layers))


# The first position of octave n, in thousands of 1024 where it is large.
OCTAVE_LABEL = "datum.value < 9.5 ? format(pow(2, datum.value) - 1, 'd') : format(pow(2, datum.value - 10), 'd') + 'k'"


def _cells(alt: Any, values: Mapping[tuple[int, int], float], scale: Scale, x: Any, y: Any, words: list[str]) -> Any:
    """One coloured cell a value; the value's share of the scale goes with it where it is another number."""
    records = []
    for layer in sorted({at for at, _ in values}):
        across = sorted(i for at, i in values if at == layer)
        record = {"l": layer, "i": across, "v": [short(values[layer, i]) for i in across]}
        if not scale.is_plain:
            record["c"] = [round(scale.share(values[layer, i]), 3) for i in across]
        records.append(record)
    shade = "v" if scale.is_plain else "c"
    colours = alt.Scale(domain=[0, 1], range=list(scale.ramp), clamp=True)
    tips = [alt.Tooltip("l:Q", title="layer"), alt.Tooltip("i:Q", title=words[0]), alt.Tooltip("v:Q", title=words[1])]
    return (
        table(records)
        .transform_flatten(["i", "v"] if scale.is_plain else ["i", "v", "c"])
        .transform_calculate(x="datum.i - 0.5", x2="datum.i + 0.5", y="datum.l - 0.5", y2="datum.l + 0.5")
        .mark_rect()
        .encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=alt.Color(f"{shade}:Q", scale=colours, legend=None), tooltip=tips)
    )


def cell_of(n: int) -> float:
    """Pixels across of one of `n` heads."""
    return min(22.0, max(5.0, _CELLS / n))


def over_heads(n: int, title: str, *, end: float) -> Any:
    """The axis of `n` heads across a map that goes on to `end`."""
    import altair as alt

    axis = alt.Axis(values=list(range(0, n, ceil(22 / cell_of(n)))), format="d", grid=False, domain=False, ticks=False,
                    titleAnchor="start", labelOverlap="greedy")  # fmt: skip
    return alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(domain=[-0.5, end], nice=False, zero=False))


def down(n_layers: int) -> Any:
    """The axis of layers that run down a map, 0 above."""
    import altair as alt

    axis = alt.Axis(values=labelled(n_layers), format="d", grid=False, domain=False, ticks=False)
    scale = alt.Scale(domain=[n_layers - 0.5, -0.5], nice=False, zero=False)
    return alt.Y("y:Q", title="layer", axis=axis, scale=scale)


def labelled(n_layers: int) -> list[int]:
    """The layers whose numbers have room beside a map."""
    return list(range(0, n_layers, ceil(n_layers * 13 / height_of(n_layers))))


def height_of(n_layers: int) -> int:
    """Pixels down of a map."""
    return round(n_layers * min(22.0, max(7.0, 420 / n_layers)))
