"""The section of what changes along the sequence: mass by octaves, each beside uniform attention."""

from collections.abc import Sequence

from ..markup import Html, number, tag
from ..parts import section
from ..style import BASELINE, DOTTED, ORANGE
from .figures import Points, Series, line_chart, points_of
from .seen import Layers
from .sheet import Sheet


def positions(sheet: Sheet) -> Html | None:
    """Mass by octaves of the query's position, of the distance and of the key's position, each beside uniform attention."""
    out = []
    for stack, heading in sheet.stacks("first_mass_by_query", "distance_mass", "position_mass"):
        figures = [_first_by_query(sheet, stack)]
        for metric, title, x_title, caption in (
            ("distance_mass", "Mass by distance", "distance, octaves from", "Mass of a query on the keys at distances in the"
             " octave; at most 64 queries, evenly from the last one down."),
            ("position_mass", "Mass by position of the key", "position of the key, octaves from", "Mass of a query on the"
             " keys at positions in the octave; the same queries."),
        ):  # fmt: skip
            reference = sheet.table.bins(f"{metric}_uniform", stack).get(None, {})
            figures.append(_octaves(sheet, metric, stack, title, x_title, caption, points_of(reference)))
        out += [heading, tag("div", [f for f in figures if f], class_="grid")]
    if not out:
        return None
    lead = (
        "Octave n holds positions, or distances, from 2ⁿ − 1 to 2ⁿ⁺¹ − 2; its first one is the label. Thick: mean over layers."
        " Thin: layers, dark ones first. Dotted: attention that is uniform over the visible keys. Means over queries,"
        " sequences, and heads; both axes are logarithmic, what is below 0.0001 lies on the floor."
    )
    return section("positions", "Along the sequence", tag("p", lead), out)


def _first_by_query(sheet: Sheet, stack: str | None) -> Html | None:
    bins = sheet.table.bins("first_mass_by_query", stack).get(None, {})
    length = sheet.table.length(stack)
    reference = uniform_first(sorted(bins), length, is_causal=stack is None)
    caption = "Share of attention on the first token, of the queries at positions in the octave."
    caption += " Dotted: 1/(i + 1)." if stack is None else " Dotted: 1 / length."
    return _octaves(sheet, "first_mass_by_query", stack, "First-token mass by position of the query",
                    "position of the query, octaves from", caption, reference)  # fmt: skip


def uniform_first(bins: Sequence[int], length: int | None, *, is_causal: bool) -> Points:
    """[(octave, what uniform attention gives the first key there)]: the mean of 1/(i + 1) over the positions i of the octave
    that a sequence has, or 1/length where every query sees all."""
    out = []
    for n in bins:
        last = 2 ** (n + 1) - 1 if length is None else min(2 ** (n + 1) - 1, length)
        seen = range(2**n, last + 1)
        if not is_causal and length is not None:
            out.append((n, 1 / length))
        elif is_causal and len(seen):
            out.append((n, sum(1 / k for k in seen) / len(seen)))
    return out


def _octaves(
    sheet: Sheet, metric: str, stack: str | None, title: str, x_title: str, caption: str, reference: Points
) -> Html | None:
    bins, left = _kept(sheet.table.bins(metric, stack), sheet.table.length(stack))
    mean = points_of(bins.get(None, {}))
    layers = {layer: points_of(of_layer) for layer, of_layer in bins.items() if layer is not None}
    if not mean and not layers:
        return None
    reference = [(n, v) for n, v in reference if n != left]
    series = [Series("uniform", BASELINE, reference, DOTTED)] if reference else []
    caption += "" if left is None else f" The last octave, from {2**left - 1}, is left out: the length cuts it short."
    series += [Series("mean over layers", ORANGE, mean)] if mean else []
    end = max(int(x) for points in (mean, *layers.values()) for x, _ in points)
    said = ", ".join(f"from {2 ** int(n) - 1}: {number(v)}" for n, v in mean)
    chart = line_chart(series, f"{title}, by octave: {said}.", along="octave", x_title=x_title, y_title="share of mass",
                       end=max(end, 1), floor=1e-4, thin=layers)  # fmt: skip
    return sheet.charts.place(chart, title, caption)


def _kept(bins: dict[int | None, Layers], length: int | None) -> tuple[dict[int | None, Layers], int | None]:
    """Without a last octave of which a sequence has less than half, and that octave: its mass would look like a fall."""
    last = max((n for of_layer in bins.values() for n in of_layer), default=0)
    if length is None or length - (2**last - 1) >= 2 ** (last - 1) or last == 0:
        return bins, None
    return {layer: {n: v for n, v in of_layer.items() if n != last} for layer, of_layer in bins.items()}, last
