"""A card for every cell and arm of which fresh seeds confirmed something: the numbers, and what the rows have to see it by.

Notable: medians and ranges are over all finished seeds, the screen's and the fresh ones; the numbers of the claims are of either
alone.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from .book import Book
from .card_sights import curves_of, gates_of, maps_of, own_sights, unit_of, word
from .claims import spans_of
from .figures import map_top
from .markup import NONE, Html, decimal, places, probability, tag
from .tables import csv_text
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.anomalies import Alarm
    from ..analysis.causes import Card
    from ..analysis.confirmed import Anomaly, Companion, Held, Level
    from ..analysis.sights import Sight

MOST_CARDS = 12
LEAST_LOOKS = 3  # that make a curve
FILE = "confirmed.csv"


def anomaly_cards(book: Book, found: "Sequence[Anomaly]") -> Html | None:
    """The surest as cards, the first of them open, the others as a table; None where nothing was confirmed."""
    if not found:
        return None
    cards, rest = found[:MOST_CARDS], found[MOST_CARDS:]
    # The scale of all maps of the page.
    top = map_top([v for table in book.measured.heads.values() for v in table.values()])
    lead = (
        f"A card a cell and gate, {len(found)} in all, by p on fresh seeds. Intervals are of 95%, those of shares exact. Curves,"
        " maps and gates are over all finished seeds, the screen's and the fresh ones."
    )
    return tag(
        "div", tag("h3", "Confirmed anomalies"), tag("p", lead, f" {len(rest)} more are in the table below." if rest else ""),
        [_card(book, a, top, is_open=a is cards[0]) for a in cards], _rest(book, rest) if rest else None,
    )  # fmt: skip


def _card(book: Book, a: "Anomaly", top: float, *, is_open: bool) -> Html:
    more = f" And {len(a.held) - 1} more claim{'s' * (len(a.held) > 2)}." if len(a.held) > 1 else ""
    words = [book.arm(a.arm), f" in {a.cell}: ", tag("b", a.held[0].claim.rule), f": {headline(a.held[0])}{more}"]
    sides = own_sights(book, a)
    return tag(
        "details", tag("summary", words), _claims(book, a), curves_for(book, a, sides), gates_of(book, a, sides[a.arm]),
        maps_of(book, a, sides, top),
        _neighbours(book, a), _causes(book, a), _again(a), class_="anomaly print", open=is_open,
    )  # fmt: skip


def curves_for(book: Book, a: "Anomaly", sides: "Mapping[str, Sight]") -> Html:
    """Of the study's own runs; where these have no curve, of the companion that was looked at most often."""
    own, most = curves_of(book, a, sides), max(a.elsewhere, key=lambda c: c.n_looks, default=None)
    if most is None or most.n_looks < LEAST_LOOKS or min(sight.n_looks for sight in sides.values()) >= LEAST_LOOKS:
        return own
    return tag(
        "div", own, tag("p", _whose(most), ".", class_="about"), curves_of(book, a, most.sides, with_table=False)
    )


def short_card(book: Book, a: "Anomaly", name: str, sights: Html | None, way: Html | None) -> Html:
    """The same folded, with what the caller has to see it by; `name` is its anchor, `way` leads to its study's page."""
    words = [book.arm(a.arm), f" in {a.cell}: ", tag("b", a.held[0].claim.rule), f": {headline(a.held[0])}"]
    lines = [tag("code", a.commands[0]), tag("button", "copy", type="button", data_copy=True)] if a.commands else []
    again = tag("div", tag("h4", "Again"), tag("div", lines, class_="command")) if lines else None
    return tag(
        "details", tag("summary", words), _claims(book, a), sights, _neighbours(book, a), _causes(book, a), again,
        tag("p", way, class_="about") if way else None, class_="anomaly print", id=name,
    )  # fmt: skip


def headline(h: "Held") -> str:
    """The number that was confirmed beside the screen's, as a sentence; without one the claim's p."""
    if h.fresh is None or not isfinite(h.fresh.estimate):
        return f"{h.claim.reading}, confirmed on {h.verdict.n_pairs} fresh seeds (p {probability(h.verdict.p)})."
    what = h.fresh.sentence.removeprefix(f"{h.claim.cell}: ")
    screen = "" if h.screen is None else f"; {_size(h.screen)} on the {h.screen.n_pairs} of the screen"
    return f"{what}: {_size(h.fresh)} on {h.fresh.n_pairs} fresh seeds{screen}."


def _size(a: "Alarm | None") -> str:
    """A number with its unit and interval."""
    if a is None or not isfinite(a.estimate):
        return NONE
    digits = places(max(abs(x) for x in (a.estimate, a.low, a.high) if isfinite(x)))
    interval = f" ({decimal(a.low, digits)} to {decimal(a.high, digits)})" if isfinite(a.high - a.low) else ""
    return f"{decimal(a.estimate, digits)}{unit_of(a.unit)}{interval}"


def _claims(book: Book, a: "Anomaly") -> Html:
    rows = []
    for h in a.held:
        left_out = tag("span", f" Left out: {', '.join(h.verdict.notes)}.", class_="quiet") if h.verdict.notes else None
        of_screen = "" if h.screen is None else f"; {h.screen.n_pairs} seeds"
        rows.append([
            h.claim.rule, tag("span", word(book, a, h.claim.reading)[0], left_out), _size(h.fresh), h.verdict.n_pairs,
            probability(h.verdict.p), probability(h.verdict.p_holm), f"{_size(h.screen)}{of_screen}",
        ])  # fmt: skip
    columns = ["claim", "of what", "on fresh seeds", "seeds", "p", "after Holm", "on the screen's"]
    return tabulated(columns, rows, numeric={3, 4, 5}, name=f"claims of {a.cell}, {a.arm}")


def _neighbours(book: Book, a: "Anomaly") -> Html:
    """The same test in the cells that differ in one key."""
    heading = tag("h4", "In neighbouring cells")
    if not a.neighbours:
        words = "No cell of this study differs from this one in one key alone."
        return tag("div", heading, tag("p", words, class_="about"))
    labels = [f"{h.claim.rule}: {word(book, a, h.claim.reading)[0]}" for h in a.held]
    own = [tag("b", f"{a.cell} (this one)"), NONE, *(_of_screen(h.screen) for h in a.held)]
    rows = [[n.cell, _differs(n.key, n.here, n.there), *map(_of_screen, n.found)] for n in a.neighbours]
    lead = "The screen's numbers of the same tests with this gate where one key is another. A dash: the rule tests nothing there."
    table = tabulated(
        ["cell", "differs in", *labels], [own, *rows], numeric=set(), name=f"neighbours of {a.cell}, {a.arm}"
    )
    return tag("div", heading, tag("p", lead, class_="about"), table)


def _of_screen(a: "Alarm | None") -> str:
    return NONE if a is None else f"{_size(a)}, {a.n_pairs} seeds{', an anomaly' if a.verdict == 'anomaly' else ''}"


def _differs(key: str, here: "Level", there: "Level") -> str:
    """The key's name, and its levels where they are numbers."""
    first, *others = key.split(" = ")
    levels = f": {there:g} for {here:g}" if all(isinstance(x, int | float) for x in (here, there)) else ""
    more = f" (and {len(others)} more that go{'es' if len(others) == 1 else ''} with it)" if others else ""
    return f"{first}{levels}{more}"


def _causes(book: Book, a: "Anomaly") -> Html:
    heading, ask = tag("h4", "Causes that were tested"), tag("code", a.commands[-1]) if a.commands else None
    others = _elsewhere(book, a)
    if not a.causes:
        words = [
            "No registered explanation has rows in this study."
            if a.elsewhere
            else "No registered explanation has rows yet.",
            [" This makes what edits of its runs can tell: ", ask, " --edit"],
        ]
        return tag("div", heading, tag("p", words[0], words[1] if ask else None, class_="about"), others)
    lead = (
        "Of what the claims are about, and of sinks themselves. Each test at its own 5%, on the screen's seeds; in brackets what it"
        " read (loss_change: the held-out loss under an edit of finished runs)."
    )
    more = tag("p", "What the rows that are missing need: ", ask, class_="about") if ask else None
    return tag("div", heading, tag("p", lead, class_="about"), _verdicts(book, a, a.causes), more, others)


def _whose(c: "Companion") -> list[Html | str]:
    n = f"{'seed' if len(c.seeds) == 1 else 'seeds'} {spans_of(c.seeds)}"
    return ["Of ", tag("b", c.study), f", {c.cell}: runs of the same configuration, {n}"]


def _verdicts(book: Book, a: "Anomaly", cards: "Sequence[Card]") -> Html:
    """A line a hypothesis, with what its tests found."""
    items = []
    for card in cards:
        tests = [d for d in card.decisions if d.verdict != "not run"]
        said = "; ".join(f"{d.test} [{d.reading}]: {d.verdict}{f' ({d.numbers})' if d.numbers else ''}" for d in tests)
        lacks = f"; {len(card.decisions) - len(tests)} not run" if len(tests) < len(card.decisions) else ""
        of = f" of {word(book, a, card.reading)[0]}" if card.reading else ""
        mark = tag("b", card.mark, aria_hidden="true")
        says = f": {card.says}" if card.says else ""
        items.append(tag("li", mark, f" {card.hypothesis}{of}: ", tag("b", card.verdict), f", {card.claim}{says}. ",
                         tag("span", f"{said}{lacks}.", class_="quiet")))  # fmt: skip
    return tag("ul", items, class_="plain")


def _elsewhere(book: Book, a: "Anomaly") -> list[Html]:
    """What the studies say that were made for these causes, and which of them wait for their runs."""
    out = []
    for c in a.elsewhere:
        out += [tag("p", _whose(c), ". Each test at its own 5%.", class_="about"), _verdicts(book, a, c.cards)]
    if a.waiting:
        commands = [[", " if i else "", tag("code", f"gatelab run {name}")] for i, name in enumerate(a.waiting)]
        out.append(tag("p", "Planned to test causes of this, and not run: ", commands, ".", class_="about"))
    return out


def _again(a: "Anomaly") -> Html | None:
    if not a.commands:
        return None
    lines = [
        tag("div", tag("code", c), tag("button", "copy", type="button", data_copy=True), class_="command")
        for c in a.commands
    ]
    return tag("div", tag("h4", "Again"), lines)


def _rest(book: Book, rest: "Sequence[Anomaly]") -> Html:
    link = tag("a", FILE, href=FILE)
    rows = [
        [a.cell, book.arm(a.arm), h.claim.rule, word(book, a, h.claim.reading)[0], _size(h.fresh), _size(h.screen),
         probability(h.verdict.p), probability(h.verdict.p_holm), link]
        for a in rest
        for h in a.held
    ]  # fmt: skip
    columns = [
        "cell",
        "gate",
        "claim",
        "of what",
        "on fresh seeds",
        "on the screen's",
        "p",
        "after Holm",
        "all numbers",
    ]
    return tabulated(columns, rows, numeric={6, 7}, name="more confirmed anomalies")


def confirmed_csv(found: "Sequence[Anomaly]") -> str:
    """Every confirmed claim in full."""
    rows = []
    for a in found:
        for h in a.held:
            row = {"rule": h.claim.rule, "cell": a.cell, "arm": a.arm, "reading": h.claim.reading}
            for side, alarm in (("fresh", h.fresh), ("screen", h.screen)):
                for name in ("estimate", "low", "high", "n_pairs"):
                    row[f"{side}_{name}"] = None if alarm is None else getattr(alarm, name)
                row[f"{side}_unit"] = None if alarm is None else alarm.unit
            row |= {"p": h.verdict.p, "p_holm": h.verdict.p_holm, "q_screen": h.claim.q, "sentence": headline(h),
                    "left_out": ";".join(h.verdict.notes)}  # fmt: skip
            rows.append(row)
    return csv_text(list(rows[0]), rows) if rows else ""
