"""The section of anomalies: an atlas of effects, the screen's tests, what was registered and confirmed, and causes.

Notable: an effect's colour is its size in half-widths of its own interval, so that cells of other scales and metrics can be
seen side by side; beyond one, the interval leaves out zero. Where nothing was run the atlas is blank.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from math import isfinite
from typing import TYPE_CHECKING, Any

from ..record import Finding
from .anomaly_cards import MOST_CARDS, anomaly_cards
from .book import Book
from .charts import Arms, Figure, channel, short, stepped
from .markup import NONE, Html, decimal, number, places, probability, tag
from .parts import ramp, section
from .style import DIVERGING
from .tables import badge, csv_text
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.anomalies import Alarm
    from ..analysis.causes import Card
    from ..analysis.looked import Looked

MOST_TESTS = 60  # that the page lists; anomalies.csv has all
_FAR = 3.0  # half-widths from which the colour is full


def anomalies_section(book: Book, looked: "Looked") -> Html:
    """What a gate should not do, and whether it did."""
    from ..analysis.say import not_tested

    hunt = looked.hunt
    tested = sorted((a for a in hunt.screened.alarms if isfinite(a.p)), key=lambda a: (a.p, a.rule, a.cell, a.arm))
    lead = (
        f"{len(hunt.screened.anomalies)} of {len(tested)} tests at a false-discovery rate of {hunt.screened.fdr:.0%}. Each test is"
        " of one rule about one gate in one cell, one-sided; all tests of all rules, cells and gates are one family, and q is"
        " the share of false ones among those whose q is as small. docs/statistics.md has the rules with their null hypotheses."
        " Runs of a registered confirmation are not in it."
    )
    notes = tag("div", tag("ul", [tag("li", n) for n in hunt.notes]), class_="notice") if hunt.notes else None
    named = hunt.screened.anomalies
    none = tag("p", "No anomaly was seen, which is no proof that there is none.", class_="about")
    few = not_tested(hunt.screened.alarms, "anomalies.csv has each")
    untested = tag("p", f"{few[:1].upper()}{few[1:]}.", class_="about") if few else None
    rest = [a for a in tested if a.verdict != "anomaly"]
    words = f"the {min(len(rest), MOST_TESTS)} next of {len(rest)} tests that name none (anomalies.csv has all)"
    fold = tag("details", tag("summary", words), _alarms(book, rest[:MOST_TESTS], "other tests")) if rest else None
    # An anomaly's own card has its causes.
    carded = {(a.cell, a.arm) for a in looked.confirmed[:MOST_CARDS]}
    return section(
        "anomalies", "Anomalies", tag("p", lead), notes,
        _alarms(book, named, "anomalies") if named else none, untested, fold,
        _stages(book, looked), anomaly_cards(book, looked.confirmed), _atlas(book),
        _causes(book, [c for c in looked.cards if (c.cell, c.arm) not in carded]),
    )  # fmt: skip


def _alarms(book: Book, alarms: "Sequence[Alarm]", name: str) -> Html:
    columns = ["rule", "what", "gate", "size", "95% interval", "p", "q", "seeds"]
    rows = []
    for a in alarms:
        digits = places(max((abs(x) for x in (a.estimate, a.low, a.high) if isfinite(x)), default=1.0))
        left_out = tag("span", f" Left out: {', '.join(a.notes)}.", class_="quiet") if a.notes else None
        interval = f"{decimal(a.low, digits)} to {decimal(a.high, digits)}" if isfinite(a.high - a.low) else NONE
        rows.append([
            a.rule, tag("span", a.sentence, left_out), book.arm(a.arm), f"{decimal(a.estimate, digits)} {a.unit}".strip(),
            interval, probability(a.p), probability(a.q), a.n_pairs,
        ])  # fmt: skip
    return tabulated(columns, rows, numeric={3, 4, 5, 6, 7}, name=name)


def _stages(book: Book, looked: "Looked") -> Html | None:
    """The registered claims, with their verdicts where there are any."""
    from ..analysis.registration import ranges

    registration = looked.registration
    if registration is None:
        return None
    seeds = ranges(registration.seeds)
    lead = (
        f"What the screen named (seeds {ranges(registration.screened_seeds)}) was written down before any run of seeds"
        f" {seeds}, which alone decide: each claim's own test, one-sided in the direction that was seen, by Holm at"
        f" {registration.alpha:.0%} over all {len(registration.claims)}."
    )
    if not looked.verdicts:
        lead += " Their runs have not all ended, and a confirmation is read once."
    said = {v.claim: v for v in looked.verdicts}
    rows = []
    for c in registration.claims:
        v = said.get(c)
        what = (
            f"{book.words.get(c.reading, c.reading)} {'rises' if c.direction > 0 else 'falls'}"
            if c.direction
            else c.reading
        )
        verdict = tag("b", v.verdict) if v else "open"
        left_out = tag("span", f" ({', '.join(v.notes)})", class_="quiet") if v and v.notes else None
        numbers = (probability(v.p), probability(v.p_holm), v.n_pairs) if v else (NONE, NONE, NONE)
        arm = book.arm(c.arm) if c.arm in book.arms.labels else c.arm
        rows.append([c.rule, c.cell, arm, what, probability(c.q), *numbers, tag("span", verdict, left_out)])
    columns = ["claim", "cell", "gate", "what", "q of the screen", "p on fresh seeds", "after Holm", "seeds", "verdict"]
    return tag("div", tag("h3", "Registered, and confirmed on fresh seeds"), tag("p", lead),
               tabulated(columns, rows, numeric={4, 5, 6, 7}, name="registered claims"))  # fmt: skip


def _atlas(book: Book) -> Html | None:
    """A map a primary metric: cells down, arms across."""
    maps = []
    arms = [a for a in book.arms.labels if a != book.arms.baseline]
    for name, metric in book.metrics.items():
        found = [
            f for f in book.findings if metric["primary"] and f.metric == name and f.n_pairs and isfinite(f.effect)
        ]
        if not found:
            continue
        unit = "" if metric["unit"] in ("", "1") else f" [{metric['unit']}]"
        far = max(found, key=lambda f: abs(_reach(f) or 0.0))
        alt_text = (
            f"Effect on {metric['label']} by cell and arm, {len(found)} of {len(book.cells) * len(arms)} were run; furthest from"
            f" zero: {book.arms.labels[far.arm]} in {far.cell}, {number(far.effect)}."
        )
        cells = [c["name"] for c in book.cells]
        caption = (
            f"Number: mean difference from {book.arms.labels[book.arms.baseline]}{unit}. Blank: no pair has finished, or the"
            " comparison is refused."
        )
        maps.append(book.charts.place(atlas(found, cells, arms, book.arms, alt_text), metric["label"], caption))
    if not maps:
        return None
    words = "effect in half-widths of its 95% interval; beyond ±1 the interval leaves out zero; grey: no interval"
    lead = "Where which arm differs from the baseline, over all seeds. A cell without a number was not run."
    return tag(
        "div", tag("h3", "Atlas of effects"), tag("p", lead), ramp(DIVERGING, f"−{_FAR:g}", f"{_FAR:g}", words),
        tag("div", maps, class_="row"),
    )  # fmt: skip


def atlas(findings: Sequence[Finding], cells: Sequence[str], arms: Sequence[str], words: Arms, alt_text: str) -> Figure:
    """Effects of one metric by cell (down) and arm (across); the colour is the effect in half-widths of its interval."""
    names = [words.labels[a] for a in arms]
    values = [
        {"cell": f.cell, "arm": words.labels[f.arm], "said": number(f.effect, 2), "low": number(f.low), "high": number(f.high),
         "pairs": f.n_pairs, "reach": None if (reach := _reach(f)) is None else short(reach)}
        for f in findings
    ]  # fmt: skip
    axis = {"ticks": False, "domain": False, "labelLimit": 220}
    at = {
        "x": channel("arm:N")
        | {"title": None, "scale": {"domain": names}, "sort": names, "axis": axis | {"labelAngle": -30}},
        "y": channel("cell:N") | {"title": None, "scale": {"domain": list(cells)}, "sort": list(cells), "axis": axis},
    }
    scale = {"domain": [-_FAR, 0, _FAR], "range": list(DIVERGING), "clamp": True, "interpolate": "rgb"}
    colour = channel("reach:Q") | {"scale": scale, "legend": None}
    tips = [channel("cell:N"), channel("arm:N"), channel("said:N") | {"title": "effect"}, channel("low:N"),
            channel("high:N"), channel("pairs:Q")]  # fmt: skip
    ink = {"condition": {"test": "abs(datum.reach) > 1.6", "value": "#fff"}, "value": "#000"}
    none = {"type": "rect", "color": "#c9ced3"}
    layers = [
        {"mark": {"type": "rect"}, "encoding": at | {"color": colour, "tooltip": tips}},
        {"mark": none, "encoding": at, "transform": [{"filter": "!isValid(datum.reach)"}]},
        {"mark": {"type": "text", "fontSize": 10}, "encoding": at | {"text": channel("said:N"), "color": ink}},
    ]
    return stepped(values, layers, alt_text, 84, 24)


def _reach(f: Finding) -> float | None:
    """The effect in half-widths of its interval; None without one."""
    half = (f.high - f.low) / 2
    return f.effect / half if isfinite(half) and half > 0 else None


def _causes(book: Book, cards: "Iterable[Card]") -> Html | None:
    """A card a cause and gate, of those with rows."""
    out = []
    for card in cards:
        decisions = [
            tag("li", tag("b", d.mark, aria_hidden="true"), f" {d.test} [{d.reading}]: {d.predicts}: ",
                tag("b", d.verdict), f"; {d.numbers}" if d.numbers else "")
            for d in card.decisions
        ]  # fmt: skip
        of = f" of {card.reading}" if card.reading else ""
        title = tag("h4", card.hypothesis, tag("span", f"{of}, {card.cell}", class_="aside"))
        who = tag("p", badge(card.verdict), book.arm(card.arm), class_="who")
        out.append(
            tag(
                "div",
                title,
                tag("div", who, tag("p", f"{card.claim}{': ' + card.says if card.says else ''}", class_="about")),
                tag("ul", decisions),
                class_="claim",
            )
        )
    if not out:
        return None
    lead = (
        "Registered explanations, with the tests whose rows there are. A cause is refuted where any test refutes it, supported"
        " where all support it; in brackets what a test read. Each stands at its own 5%: confirm with new seeds."
        " `gatelab find DIR --explain CELL` says what makes the rows that are missing."
    )
    return tag("div", tag("h3", "Causes"), tag("p", lead), out)


def anomalies_csv(looked: "Looked") -> str:
    """Every test of the screen; lists are joined by semicolons."""
    from ..analysis.anomalies import Alarm

    rows = [asdict(a) for a in looked.hunt.screened.alarms]
    flat: list[dict[str, Any]] = [
        {k: ";".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows
    ]
    return csv_text([f.name for f in fields(Alarm)], flat)
