"""Which arm for which use: one row a use, and behind it how every arm stands, setting by setting counted and never pooled."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from typing import TYPE_CHECKING

from .book import Book
from .markup import NONE, Html, number, tag
from .parts import section
from .tables import csv_text, headings, scrolling
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.recommend import Advice
    from ..analysis.standing import Against, Answer, Standing, Told
    from ..analysis.uses import Use

MEANINGS = {
    "confirmed on fresh seeds": "registered before these seeds were run, and held by Holm at 5% over all claims",
    "screen": "a primary effect whose q is within the false-discovery rate",
    "exploratory": "an interval without zero, or an exact p below 5%, corrected for nothing",
    "nothing seen": "enough seeds, and no effect among them",
    "runs diverged": "runs of the arm diverged where the baseline's did not: what the others show is never for it",
    "nothing to tell": "no case to help in: the baseline is there already, or no seed differs",
    "pilot": "fewer than three seeds, from which nothing is recommended",
}
COLUMNS = ["you want", "the evidence favours", "strength", "settings", "seeds", "effect there", "against it"]
_MOST = 4  # names in a row of those against
_TELLS = 0.5  # of seeds that may change for the better: that not more than most do says something


@dataclass(frozen=True, slots=True)
class Names:
    """How an arm, and a setting or cell, are written."""

    arm: Callable[[str], Html]
    where: Callable[[str], str] = str


def which_section(book: Book, advice: "Advice | str") -> Html:
    """Of one study; a string says why nothing is recommended."""
    if isinstance(advice, str):
        return section("which", "Which arm for which use", tag("p", f"Nothing is recommended: {advice}."))
    cells = "a cell, or cells that differ in the learning rate alone, in which each arm stands at its own best rate"
    notes = tag("div", tag("ul", [tag("li", n) for n in advice.notes]), class_="notice") if advice.notes else None
    table = recommendations(advice.answers, Names(book.arm), [u.name for u in silent(advice.told)], every=cells)
    return section("which", "Which arm for which use", notes, table)


def silent(told: "Iterable[Told]") -> "list[Use]":
    """The uses of which nothing is told."""
    from ..analysis.uses import USES

    there = {t.use.name for t in told}
    return [u for u in USES if u.name not in there]


def recommendations(answers: Sequence["Answer"], names: Names, silent: Sequence[str], *, every: str) -> list[Html]:
    """The table, what was not measured, and the fold-out; `every` says what a setting is."""
    lead = (
        f"A setting is {every}. An arm is favoured for a use where more than half of the settings that can tell, with three seeds"
        " or more, show that it helps; of several that with the highest lower end of the exact interval of its k of n settings,"
        " then with fewer against. No test tells the arms of one use apart, and nothing is averaged over settings."
    )
    bodies = [tag("tbody", _rows(a, names)) for a in answers]
    shown = tag("table", headings(COLUMNS, set()), bodies, class_="cards which")
    out = [tag("p", lead), scrolling(shown, "recommendations")]
    if silent:
        out.append(tag("p", f"No pair of runs has it here, so nothing tells: {'; '.join(silent)}.", class_="about"))
    words = tag("dl", [(tag("dt", w), tag("dd", m)) for w, m in MEANINGS.items()], class_="words")
    rows = [row for a in answers for row in _standings(a, names)]
    columns = [
        "use",
        "arm",
        "strength",
        "for",
        "against",
        "neither",
        "too few seeds",
        "effects",
        "excluded",
        "backfires elsewhere",
    ]
    fold = tag("details", tag("summary", "how every arm stands for every use, and what the words mean"), words,
               tabulated(columns, rows, numeric={3, 4, 5, 6}, name="all arms"), class_="print")  # fmt: skip
    return [*out, fold]


def _rows(a: "Answer", names: Names) -> list[Html]:
    """A use: a row an arm that is shown, or one that says why there is none; where no arm is favoured, also who is worse."""
    lines = [_line(a, s, names) for s in a.shown] or [_nothing(a)]
    rows = []
    for i, values in enumerate(lines):
        cells = [tag("td", v, data_label=c) for c, v in zip(COLUMNS[1:], values, strict=True)]
        head = tag("th", tag("b", a.use.name), scope="rowgroup", rowspan=len(lines) if len(lines) > 1 else None)
        rows.append(tag("tr", head if i == 0 else None, cells))
    if not a.favoured and a.worse:
        said = [tag("li", names.arm(s.arm), f": {'; '.join(_case_words(s, names))}") for s in a.worse]
        text = tag("td", "Worse than the baseline:", tag("ul", said, class_="plain"), colspan=len(COLUMNS) - 1)
        rows.append(tag("tr", tag("th", tag("span", f"{a.use.name}, against", class_="unseen"), scope="row"), text))
    return rows


def _line(a: "Answer", s: "Standing", names: Names) -> list[Html | str]:
    arm = (
        names.arm(s.arm)
        if a.favoured
        else tag("span", tag("span", "not in most settings, in some: ", class_="quiet"), names.arm(s.arm))
    )
    held = sorted(s.on(1), key=lambda t: t not in s.confirmed)
    settings = f"{len(held)} of {len(s.telling)}"
    where = "" if a.favoured else f": {_some([t.setting for t in held], names)}"
    strength = tag("b", s.strength) if a.favoured or s.confirmed else s.strength
    part = f" in {len(s.confirmed)} of {len(held)}" if 0 < len(s.confirmed) < len(held) else None
    counted = tag("span", settings, tag("span", where, class_="quiet"))
    against = "; ".join(_case_words(s, names)) or "nothing seen"
    return [arm, tag("span", strength, part), counted, _seeds([s]), told_effects([s]), against]


def _nothing(a: "Answer") -> list[Html | str]:
    telling = [s for s in a.standings if s.telling]
    words = "no arm helps" if any(s.on(-1) for s in telling) else "nothing here tells"
    n = max(len(s.telling) for s in a.standings)
    looked = f"0 of {n}" if n else NONE
    effects = told_effects(telling, side=0) if telling else NONE
    return [tag("span", words, class_="quiet"), f"{a.word}{_excluded(a)}", looked, _seeds(a.standings), effects, NONE]


def _case_words(s: "Standing", names: Names) -> list[str]:
    """What speaks against an arm: settings, other rates, confirmed claims."""
    worse = [t.setting for t in s.on(-1)]
    return [*([f"worse in {_some(worse, names)}"] if worse else []), *_against_words(s.against, names)]


def _seeds(standings: Sequence["Standing"]) -> str:
    told = [t for s in standings for t in (s.telling or s.told)]
    return _span((t.finding.n_pairs for t in told), "{}")


def _span(values: Iterable[int], form: str) -> str:
    held = sorted({*values})
    return form.format(held[0]) if len(held) == 1 else f"{form.format(held[0])} to {form.format(held[-1])}"


def told_effects(standings: Sequence["Standing"], side: int = 1) -> Html:
    """From the smallest to the largest effect over settings, with their unit, and how many lie inside what counts as nothing."""
    told = [t for s in standings for t in s.telling if not side or t.side == side]
    # Where a side was taken and as many seeds change either way, it was by the mean.
    shares = [t.changed[0] / t.changed[1] for t in told if t.changed and t.changed[1] and not is_of_mean(t)]
    if shares:
        least, most = f"{min(shares):.0%}", f"{max(shares):.0%}"
        return tag("span", f"{least if least == most else f'{least} to {most}'} of the seeds change")
    held = sorted(t.finding.effect for t in told)
    if held[-1] <= 0:
        held.reverse()  # all lower: from the smallest on
    text = (
        _said(told[0], held[0])
        if len(held) == 1
        else f"{_said(told[0], held[0], unit=False)} to {_said(told[0], held[-1])}"
    )
    small = sum(t.is_within_nothing for t in told)
    bounds = sorted({t.finding.equivalence for t in told if t.is_within_nothing})
    note = f" ({small} of {len(told)} within the {bounds[-1]:g} that count as nothing)" if small else ""
    if side and any(t.changed for t in told):
        note += " (in the mean: no more runs pass the threshold)"
    return tag("span", text, tag("span", note, class_="quiet") if note else None)


def is_of_mean(t: "Told") -> bool:
    """Whether a side was taken by the mean, of a metric that a run shows or not."""
    return t.side != 0 and (t.changed is None or t.changed[0] == t.changed[2])


def _said(t: "Told", x: float, *, unit: bool = True) -> str:
    """An effect in words: of a spread, which is a logarithm, the factor."""
    if t.finding.unit == "ln":
        return f"× {number(exp(x), 2)}"
    word = t.finding.unit if unit and t.finding.unit not in ("", "1") else ""
    return f"{number(x, 2)} {word}".strip()


def _excluded(a: "Answer") -> str:
    """What the data exclude, of all arms together; nothing where no comparison has a bound."""
    bound, n, of = a.excluded
    if not n or not isfinite(bound):
        return ""
    which = "in every comparison" if n == of else f"in {n} of {of} comparisons"
    t = next(t for s in a.standings for t in s.telling if isfinite(t.excluded))
    said = _bound(t, bound)
    return f"; {said} is excluded {which}" if said else ""


def _bound(t: "Told", x: float) -> str:
    """A gain above `x`; of what a run shows or not, a change of more than such a share of the seeds, and nothing where that share
    is most of them: of so few seeds it says how few they are."""
    if t.changed is not None:
        return f"a change of more than {x:.0%} of the seeds" if x <= _TELLS else ""
    if t.finding.unit == "ln":
        return f"a gain above a factor of {number(exp(x), 2)}"
    return f"a gain above {_said(t, x)}"


def _against_words(against: Sequence["Against"], names: Names) -> list[str]:
    """Beside an arm's settings at its best rate: how often, or in which cell."""
    out = []
    other = [a.cell for a in against if not a.is_confirmed]
    if other:
        out.append(f"worse at another rate in {_cells(other, names)}")
    for rule in dict.fromkeys(a.rule for a in against if a.is_confirmed):
        out.append(
            f"confirmed {rule} in {_cells([a.cell for a in against if a.is_confirmed and a.rule == rule], names)}"
        )
    return out


def _cells(cells: Sequence[str], names: Names) -> str:
    """The name of one, the number of several."""
    return names.where(cells[0]) if len(cells) == 1 else f"{len(cells)} cells"


def _some(settings: Sequence[str], names: Names) -> str:
    return ", ".join(map(names.where, settings)) if len(settings) <= _MOST else f"{len(settings)} settings"


def _standings(a: "Answer", names: Names) -> Iterable[list[Html | str]]:
    for s in a.standings:
        n_pilot = sum(t.word == "pilot" for t in s.told)
        bounds = [t for t in s.telling if isfinite(t.excluded)]
        widest = max(bounds, key=lambda t: t.excluded, default=None)
        yield [
            a.use.name, names.arm(s.arm), s.strength, str(len(s.on(1))), str(len(s.on(-1))), str(len(s.on(0))), str(n_pilot),
            told_effects([s], side=0) if s.telling else NONE, (_bound(widest, widest.excluded) if widest else "") or NONE,
            "; ".join(_against_words(s.against, names)) or NONE,
        ]  # fmt: skip


def recommendations_csv(advice: "Advice") -> str:
    """Every comparison that counts for a use: a setting and arm a line."""
    rows = []
    for t in advice.told:
        f = t.finding
        rows.append({
            "use": t.use.name, "metric": f.metric, "better": t.use.better, "setting": t.setting, "arm": t.arm,
            "cell": advice.at_best.best.get((t.setting, t.arm), ""), "pairs": f.n_pairs, "effect": f.effect, "low": f.low,
            "high": f.high, "unit": f.unit, "p": f.p, "q": f.q, "verdict": f.verdict, "side": t.side, "word": t.word,
            "excluded": t.excluded,
        })  # fmt: skip
    names = (
        "use", "metric", "better", "setting", "arm", "cell", "pairs", "effect", "low", "high", "unit", "p", "q", "verdict",
        "side", "word", "excluded",
    )  # fmt: skip
    return csv_text(list(names), rows)
