"""Alarm: what one rule says of one arm in one cell. Rule: a named test with what it reads and how many seeds it needs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING

from ..student import Estimate, interval

if TYPE_CHECKING:
    from .evidence import Evidence

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Alarm:
    """One test of one rule. `p` is one-sided, of the rule's null hypothesis (nan: too few seeds, or no spread), `q` its
    false-discovery rate among all rules, cells and arms of the screen. `estimate` with its two-sided interval is in `unit`:
    a difference from the baseline, or a share of runs. `verdict` is anomaly, none or untestable; `notes` name the runs that
    were left out."""

    rule: str
    cell: str
    arm: str
    baseline: str
    reading: str
    unit: str
    n_pairs: int
    estimate: float
    low: float
    high: float
    p: float
    sentence: str
    q: float = nan
    verdict: str = "none"
    seeds: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rule:
    """`null` is what a false alarm would be an alarm about. `reads` are names or families of readings, of which one at least
    must be there, or all where `needs_all`; `is_paired`: the seeds are counted in pairs, not in runs of the arm. `also` are
    the cells that it reads besides its own."""

    name: str
    null: str
    test: "Callable[[Evidence, str, str], Iterable[Alarm]]"
    reads: tuple[str, ...]
    min_seeds: int
    needs_all: bool = False
    is_paired: bool = True
    also: "Callable[[Evidence, str], list[str]]" = lambda evidence, cell: []


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule looks, and the start of its alarms."""

    rule: str
    cell: str
    arm: str
    baseline: str

    def mean(self, reading: str, unit: str, e: Estimate, sentence: str, *, seeds: list[int], p: float) -> Alarm:
        """An alarm about a mean; nan for what does not exist without any spread."""
        low, high = interval(e, CONFIDENCE) if e.sigma > 0 else (nan, nan)
        p = p if e.sigma > 0 else nan
        return self._alarm(reading, unit, seeds, (e.mean, low, high), p, sentence)

    def share(self, reading: str, seeds: list[int], k: int, p: float, sentence: str) -> Alarm:
        """An alarm about an event in k of the runs."""
        from ..shares import exact_interval

        return self._alarm(reading, "share", seeds, (k / len(seeds), *exact_interval(k, len(seeds))), p, sentence)

    def untestable(self, reading: str, seeds: list[int], sentence: str) -> Alarm:
        """What has too few seeds for the rule."""
        return self._alarm(reading, "", seeds, (nan, nan, nan), nan, sentence)

    def _alarm(
        self, reading: str, unit: str, seeds: list[int], size: tuple[float, float, float], p: float, sentence: str
    ) -> Alarm:
        where = (self.rule, self.cell, self.arm, self.baseline)
        return Alarm(*where, reading, unit, len(seeds), *size, p, f"{self.cell}: {sentence}", seeds=list(seeds))
