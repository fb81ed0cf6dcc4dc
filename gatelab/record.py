"""The values that are kept: `Step` (training), `Row` (every measurement), `Item` (one answer), `Finding` (analysis).

A row is long and tidy: what was measured, in which unit, and where. Thresholds, layers and the like are coordinates,
never part of a metric's name, so one query serves all of them. `docs/metrics.md` defines each metric.
"""

from dataclasses import dataclass, field, fields
from math import isfinite
from operator import attrgetter
from typing import Any

COORDINATES = (
    "layer", "head", "stack", "site", "stage", "query", "key", "bin", "channel", "threshold",
    "length", "depth", "domain", "task", "split", "intervention", "dose",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of a group of M runs; the lists have length M. `nan` marks a run that has stopped.

    `step` counts from 1; `tokens` is the number of tokens each run has seen after it; `loss` is in nats a token,
    `grad_norm` the global 2-norm before clipping, `diverged` says which runs stopped at this step. `first_mass`, at the steps
    that `probe.watch` asks for: by run, layer and head the first-token mass of the step's batch, not-a-number where a layer
    does not tell it; None for a run that had stopped before.
    """

    step: int
    tokens: int
    lr: list[float]
    loss: list[float]
    grad_norm: list[float]
    diverged: list[bool]
    first_mass: list[list[list[float]] | None] | None = None


# Not frozen, and to be treated as if it were: a frozen one takes six times as long to make, and one look makes thousands.
@dataclass(slots=True, unsafe_hash=True)
class Row:
    """One number. `run` is the run's fingerprint, `source` the part that measured it (train, eval, or a probe's name)."""

    run: str
    step: int
    source: str
    metric: str
    value: float
    unit: str
    layer: int | None = None
    head: int | None = None
    stack: str | None = None  # self, cross, encoder
    site: str | None = None
    stage: str | None = None  # before or after the gate
    query: int | None = None
    key: int | None = None
    bin: int | None = None
    channel: int | None = None
    threshold: float | None = None
    length: int | None = None
    depth: float | None = None
    domain: str | None = None
    task: str | None = None
    split: str | None = None
    intervention: str | None = None
    dose: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row without the coordinates it does not have; not-a-number and infinities become strings (JSON has none)."""
        out = {name: value for name, value in zip(_NAMES, _FIELDS(self), strict=True) if value is not None}
        out["value"] = _json_number(self.value)
        return out


_NAMES = tuple(f.name for f in fields(Row))
_FIELDS = attrgetter(*_NAMES)


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluated item: what was asked, what was expected, what came."""

    run: str
    step: int
    task: str
    item: int
    correct: bool | None
    score: float
    answer: str
    given: str
    factors: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Every field; a score that is no finite number becomes a string, as in `Row.as_dict`."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        return out | {"score": _json_number(self.score)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about a pair of arms in one cell, with everything needed to judge it.

    `effect` is the mean over seeds of (arm minus baseline) in `unit`; `low` and `high` bound it at `confidence`;
    `p` is two-sided, `q` after false-discovery control over the study's primary metrics (None for a secondary one).
    `equivalence` is the largest |difference| that counts as nothing (None: none was declared) and `p_equivalence` the
    two-one-sided-tests p for lying inside it; `detectable` is the smallest true effect seen with 80% power.
    """

    cell: str
    arm: str
    baseline: str
    metric: str
    unit: str
    primary: bool
    direction: str  # lower-is-better, higher-is-better, neutral
    n_pairs: int
    baseline_mean: float
    arm_mean: float
    effect: float
    low: float
    high: float
    confidence: float
    p: float
    q: float | None
    equivalence: float | None
    p_equivalence: float | None
    detectable: float
    verdict: str  # lower, higher, equivalent, unclear, untestable, refused
    sentence: str
    seeds: list[int] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Metric:
    """How the analysis reads one row metric: its words, what is better, what counts as nothing.

    `name` is the row metric, `label` human words without an article ('held-out loss'). `equivalence` bounds the
    |difference|, in `unit`, that counts as nothing. A `bimodal` metric is reported by shares: a run shows it when its
    value is above `threshold`, and `event` says so in words ('shows a sink'; None: '<label> is above <threshold>');
    its `equivalence` is not tested. One that is also `graded` counts such runs only where their values lie in two groups, and else
    compares means (docs/metrics.md).
    `primary` metrics form the family of the study's false-discovery control and are declared before looking.

    Raises:
        ValueError: for an unknown direction, a bound that is not positive, a bimodal metric without a threshold.
    """

    name: str
    unit: str
    direction: str  # lower-is-better, higher-is-better, neutral
    label: str
    equivalence: float | None = None
    bimodal: bool = False
    threshold: float | None = None
    primary: bool = False
    event: str | None = None
    graded: bool = False

    def __post_init__(self) -> None:
        allowed = ("lower-is-better", "higher-is-better", "neutral")
        if self.direction not in allowed:
            raise ValueError(
                f"Metric.direction={self.direction!r} of {self.name}: expected one of {', '.join(allowed)}"
            )
        if self.equivalence is not None and not 0 < self.equivalence < float("inf"):
            raise ValueError(
                f"Metric.equivalence={self.equivalence!r} of {self.name}: the bound on |difference| must be positive"
                f" and finite; leave it out to declare none"
            )
        if self.bimodal and self.threshold is None:
            raise ValueError(
                f"Metric {self.name} is bimodal but has no threshold; a run shows it when its value is above one"
            )


def _json_number(value: float) -> float | str:
    return value if isfinite(value) else str(value)
