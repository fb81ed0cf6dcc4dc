"""The atlas' phase diagrams, tables whose fields have a share of seeds and a loss with their intervals, and its learning rates."""

from math import isfinite
from typing import TYPE_CHECKING

from .atlas_book import book_of, colours, linked, way
from .atlas_map import effect_field
from .best_rates import best_rates
from .document import Charts
from .markup import NONE, Html, tag
from .parts import section
from .phases import axis_words, place_words
from .tables import headings, scrolling

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas, Sheet
    from ..analysis.phases import Level, Phases, Point
    from .book import Book


def with_phases(atlas: "Atlas") -> "list[Sheet]":
    """The studies that have a phase diagram, that of the most seeds first."""
    found = [s for s in atlas.sheets if s.views is not None and s.views.phases is not None]
    return sorted(found, key=lambda s: -max(p.n for p in s.views.phases.points))


def phases_of(atlas: "Atlas", charts: Charts, cards: dict[tuple[str, str, str], str]) -> Html:
    """Where each arm has a sink, and what it costs; `cards` {(letter, cell, arm): anchor} of anomalies."""
    found = with_phases(atlas)
    lead = (
        "Studies whose settings are a grid with the learning rate as one axis: it runs across, the others down, a table an arm."
        " A run has a sink where its first-token mass is above its study's threshold."
    )
    if not found:
        return section(
            "phases", "Phase diagrams", tag("p", "No study here is a grid with the learning rate as an axis.")
        )
    key = tag(
        "p",
        tag("span", "k of n", style="--c:var(--equivalent)"),
        "runs with a sink, the fuller the more, and the exact 95% interval of the share; below it the",
        " ", tag("span", "▼ lower", style="--c:var(--lower)"), tag("span", "▲ higher", style="--c:var(--higher)"),
        "held-out loss against the baseline, nats a token, with its interval, in brackets where none was seen; blank: not run",
        class_="about key",
    )  # fmt: skip
    shown = [_study(s, book_of(s, charts), cards, is_open=s is found[0]) for s in found]
    more = [
        tag("span", [tag("a", f"{s.letter} {s.name}", href=s.pages["#phases"]), " "])
        for s in atlas.sheets
        if s not in found and "#phases" in s.pages
    ]
    others = tag("p", "Grids of other axes are on the pages of: ", more, class_="about") if more else None
    return section("phases", "Phase diagrams", tag("p", lead), key, shown, others)


def _study(s: "Sheet", book: "Book", cards: dict[tuple[str, str, str], str], *, is_open: bool) -> Html:
    found = s.views.phases
    down = ", ".join(axis_words(a) for a in found.down)
    words = (
        f"{s.letter} {s.name}: {axis_words(found.across)} across, {down} down, {max(p.n for p in found.points)} seeds"
    )
    tables = [_table(s, book, found, arm, cards) for arm in book.arms.labels if found.of(arm)]
    read = (
        "How to read it: along a row the learning rate rises, and each table is another arm; a field less green than the same one"
        f" of {book.arms.labels[book.arms.baseline]} has lost sinks; a blue loss is lower than its, an orange one higher."
    )
    more = tag("p", read, " ", way(s, "phases", "All numbers are on the study's page."), class_="about")
    shown = tag("div", tables, class_="maps")
    return tag("details", tag("summary", words), shown, more, class_="print", open=is_open)


def _table(s: "Sheet", book: "Book", found: "Phases", arm: str, cards: dict[tuple[str, str, str], str]) -> Html:
    at = {p.at: p for p in found.of(arm)}
    places = dict.fromkeys(p.at[1:] for p in found.points)
    ordered = sorted(places, key=lambda x: [a.levels.index(v) for a, v in zip(found.down, x, strict=True)])
    rows = [
        tag(
            "tr",
            tag("th", place_words(found.down, place), scope="row"),
            [_field(at.get((rate, *place)), cards.get((s.letter, _cell(at, rate, place), arm))) for rate in found.across.levels],
        )
        for place in ordered
    ]  # fmt: skip
    columns = [
        axis_words(found.across),
        *(f"{rate:g}" if isinstance(rate, float) else str(rate) for rate in found.across.levels),
    ]
    caption = tag("caption", tag("b", book.arms.labels[arm]))
    table = tag("table", caption, headings(columns, set()), tag("tbody", rows), class_="map phase")
    return scrolling(table, f"phases of {s.letter} {s.name}, {book.arms.labels[arm]}")


def _cell(at: "dict[tuple[Level, ...], Point]", rate: "Level", place: "tuple[Level, ...]") -> str:
    return p.cell if (p := at.get((rate, *place))) is not None else ""


def _field(p: "Point | None", card: str | None) -> Html:
    """Runs with a sink, the loss, and the way to what is odd here."""
    has_loss = p is not None and p.loss is not None and isfinite(p.loss.effect)
    if p is None or not (p.n or has_loss):
        return tag("td")
    lost = f"; {p.said}" if p.lost else ""
    share = (
        tag("div", tag("b", f"{p.k} of {p.n}"), tag("small", f"{p.low:.0%} to {p.high:.0%}"), class_="sink",
            title=f"{p.cell}: runs with a sink{lost}", style=f"--r:{p.k / p.n:.2f}")
        if p.n else NONE
    )  # fmt: skip
    cost = effect_field(p.loss, title=f"{p.cell}: held-out loss, {p.loss.n_pairs} pairs{lost}") if has_loss else None
    odd = tag("div", tag("a", "anomaly", href=f"#{card}")) if card else None
    return tag("td", share, cost, odd)


def rates_of(atlas: "Atlas", charts: Charts) -> Html:
    """Held-out loss by learning rate, each arm's lowest point marked, of the studies with three rates or more."""
    from ..analysis.atlas_views import LEAST_RATES

    out = []
    for s in (s for s in atlas.sheets if s.views is not None):
        book = book_of(s, charts)
        drawn = [part for found in s.views.ladders for part in best_rates(book, found, "learning rate")]
        if drawn:
            read = (
                "How to read it: the lower the better; compare the diamonds, not the arms at one rate, and how steeply a line rises"
                " to the right of its diamond says what a rate that is too large costs."
            )
            more = way(s, "phases", "The study's page has the intervals.")
            named = tag("p", tag("b", linked(s, section="phases")))
            out += [named, colours(book), drawn, tag("p", read, " ", more, class_="about")]
    few = [f"{s.letter} {s.name}" for s in atlas.sheets if s.views is None or not s.views.ladders]
    none = f"Fewer than {LEAST_RATES} learning rates, so no curve: {', '.join(few)}." if few else ""
    return section("rates", "Loss by learning rate", out, tag("p", none, class_="about") if none else None)
