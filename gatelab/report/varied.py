"""How effects vary: arm by factor, the F test and the cells or levels at either end, what cannot be told and why; and spreads.

Notable: rows on the held-out loss stand open, and of the other readings those with q within the rate; the rest is folded.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from .book import Book
from .markup import NONE, Html, decimal, places, probability, tag
from .parts import section
from .tables import csv_text
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.dispersion import Spread
    from ..analysis.varied import At, Spreading, Varied, Varying

TITLE = "How the effects vary"
FILE = "varied.csv"
PRIMARY = "val_loss"  # what every study is about
LEVEL = 0.05  # of the test that a number's levels lie on a line
_FACTORS = {
    "model.d_model": "width", "model.n_layers": "depth", "optim.lr": "learning rate", "data": "task or data",
    "data.names": "task", "train.tokens": "training length", "train.seq_len": "sequence length",
}  # fmt: skip


def varied_section(book: Book, found: "Varied") -> Html:
    """The section of a study's page."""
    return section("varies", TITLE, tag("p", lead()), tables(found, book.arm, book.measured.study["name"]))


def lead() -> str:
    """How the tables are to be read."""
    return (
        "Does an arm's effect depend on size, architecture, task, depth or learning rate? A linear model of the paired differences,"
        " with a block a seed, tests each factor against what cells do beyond all factors (or, where too few are left, against"
        " seeds, and then of these very cells alone), its levels as such; the row of all cells asks whether any two differ. At the"
        " ends: the smallest and the largest effect with 95% intervals, of cells as measured, of levels as fitted. A doubling:"
        " the slope of the best line over a number's levels, and the p that they lie on one, where that is below 0.05."
    )


def tables(found: "Varied", arm: Callable[[str], Html], name: str, *, behind: str = "") -> list[Html]:
    """Of a study: effects by factor, reading by reading, then spreads; `arm` words an arm, `behind` stands behind each heading."""
    readings = list(dict.fromkeys(r.reading for r in found.rows))
    if not readings:
        return [tag("p", "No reading has a pair yet.", class_="about")]
    out = [part for reading in readings for part in _effects(found, reading, arm, name, behind)]
    if found.lost:
        out.append(tag("p", f"Not in any of these tests: {found.lost}.", class_="about"))
    notes = [f"{word}: {why}" for word, why in found.fixed.items()]
    if notes:
        out.append(tag("p", f"Cannot be told here, {'; '.join(notes)}.", class_="about"))
    if found.brought:
        words = f"The architecture stands for what varies with it alone: {', '.join(found.brought)}."
        out.append(tag("p", words, class_="about"))
    return [*out, _spreads(found, arm, name, behind)]


def headline(found: "Varied") -> str:
    """How much of the loss's dependences is named, in a few words."""
    own = [r for r in found.rows if r.reading == PRIMARY]
    tests = [r for r in own if isfinite(r.q)]
    if not tests:
        return f"by no factor: {next((r.reason for r in own if r.reason), 'no test')}"
    n = sum(r.q <= found.fdr for r in tests)
    return f"{len(tests)} test{'s' * (len(tests) != 1)} of the loss by factor, {_named(n, found.fdr)}"


def _named(n: int, fdr: float) -> str:
    return f"{n or 'none'} with q up to {fdr:g}"


def _effects(found: "Varied", reading: str, arm: Callable[[str], Html], name: str, behind: str) -> list[Html]:
    """Of a reading: the rows that stand open, and the others behind a line with their number."""
    rows = [r for r in found.rows if r.reading == reading]
    label, unit = found.words[reading]
    reasons = {r.reason for r in rows}
    if len(reasons) == 1 and "" not in reasons:
        return [tag("p", f"Effect on {label} by factor: cannot be told, {reasons.pop()}.", class_="about")]
    title = f"effect on {label}{'' if unit in ('', '1') else f' [{unit}]'}"
    columns = ["gate", "by", "F", "p", "q", "against", "a doubling", "smallest", "largest"]
    open_ = [reading == PRIMARY or r.q <= found.fdr for r in rows]
    shown, rest = ([r for r, is_open in zip(rows, open_, strict=True) if is_open == side] for side in (True, False))
    out = []
    if shown:
        table = tabulated(columns, [_row(r, arm) for r in shown], numeric={3, 4}, name=f"{label} by factor, {name}")
        out.append(tag("div", tag("h4", title[:1].upper() + title[1:], behind), table))
    if rest:
        more = tabulated(
            columns, [_row(r, arm) for r in rest], numeric={3, 4}, name=f"more on {label} by factor, {name}"
        )
        out.append(_folded(f"{title}: {_n(rest, 'row', shown)} with q above {found.fdr:g} or none", more))
    return out


def _folded(words: str, table: Html) -> Html:
    """Not printed: the file has every row."""
    return tag("details", tag("summary", words), table)


def _n(rest: Sequence, what: str, shown: Sequence) -> str:
    return f"{len(rest)}{' more' if shown else ''} {what}{'s' * (len(rest) != 1)}"


def _row(r: "Varying", arm: Callable[[str], Html]) -> list:
    if r.reason:
        return [arm(r.arm), factor(r.factor), tag("span", f"cannot be told: {r.reason}", class_="quiet"), *[NONE] * 6]
    f = f"F({r.df:g}, {r.df_error:g}) = {decimal(r.f, places(abs(r.f)))}"
    doubling = f"{r.slope:+.3g}".replace("-", "−") if isfinite(r.slope) else NONE
    if r.p_bend < LEVEL:
        doubling = f"{doubling}, no line (p {probability(r.p_bend)})"
    flips = tag("span", " The sign flips.", class_="quiet") if r.flips else None
    return [arm(r.arm), factor(r.factor), f, probability(r.p), probability(r.q), r.against, doubling, _at(r.least),
            tag("span", _at(r.most), flips)]  # fmt: skip


def factor(name: str) -> str:
    """A factor's words: of the first of several keys that split the cells alike, which are named too."""
    keys = name.split(" = ")
    return " = ".join(_FACTORS.get(k, k) for k in keys)


def _at(at: "At | None") -> str:
    if at is None:
        return NONE
    digits = places(max(abs(x) for x in (at.effect, at.low, at.high) if isfinite(x)))
    interval = f" ({decimal(at.low, digits)} to {decimal(at.high, digits)})" if isfinite(at.high - at.low) else ""
    return f"{decimal(at.effect, digits)}{interval}: {at.where}"


def _spreads(found: "Varied", arm: Callable[[str], Html], name: str, behind: str) -> Html:
    """Whose spread a gate changes."""
    words = (
        "Does the gate change the spread and not the mean? The arm's standard deviation over the baseline's, with its 95% interval:"
        " over seeds (the larger p of two tests), over heads and layers of a run; q over all of these."
    )
    if not found.spreads:
        return tag(
            "div", tag("h4", "Spread", behind), tag("p", f"{words} No reading has pairs for it.", class_="about")
        )
    shown = [s for s in found.spreads if _is_open(s, found.fdr)]
    rest = [s for s in found.spreads if not _is_open(s, found.fdr)]
    columns = ["gate", "over", "of", "cells", "smallest ratio", "largest ratio", "over all cells", "p, all cells",
               f"cells with q up to {found.fdr:g}"]  # fmt: skip
    out = [tag("h4", "Spread", behind), tag("p", words, class_="about")]
    if shown:
        out.append(
            tabulated(columns, [_spread_row(s, found, arm) for s in shown], numeric={3, 7}, name=f"spreads, {name}")
        )
    if rest:
        more = tabulated(
            columns, [_spread_row(s, found, arm) for s in rest], numeric={3, 7}, name=f"more spreads, {name}"
        )
        out.append(_folded(f"spread: {_n(rest, 'row', shown)} in which no cell has a q up to {found.fdr:g}", more))
    return tag("div", out)


def _is_open(s: "Spreading", fdr: float) -> bool:
    """Of the loss, or of a reading whose spread differs in some cell or in all of them together."""
    return s.reading == PRIMARY or bool(s.named) or (s.together is not None and s.together.q <= fdr)


def _spread_row(s: "Spreading", found: "Varied", arm: Callable[[str], Html]) -> list:
    from ..analysis.hunt import OF_PARTS

    of = OF_PARTS.get(s.reading) or found.words[s.reading][0]
    if s.reason:
        return [arm(s.arm), s.over, of, tag("span", f"cannot be told: {s.reason}", class_="quiet"), *[NONE] * 5]
    together = (NONE, NONE) if s.together is None else (_ratio(s.together), probability(s.together.p))
    which = f"{len(s.named)}: {', '.join(s.named[:2])}{' …' if len(s.named) > 2 else ''}" if s.named else "none"
    ends = [f"{_ratio(x)}: {x.cell}" for x in (s.least, s.most)]
    return [arm(s.arm), s.over, of, s.n_cells, *ends, *together, which]


def _ratio(s: "Spread") -> str:
    high = decimal(s.high, places(s.high)) if isfinite(s.high) else "∞"
    return f"{decimal(s.ratio, places(s.ratio))} ({decimal(s.low, places(max(s.low, 0.01)))} to {high})"


def varied_csv(found: "Varied") -> str:
    """Every row in full."""
    names = ["arm", "reading", "unit", "factor", "f", "df", "df_error", "p", "q", "against", "slope", "p_bend"]
    ends = [(side, part) for side in ("least", "most") for part in ("where", "effect", "low", "high")]
    rows = []
    for r in found.rows:
        row = {name: _finite(getattr(r, name)) for name in names}
        row |= {f"{side}_{part}": _finite(getattr(getattr(r, side), part, None)) for side, part in ends}
        rows.append(row | {"reason": r.reason, "left_out": "; ".join(r.left_out)})
    return csv_text([*names, *(f"{side}_{part}" for side, part in ends), "reason", "left_out"], rows)


def _finite(x: Any) -> Any:
    return x if not isinstance(x, float) or isfinite(x) else None
