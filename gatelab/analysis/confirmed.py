"""Confirmed anomalies: what fresh seeds confirmed of each cell and arm, and what the study's rows have to see it by.

A claim's number is that of its own test, on the fresh seeds as the verdict read them, and on the screen's. Neighbours are the
cells that differ from its own in one key, where the screen's number is of the same test; keys that split all cells alike are one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from ..store import StudyFolder
from .anomalies.alarm import Alarm, Place, Rule
from .anomalies.evidence import Comparison, Evidence
from .causes import Card
from .digest import digest, table
from .heterogeneity import merged
from .registration import EFFECT, Claim, Verdict
from .stages import ONE_TEST, alarm_of
from .student import p_two_sided

if TYPE_CHECKING:
    from .sights import Sight

Course = list[tuple[float, float]]
Level = int | float | str


@dataclass(frozen=True, slots=True)
class Held:
    """A confirmed claim with its numbers on the fresh seeds and on the screen's; None: its test says nothing of them."""

    verdict: Verdict
    fresh: Alarm | None
    screen: Alarm | None

    @property
    def claim(self) -> Claim:
        return self.verdict.claim

    @property
    def rank(self) -> tuple[float, float]:
        """Small for what is sure: the p on fresh seeds, then how many half-widths the number is from zero."""
        a = self.fresh
        half = (a.high - a.low) / 2 if a is not None else 0.0
        return self.verdict.p, -abs(a.estimate) / half if a is not None and isfinite(half) and half > 0 else inf


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A cell that differs in `key` alone, with the levels here and there; `found` are the screen's numbers there, one a claim of
    the anomaly, None where its rule tests nothing."""

    cell: str
    key: str
    here: Level
    there: Level
    found: list[Alarm | None]


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows of the cell: `courses` {reading: {(arm, seed): [(step, value)]}} of what is in no other table of the page, and `shut`
    {(arm, seed): {layer: share of the gate's scores below 0.1}}."""

    courses: dict[str, dict[tuple[str, int], Course]] = field(default_factory=dict)
    shut: dict[tuple[str, int], dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Companion:
    """Cards of another study on runs of the same configuration, under its own names, with the finished seeds of its gate; `sides`
    {arm, as the anomaly's study names it: what these runs have to be seen by}, of the baseline and the gate."""

    study: str
    cell: str
    seeds: list[int]
    cards: list[Card]
    sides: Mapping[str, "Sight"] = field(default_factory=dict)

    @property
    def n_looks(self) -> int:
        """The most steps at which the loss of both was looked at."""
        return min((sight.n_looks for sight in self.sides.values()), default=0)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """The confirmed claims of one cell and arm, the surest first; `words` {reading: (its label, its unit)}, `causes` the cards of
    hypotheses with rows on what the claims are about, `commands` what makes the runs again and asks for causes; `elsewhere` are
    such cards of studies that were made for its causes, `waiting` the names of those that have planned its runs and made none."""

    cell: str
    arm: str
    held: list[Held]
    neighbours: list[Neighbour]
    words: dict[str, tuple[str, str]]
    seen: Seen = field(default_factory=Seen)
    causes: list[Card] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    elsewhere: list[Companion] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


def anomalies(
    verdicts: Iterable[Verdict],
    screen: Evidence,
    alarms: Iterable[Alarm],
    fresh: Evidence,
    rules: Sequence[Rule],
    factors: Mapping[str, Mapping[str, Any]],
) -> list[Anomaly]:
    """What was confirmed, a cell and arm each, the surest first.

    Args:
        alarms: of the screen, every test.
        fresh: the evidence of the fresh seeds, as the verdicts read it.
        factors: {dotted key: {cell: level}} of the keys in which the cells differ.
    """
    tests, by_name = {(a.rule, a.cell, a.arm, a.reading): a for a in alarms}, {r.name: r for r in rules}

    def screened(claim: Claim, cell: str) -> Alarm | None:
        if claim.rule == EFFECT:
            return effect_of(claim, cell, screen)
        found = tests.get((claim.rule, cell, claim.arm, claim.reading))
        return found if found is not None and isfinite(found.estimate) else None

    groups: dict[Comparison, list[Held]] = {}
    for v in (v for v in verdicts if v.verdict == "confirmed"):
        c = v.claim
        again = effect_of(c, c.cell, fresh) if c.rule == EFFECT else alarm_of(c, fresh, by_name)
        groups.setdefault((c.cell, c.arm), []).append(Held(v, again, screened(c, c.cell)))
    cells = [c for c in screen.cells if all(c in levels for levels in factors.values())]
    keys = merged(factors, cells)
    out = []
    for (cell, arm), held in groups.items():
        held.sort(key=lambda h: (*h.rank, h.claim.rule, h.claim.reading))
        differ = {c: [k for k, at in keys.items() if at[c] != at[cell]] for c in cells} if cell in cells else {}
        beside = [
            Neighbour(c, key, keys[key][cell], keys[key][c], [screened(h.claim, c) for h in held])
            for c, (key, *more) in ((c, found) for c, found in differ.items() if found)
            if not more
        ]
        words = {r: (m.label, m.unit) for h in held if (m := screen.readings.get(r := h.claim.reading)) is not None}
        out.append(Anomaly(cell, arm, held, beside, words))
    return sorted(out, key=lambda a: (*a.held[0].rank, a.cell, a.arm))


def once(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """A study's verdicts without those of a test that another of its claims has too, of which the first of `ONE_TEST` stays: these
    rules test one thing, so that the same p of as many pairs of a cell, an arm and a reading is of the same seeds. Registrations
    older than `stages.distinct` have such claims."""
    first: dict[tuple[str, str, str, int, float], Verdict] = {}
    found = list(verdicts)
    for v in sorted((v for v in found if v.claim.rule in ONE_TEST), key=lambda v: ONE_TEST.index(v.claim.rule)):
        first.setdefault(_test(v), v)
    return [v for v in found if v.claim.rule not in ONE_TEST or first[_test(v)] is v]


def _test(v: Verdict) -> tuple[str, str, str, int, float]:
    return v.claim.cell, v.claim.arm, v.claim.reading, v.n_pairs, v.p


def effect_of(claim: Claim, cell: str, evidence: Evidence) -> Alarm | None:
    """A claim of an effect as a number with an interval: a mean difference; where runs change regime, the share of the seeds that
    change in the claim's direction. None of fewer than two pairs, or without spread."""
    reading, arm = claim.reading, claim.arm
    if reading not in evidence.readings or (cell, arm) in evidence.refused:
        return None
    metric, pairs = evidence.readings[reading], evidence.pairs(reading, cell, arm)
    place = Place(EFFECT, cell, arm, evidence.baseline)
    if pairs.changes is not None:
        k, word = pairs.changes[claim.direction > 0], "gain" if claim.direction > 0 else "lose"
        event = metric.event or f"{metric.label} above {metric.threshold:g}"
        text = f"of {len(pairs.seeds)} seeds {k} {word} this with {arm}: {event}"
        return place.share(reading, pairs.seeds, k, claim.p, text)
    e = evidence.estimate(reading, cell, arm)
    if e is None or not e.sigma > 0:
        return None
    text = f"{arm} changes the {metric.label} by {e.mean:+.4g} {metric.unit}".removesuffix(" 1")
    return place.mean(reading, metric.unit, e, text, seeds=pairs.seeds, p=p_two_sided(e))


def is_about(card: Card, a: Anomaly) -> bool:
    """Whether a card is of this cell and gate, and of a reading of its claims, or of itself: what another reading depends on is no
    cause of these."""
    return (card.cell, card.arm) == (a.cell, a.arm) and card.reading in ("", *(h.claim.reading for h in a.held))


def seen_in(folder: StudyFolder, cells: Iterable[str]) -> dict[str, Seen]:
    """{cell: what its rows have}.

    Raises:
        StoreError: rows that cannot be read.
    """
    out, connection = {cell: Seen() for cell in cells}, digest(folder)
    for (cell, arm, seed, reading), course in table(connection, "courses", out):
        out[cell].courses.setdefault(reading, {})[arm, seed] = course
    shut = connection.execute(
        """SELECT cell, arm, seed, layer, value FROM main_rows WHERE list_contains($1, cell) AND metric = 'gate_below'
           AND threshold = 0.1 AND layer IS NOT NULL AND head IS NULL AND domain IS NULL AND bin IS NULL AND intervention IS NULL
           ORDER BY ALL""",
        [list(out)],
    )
    for cell, arm, seed, layer, value in shut.fetchall():
        out[cell].shut.setdefault((arm, seed), {})[layer] = value
    return out
