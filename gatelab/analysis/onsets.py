"""What comes first in training: the step at which sink, value drain, massive activation and shut gate each pass a threshold.

Read of the layer that is furthest, since a sink of one layer is none in the mean over many. One look alone is no event: the next
one must be past the threshold too. That order is tested over seeds by the sign test; seeds in which both come between the same
two looks, or one of them does not come, say nothing of it and are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import comb
from statistics import median

from ..store import StudyFolder
from .anomalies.readings import SINK
from .anomalies.sinks import MASSIVE
from .causes import LEVEL, Decision, Ledger, Test
from .digest import digest, table
from .shares import exact_interval
from .to_run import anew, seeds_more

DRAINED = 0.3  # of value_drain, below which docs/metrics.md calls a value drained
SHUT = 0.5  # of a layer's scores that are below 0.1
LOOKS = 10  # besides that before training: fewer do not tell events apart

Course = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Event:
    """What a digest's `courses` has of the layer with the largest value, or the least where `is_below`; past when that is above
    the bound, or below."""

    what: str
    course: str
    bound: float
    is_below: bool = False

    @property
    def reading(self) -> str:
        return self.course.removeprefix("furthest:")

    def onset(self, course: Course) -> int | None:
        """The first step past the bound whose next look is past it too; None where there is none."""
        past = [(step, value < self.bound if self.is_below else value > self.bound) for step, value in sorted(course)]
        return next((step for (step, now), (_, then) in pairwise(past) if now and then), None)


EVENTS: dict[str, Event] = {
    "sink": Event(f"the sink (first-token mass above {SINK:g})", "furthest:first_token_mass", SINK),
    "drain": Event(f"the value drain (below {DRAINED:g})", "furthest:value_drain", DRAINED, is_below=True),
    "massive": Event(f"the massive activation (above {MASSIVE:g} medians)", "furthest:massive_ratio", MASSIVE),
    "shut": Event(f"the shut gate (more than {SHUT:g} of a layer's scores below 0.1)", "gate_shut", SHUT),
}


def courses(folder: StudyFolder, cells: Sequence[str]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{run: {event: [(step, value of the layer that is furthest)]}} of the probes' looks at the runs of these cells; of the stack
    and the gate that a run is judged by (the decoder's, and the gate at G1 where there is one)."""
    names = {(e["cell"], e["arm"], e["seed"]): e["fingerprint"] for e, _ in folder.planned() if e["cell"] in cells}
    events = {event.course: name for name, event in EVENTS.items()}
    out: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (*run, reading), course in table(digest(folder), "courses", cells):
        if reading in events and tuple(run) in names:
            out.setdefault(names[tuple(run)], {})[events[reading]] = course
    return out


def comes_first(one: str, other: str, *, of_gate: bool = False) -> Test:
    """One event comes before another in the training of the arm's runs, or of the baseline's."""
    a, b = EVENTS[one], EVENTS[other]

    def test(ledger: Ledger, cell: str, arm: str) -> Decision:
        whose = "the gated runs" if of_gate else "the ungated runs"
        found = Decision(
            f"{a.what} against {b.what}",
            "nothing: looks while training",
            f"the first comes before the other in {whose}",
            reading=f"{a.reading}, {b.reading}",
        )
        runs = ledger.runs.get((cell, arm if of_gate else ledger.evidence.baseline), {}).values()
        both = [(c[one], c[other]) for name in runs if one in (c := ledger.courses.get(name, {})) and other in c]
        looks = min((len(course) for pair in both for course in pair), default=0)
        if not both or looks <= LOOKS:
            return replace(found, n=len(both), to_do=_more_looks(ledger, cell, 2 * LOOKS))
        return _ordered(replace(found, n=len(both)), (ledger, cell), [(a.onset(x), b.onset(y)) for x, y in both], looks)

    return Test(test)


def _ordered(
    found: Decision, of: tuple[Ledger, str], onsets: list[tuple[int | None, int | None]], looks: int
) -> Decision:
    """By the one-sided sign test, either way, over the seeds in which both came at looks of their own."""
    both = [(x, y) for x, y in onsets if x is not None and y is not None]
    k, n = sum(x < y for x, y in both), sum(x != y for x, y in both)
    alone = [sum(x is not None and y is None for x, y in onsets), sum(x is None and y is not None for x, y in onsets)]
    neither = sum(x is None and y is None for x, y in onsets)
    parts = [f"the first earlier in {k} of {len(onsets)} seeds, the other in {n - k}"]
    parts += [f"at one look in {len(both) - n}"] if len(both) > n else []
    parts += [f"{who} alone in {count}" for who, count in (("the first", alone[0]), ("the other", alone[1])) if count]
    parts += [f"neither in {neither}"] if neither else []
    if both:
        parts.append(f"median steps {median(x for x, _ in both):g} and {median(y for _, y in both):g}")
    if not n:
        to_do = _more_looks(*of, 4 * (looks - 1)) if both else []
        return replace(found, verdict="undecided", numbers="; ".join(parts), to_do=to_do)
    p = [sum(comb(n, i) for i in range(m, n + 1)) / 2**n for m in (k, n - k)]
    verdict = "supported" if p[0] < LEVEL else "refuted" if p[1] < LEVEL else "undecided"
    low, high = exact_interval(k, n)
    # Seeds that all agree, and are too few for the test.
    to_do = seeds_more(of[0], [of[1]]) if verdict == "undecided" and 0.5**n >= LEVEL else []
    parts.append(f"p = {min(p):.2g}")
    return replace(
        found, verdict=verdict, numbers="; ".join(parts), estimate=k / n, low=low, high=high, n=n, to_do=to_do
    )


def _more_looks(ledger: Ledger, cell: str, times: int) -> list[str]:
    return anew(ledger, cell, f"probe.times={times}", "looks")
