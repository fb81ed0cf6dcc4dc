"""The effects that fresh seeds confirmed, a line each: what was registered, its numbers on both seeds, and what runs it again."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from .atlas_words import CHECK, Words
from .card_sights import unit_of
from .markup import NONE, Html, decimal, places, probability, tag
from .parts import section
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.anomalies import Alarm
    from ..analysis.atlas import Atlas, Sheet
    from ..analysis.confirmed import Anomaly, Held


@dataclass(frozen=True, slots=True)
class Effect:
    """A confirmed effect with its anchor on the page."""

    sheet: "Sheet"
    of: "Anomaly"
    held: "Held"
    anchor: str

    @property
    def setting(self) -> str:
        """The setting of its cell, or the cell, behind the study's letter."""
        s, c = self.sheet, self.held.claim
        at = {} if isinstance(s.advice, str) else s.advice.at_best.best
        return f"{s.letter} {next((to for (to, arm), cell in at.items() if (cell, arm) == (c.cell, c.arm)), c.cell)}"

    @property
    def arm(self) -> str:
        """The arm as the atlas names it."""
        return self.sheet.arms.get(self.held.claim.arm, self.held.claim.arm)

    @property
    def is_better(self) -> bool | None:
        """Whether it serves whom it is measured for; None of what has no better."""
        metrics = {m["name"]: m["direction"] for m in self.sheet.views.study["metrics"]}
        wanted = {"lower-is-better": -1, "higher-is-better": 1}.get(metrics.get(self.held.claim.reading, ""))
        return None if wanted is None else wanted == self.held.claim.direction

    @property
    def size(self) -> str:
        """What the fresh seeds have, with its unit; empty where their test has no number."""
        a = self.held.fresh
        is_told = a is not None and isfinite(a.estimate)
        return f"{decimal(a.estimate, places(a.estimate, 2))}{unit_of(a.unit)}" if is_told else ""

    @property
    def what(self) -> str:
        """What it changes, and in which direction."""
        reading = self.held.claim.reading
        label = self.of.words.get(reading, (reading, ""))[0]
        return f"{label} {'rises' if self.held.claim.direction > 0 else 'falls'}"


def effects_of(atlas: "Atlas") -> list[Effect]:
    """Study by study, the surest first."""
    return [e for s in atlas.sheets for e in _of_study(s)]


def _of_study(s: "Sheet") -> Iterator[Effect]:
    from ..analysis.registration import EFFECT

    found = [] if s.views is None else s.views.effects
    held = [(a, h) for a in found for h in a.held if h.claim.rule == EFFECT]
    for i, (a, h) in enumerate(sorted(held, key=lambda x: x[1].rank), start=1):
        yield Effect(s, a, h, f"effect-{s.letter}{i}")


def anchors(atlas: "Atlas") -> dict[tuple[str, str, str], str]:
    """{(setting, arm, metric) as the atlas names them: where it stands on the page}."""
    return {(e.setting, e.arm, e.held.claim.reading): e.anchor for e in effects_of(atlas)}


def confirmed_effects(atlas: "Atlas", words: Words) -> Html:
    """What a gate changes, as surely as a study can say it."""
    found, count = effects_of(atlas), atlas.counted(effects=True)
    waiting = f" {count.waiting} more wait for their runs." if count.waiting else ""
    if not found:
        none = f"None of {count.read} registered effects" if count.read else "No effect"
        return section("confirmed", "Confirmed effects", tag("p", f"{none} was confirmed on fresh seeds.{waiting}"))
    lead = (
        f"{count.confirmed} of {count.read} effects that a screen named, and that were registered with seeds to test them, held"
        f" there, by Holm at 5% over all claims of the study.{waiting} Arm minus baseline, means over seeds with 95% intervals."
        " The map shows the screen's number, with the mark "
    )
    columns = ["gate", "where", "what", "on fresh seeds", "on the screen's", "p after Holm", "again"]
    rows = [_row(e, words) for e in found]
    table = tabulated(columns, rows, numeric={5}, name="confirmed effects")
    return section("confirmed", "Confirmed effects", tag("p", lead, tag("b", CHECK), "."), table)


def _row(e: Effect, words: Words) -> list[Html | str]:
    commands = e.of.commands[:1]
    copy = tag("button", "copy", type="button", data_copy=True)
    again = [tag("div", tag("code", c), copy, class_="command") for c in commands]
    gate = tag("b", words.arm(e.arm), id=e.anchor, title=e.arm)
    left_out = (
        tag("span", f" Left out: {', '.join(e.held.verdict.notes)}.", class_="quiet") if e.held.verdict.notes else None
    )
    return [
        gate, words.linked(e.setting), tag("div", e.what, left_out, _why(e)), _number(e.held.fresh), _number(e.held.screen),
        probability(e.held.verdict.p_holm), tag("div", again) if again else NONE,
    ]  # fmt: skip


def _why(e: Effect) -> Html | None:
    """The verdicts of the studies that were made for its causes, on this very reading; which of them wait for their runs."""
    said = [
        [
            "; " if i else "Causes: ",
            tag("b", c.hypothesis),
            f" {c.verdict}{f' ({c.says})' if c.says else ''} [{study}]",
        ]
        for i, (study, c) in enumerate(
            (of.study, c) for of in e.of.elsewhere for c in of.cards if c.reading == e.held.claim.reading
        )
    ]
    waits = f" Planned to test its causes, and not run: {', '.join(e.of.waiting)}." if e.of.waiting else ""
    return tag("p", said, "." if said else "", waits, class_="quiet") if said or waits else None


def _number(a: "Alarm | None") -> Html:
    """A number with its interval and seeds."""
    if a is None or not isfinite(a.estimate):
        return tag("span", NONE)
    digits = places(max(abs(x) for x in (a.estimate, a.low, a.high) if isfinite(x)))
    interval = f"{decimal(a.low, digits)} to {decimal(a.high, digits)}, " if isfinite(a.high - a.low) else ""
    return tag("span", tag("b", f"{decimal(a.estimate, digits)}{unit_of(a.unit)}"), f" ({interval}{a.n_pairs} seeds)")
