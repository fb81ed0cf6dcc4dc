"""The section of the gates: their scores by layer, what explains them, and which of them never move."""

from ..markup import Html, join, number, tag
from ..parts import section
from ..style import BLUE, DASHED, DOTTED, GREEN, ORANGE, SOLID
from ..tables import table
from .figures import Series, ends, key, line_chart, points_of, ridges
from .sheet import Sheet, percent

_N_BINS = 50
_SHUT, _OPEN = 0.1, 0.9


def gates(sheet: Sheet) -> Html | None:
    """Ridges, means, explained variance and still gates of every gate that was read; one line where there was none."""
    stacks = sheet.table.stacks("gate_mean", "gate_histogram", "gate_variance_explained", "gate_dead", "gate_below")
    out = []
    for stack in stacks:
        found = sheet.table.sites("gate_mean", stack) or sheet.table.sites("gate_histogram", stack)
        for site in found or sheet.table.sites("gate_variance_explained", stack):
            figures = [f(sheet, stack, site) for f in (_ridges, _openness, _explained, _still)]
            shares = _variance_table(sheet, stack, site)
            heading = tag("h3", f"Gate at the site {site}", tag("span", f" {stack or ''}", class_="aside"))
            out += [heading, tag("div", [f for f in figures if f], class_="grid"), shares]
    if not out:
        text = "No gate on attention was read in this model." if sheet.seen.rows else "Nothing was measured."
        return section("gates", "Gates", tag("p", text))
    lead = "Scores after the activation, over tokens, heads and sequences: 0 is shut, 1 is open."
    return section("gates", "Gates", tag("p", lead), out)


def _ridges(sheet: Sheet, stack: str | None, site: str) -> Html | None:
    bins = sheet.table.bins("gate_histogram", stack, site=site)
    shares = {layer: b for layer, b in bins.items() if layer is not None}
    if not shares:
        return None
    means = sheet.table.layers("gate_mean", stack, site=site)
    said = ", ".join(f"layer {layer} {number(mean)}" for layer, mean in sorted(means.items()))
    chart = ridges(shares, means, f"Gate scores by layer. Means: {said}.", n_bins=_N_BINS)
    caption = (
        "Share of a layer's scores in each of 50 bins over 0 to 1; each layer is drawn to its own largest bin, whose share a"
        " pointer reads. Dot: the layer's mean."
    )
    return sheet.charts.place(chart, "Scores by layer", caption)


def _openness(sheet: Sheet, stack: str | None, site: str) -> Html | None:
    kinds = (
        ("gate_mean", None, "mean score", BLUE, SOLID),
        ("gate_below", _SHUT, "share shut, below 0.1", ORANGE, DASHED),
        ("gate_above", _OPEN, "share open, above 0.9", GREEN, DOTTED),
    )
    return _by_layer(sheet, stack, site, kinds, "Mean, shut and open", "score, or share of scores",
                     "Over tokens, channels, heads and sequences.")  # fmt: skip


def _explained(sheet: Sheet, stack: str | None, site: str) -> Html | None:
    series = [
        Series(words, colour, points_of(sheet.table.layers("gate_variance_explained", stack, site=site, domain=domain)), dash)
        for domain, words, colour, dash in (
            ("token", "the token's id", BLUE, SOLID),
            ("position", "the octave of its position", ORANGE, DASHED),
        )
    ]  # fmt: skip
    caption = "Share of a head's variance over tokens that a grouping explains (ε²), mean over heads."
    return _drawn(sheet, series, "Variance explained, by layer", "share of variance", caption)


def _still(sheet: Sheet, stack: str | None, site: str) -> Html | None:
    kinds = (
        ("gate_dead", _SHUT, "dead: shut, and stays so", ORANGE, SOLID),
        ("gate_stuck_open", _OPEN, "stuck open", GREEN, DASHED),
    )
    dead, stuck = (sheet.table.model(m, stack, site=site, threshold=at) for m, at, *_ in kinds)
    return _by_layer(sheet, stack, site, kinds, "Gates that do not move", "share of heads",
                     f"Share of (sequence, head) pairs whose score has a deviation below 0.05. Of the model: dead"
                     f" {percent(dead)}, stuck open {percent(stuck)}.")  # fmt: skip


def _by_layer(
    sheet: Sheet, stack: str | None, site: str, kinds: tuple[tuple, ...], title: str, y_title: str, caption: str
) -> Html | None:
    series = [
        Series(words, colour, points_of(sheet.table.layers(metric, stack, site=site, threshold=at)), dash)
        for metric, at, words, colour, dash in kinds
    ]
    return _drawn(sheet, series, title, y_title, caption)


def _drawn(sheet: Sheet, series: list[Series], title: str, y_title: str, caption: str) -> Html | None:
    series = [s for s in series if s.points]
    if not series:
        return None
    chart = line_chart(series, f"{title}. {ends(series)}", along="layer", x_title="layer", y_title=y_title,
                       end=sheet.table.n_layers - 1)  # fmt: skip
    return sheet.charts.place(chart, title, join([caption, key(series)]))


def _variance_table(sheet: Sheet, stack: str | None, site: str) -> Html | None:
    """The model's shares: within heads by token and position, and between layers and heads."""
    rows = [
        [words, of, percent(value)]
        for domain, words, of in (
            ("token", "the token's id", "a head's variance over tokens"),
            ("position", "the octave of its position", "a head's variance over tokens"),
            ("layer", "the layer", "the variance of all scores"),
            ("head", "the head within its layer", "the variance of all scores"),
        )
        if (value := sheet.table.model("gate_variance_explained", stack, site=site, domain=domain)) is not None
    ]
    if not rows:
        return None
    columns = ["explained by", "share of", "value"]
    return tag("div", tag("h4", "What the scores depend on"),
               table(columns, rows, numeric={2}, name="variance explained"))  # fmt: skip
