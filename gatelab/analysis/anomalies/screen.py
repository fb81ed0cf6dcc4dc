"""The screen: every rule on every gate in every cell, and the false-discovery rate over all of them.

What cannot be tested is flagged by name: too few seeds, a reading that some cells lack, a comparison that is refused; and so is
noise that t's level is not kept under.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan

from ..student import q_values
from .alarm import Alarm, Place, Rule
from .evidence import Evidence
from .skew import skew_notices


@dataclass(frozen=True, slots=True)
class Screened:
    """All alarms with their q, and what a reader has to know before them."""

    alarms: list[Alarm]
    flags: list[str]
    fdr: float

    @property
    def anomalies(self) -> list[Alarm]:
        """The smallest q first."""
        return sorted((a for a in self.alarms if a.verdict == "anomaly"), key=lambda a: (a.q, a.p))


def screen(evidence: Evidence, rules: Sequence[Rule], *, fdr: float = 0.10) -> Screened:
    """Run the rules; an alarm whose q is not above `fdr` is an anomaly.

    Raises:
        ValueError: fdr not between 0 and 1.
    """
    if not 0 < fdr < 1:
        raise ValueError(f"fdr={fdr!r}: expected a number between 0 and 1, as in 0.1")
    alarms = [
        a
        for rule in rules
        for cell in evidence.cells
        for arm in evidence.arms
        for a in _look(rule, evidence, cell, arm)
    ]
    flags = [f"{cell}, {arm}: {why}" for (cell, arm), why in evidence.refused.items() if arm in evidence.arms]
    if evidence.not_pooled:
        flags.append(f"nothing is pooled over cells: {evidence.not_pooled}")
    return Screened(_judged(alarms, fdr), [*flags, *_holes(evidence, rules), *skew_notices(evidence)], fdr)


def _look(rule: Rule, evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    if (cell, arm) in evidence.refused:
        return
    there = [
        name
        for family in rule.reads
        for name in evidence.family(family)
        if evidence.has(name, cell, arm, is_paired=rule.is_paired)
    ]
    if not there or (rule.needs_all and len(there) < len(rule.reads)):
        return
    counts = {
        name: evidence.pairs(name, cell, arm).seeds if rule.is_paired else list(evidence.runs(name, cell, arm))
        for name in there
    }
    most = max(counts, key=lambda name: len(counts[name]))
    if len(counts[most]) < rule.min_seeds:
        what = "pairs" if rule.is_paired else "runs"
        text = f"{cell}: {rule.name} of {arm} needs {rule.min_seeds} {what} and has {len(counts[most])}; add seeds"
        place = Place(rule.name, cell, arm, evidence.baseline)
        yield replace(place.untestable(most, counts[most], ""), sentence=text, verdict="untestable")
        return
    for alarm in rule.test(evidence, cell, arm):
        if alarm.n_pairs >= rule.min_seeds:
            excluded = evidence.pairs(alarm.reading, cell, arm).excluded if rule.is_paired else []
            yield replace(alarm, notes=list(excluded))


def _judged(alarms: list[Alarm], fdr: float) -> list[Alarm]:
    family = [a.p for a in alarms if not isnan(a.p)]
    if not family:
        return [replace(a, verdict="untestable") for a in alarms]
    q = iter(q_values(family))
    out = []
    for a in alarms:
        own = float("nan") if isnan(a.p) else float(next(q))
        out.append(replace(a, q=own, verdict="untestable" if isnan(own) else "anomaly" if own <= fdr else "none"))
    return out


def _holes(evidence: Evidence, rules: Sequence[Rule]) -> Iterator[str]:
    """Readings that some cells have and others lack, a line a set of cells: the rules then speak of the others alone."""
    holes: dict[tuple[str, ...], list[str]] = {}
    paired = {family: rule.is_paired for rule in rules for family in rule.reads}
    for family, is_paired in paired.items():
        for name in evidence.family(family):
            if ":" in name:
                continue  # a task or a domain belongs to its cell
            has = [
                c
                for c in evidence.cells
                if any(evidence.has(name, c, arm, is_paired=is_paired) for arm in evidence.arms)
            ]
            lacks = [c for c in evidence.cells if c not in has]
            if has and lacks:
                holes.setdefault(tuple(lacks), []).append(name)
    for lacks, names in holes.items():
        n, some = len(evidence.cells), ", ".join(lacks[:3]) + (" …" if len(lacks) > 3 else "")
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        yield (
            f"{', '.join(names)} {are} missing in {len(lacks)} of {n} cells ({some}); what is said of {them} speaks of the others"
            f" alone{', and nothing is pooled' if n <= 2 * len(lacks) else ''}"
        )
