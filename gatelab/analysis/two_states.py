"""Readings that a run shows or does not, and exact tests of what their states depend on.

Runs with a sink and runs without have no mean that describes them, so states are counted, and compared between the runs of one
seed: two arms of a cell, or two cells that differ in one key. Of the seeds that have it in one alone, under no dependence as many
have it in either: McNemar's exact test. Of several pairs of levels the smallest p counts, times their number: Holm's first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from math import nan

from ..record import Metric
from .anomalies.evidence import Comparison, Evidence
from .anomalies.gates import DEAD, EVERYWHERE
from .anomalies.readings import SINK
from .causes import LEVEL, Decision, Ledger
from .shares import exact_interval, p_changes, seeds_needed
from .to_run import seeds_more

Level = float | str


@dataclass(frozen=True, slots=True)
class State:
    """A run has it where its reading is above the bound. `is_kept`: only seeds whose ungated run has it are asked, of which it
    is told whether the gate leaves it."""

    words: str
    above: float
    is_kept: bool = False


# The bounds are those of the rules (anomalies/).
STATES: dict[str, State] = {
    "first_token_mass": State("the first-token sink stays", SINK, is_kept=True),
    "gate_shut": State("a layer's gate is shut nearly everywhere", EVERYWHERE),
    "gate_open": State("a layer's gate is open nearly everywhere", EVERYWHERE),
    "gate_dead": State(f"more than {DEAD:.0%} of the heads are dead", DEAD),
    "unstable": State("a run diverges or has a loss spike", 0.5),
}


def state_of(metric: Metric) -> State | None:
    """What is counted of a reading; None of one that has means."""
    if metric.name in STATES:
        return STATES[metric.name]
    if not metric.bimodal:
        return None
    return State(metric.event or f"the {metric.label} is above {metric.threshold:.3g}", metric.threshold)


def has_it(evidence: Evidence, reading: str, state: State, cell: str, arm: str) -> dict[int, bool]:
    """{seed: whether the arm's run is in the state} of comparable runs; where it is one to be kept, of those seeds alone whose
    ungated run is in it."""
    if not state.is_kept:
        return {seed: value > state.above for seed, value in evidence.comparable_runs(reading, cell, arm).items()}
    pairs = evidence.pairs(reading, cell, arm)
    had, has = pairs.baseline_values > state.above, pairs.arm_values > state.above
    return {seed: bool(it) for seed, was, it in zip(pairs.seeds, had, has, strict=True) if was}


def mark(reading: str, state: State | None) -> str:
    """What a test read, for its card."""
    return f"{reading} > {state.above:.3g}" if state else reading


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two levels of what may matter: of `n` seeds with runs at both, those that have it at the one alone, and at the other."""

    one: Level
    other: Level
    n: int
    alone_at_one: int
    alone_at_other: int

    @property
    def p(self) -> float:
        """Two-sided."""
        return p_changes(self.alone_at_one, self.alone_at_other)


def contrasts(levels: Mapping[Level, Mapping[int, bool]]) -> list[Contrast]:
    """Each two levels with runs of one seed."""
    out = []
    for (one, ours), (other, theirs) in combinations(levels.items(), 2):
        both = ours.keys() & theirs.keys()
        if both:
            lost, gained = (sum(a[s] and not b[s] for s in both) for a, b in ((ours, theirs), (theirs, ours)))
            out.append(Contrast(one, other, len(both), lost, gained))
    return out


def depending_states(found: Decision, ledger: Ledger, state: State, at: Mapping[Level, Comparison]) -> Decision:
    """Supported where more runs are in the state at one level than at another; `at` are the cell and arm of each. Never refuted:
    no difference in shares was declared to count as nothing."""
    levels = {level: has_it(ledger.evidence, ledger.reading, state, *where) for level, where in at.items()}
    pairs = contrasts(levels)
    if not pairs:
        runs = "an ungated run that has it" if state.is_kept else "a finished run"
        return replace(found, verdict="undecided", numbers=f"no seed has {runs} at two levels")
    surest = min(pairs, key=lambda c: c.p)
    p, changed = min(1.0, len(pairs) * surest.p), surest.alone_at_one + surest.alone_at_other
    counts = ", ".join(f"{sum(it.values())} of {len(it)} at {_named(level)}" for level, it in levels.items() if it)
    after = f" after Holm over {len(pairs)} pairs of levels" if len(pairs) > 1 else ""
    numbers = (
        f"{counts}; {_named(surest.one)} against {_named(surest.other)}, {surest.n} seeds: at the first alone in"
        f" {surest.alone_at_one}, at the other alone in {surest.alone_at_other}; exact p = {p:.2g}{after}"
    )
    share = surest.alone_at_other / changed if changed else nan
    low, high = exact_interval(surest.alone_at_other, changed) if changed else (nan, nan)
    verdict = "supported" if p < LEVEL else "undecided"
    few = verdict == "undecided" and max(c.n for c in pairs) < seeds_needed(LEVEL / len(pairs))
    return replace(
        found, verdict=verdict, numbers=numbers, estimate=share, low=low, high=high, n=surest.n,
        to_do=seeds_more(ledger, [cell for cell, _ in at.values()]) if few else [],
    )  # fmt: skip


def _named(level: Level) -> str:
    return level if isinstance(level, str) else f"{level:g}"
