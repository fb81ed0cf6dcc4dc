"""The section of sinks at any position: what the strongest keys are, where, and how concentrated attention is."""

from collections import Counter

from ..markup import NONE, Html, join, tag
from ..parts import section
from ..style import BLUE, DASHED, ORANGE, SOLID
from ..tables import table
from .figures import Series, ends, key, line_chart, points_of
from .seen import Table
from .sheet import Sheet, percent

_LISTED = 8
_SINK = 0.3  # the middle one of the thresholds that rows have by default


def anywhere(sheet: Sheet) -> Html | None:
    """What the strongest keys are and where, and how concentrated attention is, layer by layer."""
    out = []
    for stack, heading in sheet.stacks("sink_importance", "sink_position", "attention_entropy"):
        tables = [t for t in (_thresholds(sheet, stack), _tokens(sheet, stack), _positions(sheet.table, stack)) if t]
        figures = [f for f in (_elsewhere(sheet, stack), *_shapes(sheet, stack)) if f]
        numbers, drawn = tag("div", tables, class_="grid"), tag("div", figures, class_="grid")
        out += [heading, numbers, drawn]
    if not out:
        return None
    lead = (
        "Of every head and sequence, the strongest key: the one with the largest mean share of the queries that see it, among"
        " the keys that enough queries see. A sink may stand on a delimiter or a frequent token as well as at the start. A"
        " head without a sink has a strongest key too: read where it is beside how much it gets."
    )
    return section("anywhere", "Sinks at any position", tag("p", lead), out)


def _thresholds(sheet: Sheet, stack: str | None) -> Html | None:
    found = sheet.table
    rows = [
        [f"above {at:g}", *(percent(found.model(m, stack, threshold=at))
                            for m in ("sink_rate", "sink_rate_any", "sink_elsewhere"))]
        for at in found.thresholds("sink_rate_any", stack)
    ]  # fmt: skip
    columns = ["importance", "first key", "any key", "any but the first"]
    if not rows:
        return None
    text = "How often a key gets more than a threshold, of all pairs of a sequence and a head."
    return tag("div", tag("h3", "Sink rates"), tag("p", text, class_="about"),
               table(columns, rows, numeric={1, 2, 3}, name="sink rates"))  # fmt: skip


def _tokens(sheet: Sheet, stack: str | None) -> Html | None:
    rows = [
        [tag("code", repr(sheet.seen.tokens[r.key])) if r.key in sheet.seen.tokens else f"id {r.key}", r.key,
         percent(r.value)]
        for r in sorted(sheet.table.rows("sink_token", stack), key=lambda r: -r.value)
        if r.layer is None and r.key is not None
    ]  # fmt: skip
    if not rows:
        return None
    text = (
        "Tokens that most often are the strongest key, where it gets at least twice what uniform attention would give it;"
        " share of all (sequence, layer, head)."
    )
    columns = ["token", "id", "share"]
    return tag("div", tag("h3", "Sink tokens"), tag("p", text, class_="about"),
               table(columns, rows, numeric={1, 2}, name="sink tokens"))  # fmt: skip


def _positions(found: Table, stack: str | None) -> Html | None:
    """Where heads' strongest keys most often are."""
    places = [r for r in found.rows("sink_position", stack) if r.head is not None and r.key is not None]
    if not places:
        return None
    importance = found.heads("sink_importance", stack)
    counts = Counter(r.key for r in places)
    sinks = Counter(r.key for r in places if importance.get((r.layer, r.head), 0.0) > _SINK)
    away = len(places) - counts[0]
    rows = [
        [at, n, percent(n / len(places)), sinks[at] if importance else NONE] for at, n in counts.most_common(_LISTED)
    ]
    rest = len(counts) - len(rows)
    if rest > 0:
        n = len(places) - sum(row[1] for row in rows)
        more = sum(sinks.values()) - sum(sinks[row[0]] for row in rows) if importance else NONE
        rows.append([f"{rest} more", n, percent(n / len(places)), more])
    text = f"In {away} of {len(places)} heads ({percent(away / len(places))}) the strongest key most often is not at position 0."
    columns = ["position", "heads", "share", "of them above 0.3"]
    return tag("div", tag("h3", "Positions"), tag("p", text, class_="about"),
               table(columns, rows, numeric={1, 2, 3}, name="positions of the strongest keys"))  # fmt: skip


def _elsewhere(sheet: Sheet, stack: str | None) -> Html | None:
    found, at = sheet.table, _SINK
    series = [
        Series(words, colour, points_of(found.layers(metric, stack, threshold=at)), dash)
        for metric, words, colour, dash in (
            ("sink_rate_any", "any key", ORANGE, SOLID),
            ("sink_elsewhere", "any but the first", BLUE, DASHED),
        )
    ]
    series = [s for s in series if s.points]
    if not series:
        return None
    chart = line_chart(series, f"Share of heads with a sink above 0.3 by layer. {ends(series)}", along="layer",
                       x_title="layer", y_title="share of heads", end=found.n_layers - 1)  # fmt: skip
    caption = join(["Share of (sequence, head) pairs whose strongest key gets more than 0.3.", key(series)])
    return sheet.charts.place(chart, "Heads with a sink", caption)


def _shapes(sheet: Sheet, stack: str | None) -> list[Html | None]:
    """Concentration by layer: a line through the means, a band from the lowest head to the highest."""
    return [
        _banded(sheet, metric, stack, title, unit, caption, floor=floor)
        for metric, title, unit, caption, floor in (
            ("attention_entropy", "Entropy", "nats", "Of a query's attention.", None),
            (
                "attention_focus",
                "Focus",
                "keys",
                "1/Σp²: as many keys as would, sharing evenly, be as concentrated.",
                1.0,
            ),
            (
                "effective_rank",
                "Effective rank",
                "1",
                "Of a matrix of at most 64 sampled rows, so not the whole's.",
                None,
            ),
            ("max_logit", "Largest logit", "1", "q·k/√K, largest of a sequence.", None),
            (
                "attention_distance",
                "Attention distance",
                "tokens",
                "Mean distance between a query and what it reads.",
                0.1,
            ),
            (
                "sink_write",
                "Write of the first key",
                "ratio",
                "‖its part of the output‖ / ‖output‖, before the gate.",
                None,
            ),
        )
    ]


def _banded(
    sheet: Sheet, metric: str, stack: str | None, title: str, unit: str, caption: str, *, floor: float | None
) -> Html | None:
    """A metric by layer, its mean over heads as a line and all of its heads as a band."""
    stage = "before" if metric == "sink_write" else None
    means, heads = sheet.table.layers(metric, stack, stage=stage), sheet.table.heads(metric, stack, stage=stage)
    if not means:
        return None
    of = {layer: [v for (at, _), v in heads.items() if at == layer] or [mean] for layer, mean in means.items()}
    points = points_of(means)
    low, high = ([edge(of[layer]) for layer, _ in points] for edge in (min, max))
    line = Series(title, BLUE, points, low=low, high=high)
    how = "largest" if metric == "max_logit" else "mean"
    chart = line_chart([line], f"{title} by layer. {ends([line])}", along="layer", x_title="layer",
                       y_title=f"{title.lower()} [{unit}]" if unit != "1" else title.lower(), end=sheet.table.n_layers - 1,
                       floor=floor)  # fmt: skip
    said = f"{caption} Mean over queries and sequences. Line: {how} over heads; band: lowest to highest head."
    return sheet.charts.place(
        chart, title, said if metric != "max_logit" else f"{caption} Line: {how} over heads; band: all heads."
    )
