"""Causes: registered explanations of an anomaly, what would refute each, and how the study's rows stand to it.

A hypothesis of the table (hypotheses.py) is a list of tests. A test says what it manipulates and decides at 5%: supported,
refuted or undecided, by one-sided t and by equivalence (TOST) within the bound that counts as nothing; or not run, with
what makes its rows. Nothing is corrected over hypotheses: a card says what each test alone says, and of which reading.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any, Literal

from ..study.metrics import STUDY_METRICS
from .anomalies.evidence import Comparison, Evidence
from .anomalies.readings import READINGS
from .student import Estimate, estimate, interval, p_above, p_equivalent
from .to_run import Recipe, together

LEVEL = 0.05
NOTHING = STUDY_METRICS["val_loss"].metric.equivalence  # nats a token; what differs by less counts as nothing
LOSS, MASS = "val_loss", "first_token_mass"
EDITED = "loss_change"  # what the rows of edits hold, and nothing else
_MARKS = {"supported": "+", "refuted": "−", "undecided": "?", "not run": "·"}
_OPPOSITE = {"supported": "refuted", "refuted": "supported", "undecided": "undecided"}


@dataclass(frozen=True, slots=True)
class Decision:
    """One test: supported, refuted, undecided, or not run without rows; the number it rests on with its 95% interval, and
    without rows what to do to get them. `arms` are those that would have to be run for it, by their names or written out.
    `reading` is what it read."""

    test: str
    manipulates: str
    predicts: str
    verdict: str = "not run"
    numbers: str = ""
    estimate: float = nan
    low: float = nan
    high: float = nan
    n: int = 0
    to_do: list[str] = field(default_factory=list)
    reading: str = ""
    arms: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """The verdict's sign."""
        return _MARKS[self.verdict]


@dataclass(frozen=True)
class Ledger:
    """What there is to judge from. `edits` are {(fingerprint, word, dose): change in loss} of interventions; `runs`
    {(cell, arm): {seed: fingerprint}} the finished ones; `models` and `bases` the configurations of arms and of cells;
    `factors` the keys in which cells differ; `courses` {fingerprint: {event: [(step, value)]}} what was seen while they trained
    (onsets.py). `folder`, `study` and `recipe` are for commands, `only` the gates that they are asked for, where not for all, and
    `unstored` the runs whose weights are not there. `reading` is the one that a card asks of: a claim's own."""

    evidence: Evidence
    factors: Mapping[str, Mapping[str, Any]]
    runs: Mapping[Comparison, Mapping[int, str]]
    models: Mapping[Comparison, Mapping[str, Any]]
    bases: Mapping[str, Mapping[str, Any]]
    edits: Mapping[tuple[str, str, float], float]
    folder: str
    study: str
    courses: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] = field(default_factory=dict)
    reading: str = LOSS
    recipe: Recipe | None = None
    only: Sequence[str] = ()
    unstored: Container[str] = frozenset()

    @property
    def label(self) -> str:
        """The reading in words."""
        known = READINGS.get(self.reading.partition(":")[0])
        metric = self.evidence.readings.get(self.reading) or (known and known.metric)
        return metric.label if metric else self.reading

    @property
    def bound(self) -> float | None:
        """The difference in the reading that counts as nothing, if one was declared."""
        metric = self.evidence.readings.get(self.reading)
        return NOTHING if self.reading == LOSS else metric.equivalence if metric else None


@dataclass(frozen=True, slots=True)
class Test:
    """A function of (ledger, cell, arm). `edits` are the interventions whose rows it reads, each with whether they are of the
    gated runs, else of the ungated ones; a word may end in a third of the layers, as in gate-mean:first-third."""

    judge: Callable[[Ledger, str, str], Decision]
    edits: tuple[tuple[str, bool], ...] = ()

    def __call__(self, ledger: Ledger, cell: str, arm: str) -> Decision:
        return self.judge(ledger, cell, arm)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """`source` is where it was put forward; `says` what the verdicts of its tests together mean, where that is more than its
    own verdict. `of` is what it explains: any reading that a claim is about, the loss alone, or nothing but itself, as an
    order of events."""

    name: str
    claim: str
    source: str
    tests: tuple[Test, ...]
    says: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    of: Literal["reading", "loss", "itself"] = "itself"


@dataclass(frozen=True, slots=True)
class Card:
    """A hypothesis on one arm of one cell: refuted where any test refutes it, supported where all support it, not run where
    none was, else undecided; and what its tests mean together. `reading` is what it was asked of, empty of one about itself;
    `study` is whose cell and arm these are, where not those of the study that was asked."""

    cell: str
    arm: str
    hypothesis: str
    claim: str
    verdict: str
    decisions: list[Decision]
    says: str = ""
    reading: str = ""
    study: str = ""

    @property
    def mark(self) -> str:
        """The verdict's sign."""
        return _MARKS[self.verdict]


def cards(
    ledger: Ledger, hypotheses: Sequence[Hypothesis], cell: str, arm: str, readings: Sequence[str] = (LOSS,)
) -> list[Card]:
    """Every hypothesis on this arm of this cell; those that explain a reading on each of these, those of the loss on the loss
    alone where it is among them."""
    asked = {"itself": ("",), "reading": readings, "loss": (LOSS,) if LOSS in readings else readings}
    found = [
        _card(replace(ledger, reading=reading or LOSS), h, cell, arm, reading)
        for h in hypotheses
        for reading in asked[h.of]
    ]
    return together(ledger, found)


def _card(ledger: Ledger, h: Hypothesis, cell: str, arm: str, reading: str) -> Card:
    # Of a comparison that is refused nothing is judged, not even over its own runs: they may be of two versions of the code.
    why_not = ledger.evidence.refused.get((cell, arm), "")
    readings = ledger.evidence.readings
    if not why_not and h.of == "reading" and readings and reading not in readings:
        why_not = f"no finished run of this study has {reading}, and no other reading decides for it"
    about, asked = "are not judged", reading or "its rows"
    if h.of == "loss" and reading != LOSS:
        why_not = why_not or f"none of them reads the {ledger.label}"
        about, asked = "are of the held-out loss", LOSS
    if why_not:
        decisions = [Decision("its tests", "", about, to_do=[why_not], reading=asked)]
    else:
        decisions = [test(ledger, cell, arm) for test in h.tests]
    said = {d.verdict for d in decisions}
    verdict = (
        "refuted" if "refuted" in said
        else next(iter(said)) if said in ({"supported"}, {"not run"})
        else "undecided"
    )  # fmt: skip
    says = h.says.get(tuple(d.verdict for d in decisions), "")
    return Card(cell, arm, h.name, f"{h.claim} ({h.source})", verdict, decisions, says, reading)


def besides(model: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """All of a model's configuration that two arms must share which differ in these keys; widths of the feed-forward layer and
    of experts follow the gate's weights."""
    rest = {k: v for k, v in sorted(model.items()) if k not in (*keys, "d_ff")}
    experts = rest.get("moe") or {}
    return rest | {"moe": {k: v for k, v in experts.items() if k != "d_expert"}}


def near_zero(e: Estimate, bound: float = NOTHING) -> str:
    """Supported: |mean| is below the bound (TOST); refuted: it is above."""
    if p_equivalent(e, bound) < LEVEL:
        return "supported"
    return "refuted" if p_above(replace(e, mean=abs(e.mean)), bound) < LEVEL / 2 else "undecided"


def not_nothing(e: Estimate, bound: float = NOTHING) -> str:
    """Supported: |mean| is above the bound; refuted: it is below (TOST)."""
    return _OPPOSITE[near_zero(e, bound)]


def no_more(e: Estimate) -> str:
    """Supported: the mean is below `NOTHING`; refuted: it is above."""
    return _OPPOSITE[above_nothing(e)]


def above_nothing(e: Estimate) -> str:
    """Supported: the mean is above `NOTHING`; refuted: it is below."""
    return _above(e, NOTHING)


def above_zero(e: Estimate) -> str:
    """Supported: the mean is above zero; refuted: it is below."""
    return _above(e, 0.0)


def _above(e: Estimate, bound: float) -> str:
    if p_above(e, bound) < LEVEL:
        return "supported"
    return "refuted" if p_above(replace(e, mean=-e.mean), -bound) < LEVEL else "undecided"


def decided(
    found: Decision, values: Sequence[float], rule: Callable[[Estimate], str], unit: str, *, sign: int = 1
) -> Decision:
    """The test with its verdict on two or more seeds' values; the rule sees `sign` times them."""
    e = estimate(values, scale=max(map(abs, values)))
    if not e.sigma > 0:
        numbers = f"{e.mean:.4g} {unit} in each of {e.n} seeds: no spread to test against"
        return replace(found, verdict="undecided", numbers=numbers, estimate=e.mean, n=e.n)
    low, high = interval(e, 1 - LEVEL)
    numbers = f"{e.mean:+.4g} {unit} (95% interval {low:+.4g} to {high:+.4g}, {e.n} seeds)"
    return replace(
        found, verdict=rule(replace(e, mean=sign * e.mean)), numbers=numbers, estimate=e.mean, low=low, high=high, n=e.n
    )
