"""Outcomes of runs, put into pairs: the same seed in the arm and in the baseline of one cell.

A pair counts when both of its runs are done, gave a finite number and may be compared. Every other pair is named in
`Pairs.excluded`, because a run that diverged is a result and must not vanish from a table of means.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan

import numpy as np

from ..record import Metric
from .graded import splits

_ENDINGS = {
    "diverged": "diverged",
    "failed": "failed",
    "missing": "is missing",
    "planned": "has not run",
    "running": "is still running",
    "stopped": "was stopped",
    "lost": "was lost",
    "damaged": "is damaged",
    "oom": "ran out of memory",
    "timeout": "ran out of time",
    "disk-full": "found the disk full",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The value of one metric in one run; `status` is how the run ended ('done', 'diverged', 'failed', 'missing', …).

    Only 'done' with a finite value enters a comparison. A run that was planned and has no value should be given too,
    with its status and value nan, so that it can be named. `unpaired` says why a run of an arm makes no pair with its
    baseline's, though both are done; empty where it does. `cut` says why a run that is done has no final value, as in 'has rows
    to step 10 of 20 only'; empty where it has.
    """

    cell: str
    arm: str
    seed: int
    metric: str
    value: float
    status: str = "done"
    unpaired: str = ""
    cut: str = ""

    @property
    def usable(self) -> bool:
        return self.status == "done" and isfinite(self.value)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The seeds that both arms finished in one cell, with the values of both, and a clause for every run left out."""

    cell: str
    arm: str
    metric: Metric
    seeds: list[int]
    baseline_values: np.ndarray
    arm_values: np.ndarray
    excluded: list[str]

    @property
    def differences(self) -> np.ndarray:
        """Arm minus baseline, seed by seed."""
        return self.arm_values - self.baseline_values

    @property
    def changes(self) -> tuple[int, int] | None:
        """(seeds that lose the event, seeds that gain it) against the baseline, for a bimodal metric whose runs fall on
        both sides of its threshold, a graded one's in two groups; else None: then a mean describes the runs of each arm."""
        if not self.metric.bimodal or not self.seeds:
            return None
        if self.metric.graded and not splits([*self.baseline_values, *self.arm_values], self.metric.threshold):
            return None
        before, after = self.baseline_values > self.metric.threshold, self.arm_values > self.metric.threshold
        if len({*before.tolist(), *after.tolist()}) < 2:
            return None
        return int((before & ~after).sum()), int((~before & after).sum())

    @property
    def is_constant(self) -> bool:
        """Whether all differences are the same up to the rounding of float64: no spread to test against."""
        return bool(np.ptp(self.differences) <= 1e-12 * self.scale) if self.seeds else True

    @property
    def scale(self) -> float:
        """The largest absolute value."""
        return float(max(np.abs(self.baseline_values).max(initial=0), np.abs(self.arm_values).max(initial=0)))


class Outcomes:
    """Outcomes by cell and arm.

    Raises:
        ValueError: when one run has two values for one metric.
    """

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._groups: dict[tuple[str, str], dict[str, dict[int, Outcome]]] = {}
        self._status: dict[tuple[str, str, int], str] = {}
        self._cut: dict[tuple[str, str, int], str] = {}
        for o in outcomes:
            seeds = self._groups.setdefault((o.cell, o.arm), {}).setdefault(o.metric, {})
            if o.seed in seeds:
                raise ValueError(
                    f"two outcomes for {o.metric} of seed {o.seed} of {o.arm} in {o.cell};"
                    f" give each run's final value once"
                )
            seeds[o.seed] = o
            if o.cut:
                self._cut.setdefault((o.cell, o.arm, o.seed), o.cut)
            # That a run diverged is itself an outcome of it, which is there.
            if self._status.get((o.cell, o.arm, o.seed), "done") == "done":
                self._status[o.cell, o.arm, o.seed] = o.status

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for _, arm in self._groups))

    def any_diverged(self, cell: str, arms: Collection[str]) -> bool:
        """Whether a run of these arms diverged there."""
        return any(s == "diverged" and c == cell and arm in arms for (c, arm, _), s in self._status.items())

    @property
    def metrics(self) -> set[str]:
        return {name for metrics in self._groups.values() for name in metrics}

    def there(self, cell: str, arm: str) -> bool:
        """Whether any run of the arm in this cell was given."""
        return (cell, arm) in self._groups

    def of(self, cell: str, arm: str, metric: Metric) -> dict[int, Outcome]:
        """{seed: outcome}, empty where the metric was not measured."""
        return self._groups.get((cell, arm), {}).get(metric.name, {})

    def measured(self, cell: str, arm: str, metric: Metric) -> bool:
        """Whether the arm's runs in this cell have the metric: an ungated model has no gate mean, done or failed.

        An arm without any finished run is judged by the other arms of its cell.
        """
        same_cell = [metrics for (c, _), metrics in self._groups.items() if c == cell]
        arm_only = [metrics for (c, a), metrics in self._groups.items() if (c, a) == (cell, arm)]
        for groups in (arm_only, same_cell):
            done = {name for metrics in groups for name, seeds in metrics.items() if _any_done(seeds)}
            if done:
                return metric.name in done
        return any(metric.name in metrics for metrics in same_cell)

    def pairs(self, cell: str, arm: str, baseline: str, metric: Metric) -> Pairs:
        """The arm and the baseline over the seeds of either."""
        ours, theirs = self.of(cell, arm, metric), self.of(cell, baseline, metric)
        seeds, excluded = [], []
        for seed in sorted({*ours, *theirs}):
            problems = [
                f"seed {seed} of {name} {self._ending(cell, name, seed, metric)}"
                for name, side in ((baseline, theirs), (arm, ours))
                if seed not in side or not side[seed].usable
            ]
            if not problems and ours[seed].unpaired:
                problems = [ours[seed].unpaired]
            excluded += problems
            if not problems:
                seeds.append(seed)
        values = [np.array([side[s].value for s in seeds], dtype=float) for side in (theirs, ours)]
        return Pairs(cell, arm, metric, seeds, *values, excluded)

    def _ending(self, cell: str, arm: str, seed: int, metric: Metric) -> str:
        """Why a run has no usable value; one that never got to this metric is known by its others."""
        status = self._status.get((cell, arm, seed), "done")
        if status != "done":
            return _ENDINGS.get(status, f"ended as {status}")
        outcome = self.of(cell, arm, metric).get(seed)
        if (cut := outcome.cut if outcome else self._cut.get((cell, arm, seed), "")) and not (
            outcome and outcome.usable
        ):
            return cut
        # A run without rows is given with nan, so that it can be named.
        return "has no value" if outcome is None or isnan(outcome.value) else f"gave {outcome.value}"


def comparisons(
    table: Outcomes, metrics: Sequence[Metric], *, baseline: str, arms: Sequence[str], cells: Sequence[str]
) -> Iterator[Pairs]:
    """Every cell x metric x arm where both sides have the metric; `arms` and `cells` choose and give the order.

    Raises:
        ValueError: when the baseline is not among the arms or has no outcome at all.
    """
    if baseline not in arms:
        raise ValueError(
            f"baseline={baseline!r} is not among the arms {', '.join(arms)}; every arm is compared with it"
        )
    if table.arms and baseline not in table.arms:
        raise ValueError(
            f"baseline={baseline!r} has no outcome; outcomes exist for {', '.join(table.arms)}. Run the baseline first"
        )
    for cell in cells:
        for metric in metrics:
            for arm in arms:
                if arm != baseline and all(table.measured(cell, side, metric) for side in (arm, baseline)):
                    yield table.pairs(cell, arm, baseline, metric)


@dataclass(frozen=True, slots=True)
class PairingGain:
    """What pairing by seed bought for one cell and arm.

    `gain` is the variance that the difference would have between unrelated runs (the sum of both arms' variances) over
    the variance it has between runs of one seed: above 1 pairing helped. `correlation` needs three pairs, and with
    three it is a hint, not a measurement; both are nan where they cannot be computed.
    """

    cell: str
    arm: str
    metric: str
    n: int
    correlation: float
    variance_paired: float
    variance_unpaired: float
    gain: float


def pairing_gain(
    outcomes: Outcomes,
    metric: Metric,
    *,
    baseline: str,
    arms: Sequence[str],
    cells: Sequence[str],
    refused: Collection[tuple[str, str]] = (),
) -> list[PairingGain]:
    """One row a cell and arm with two or more pairs, without those (cell, arm) that are `refused`.

    Raises:
        ValueError: as `comparisons` does.
    """
    return [
        _gain(pairs)
        for pairs in comparisons(outcomes, [metric], baseline=baseline, arms=arms, cells=cells)
        if len(pairs.seeds) >= 2 and (pairs.cell, pairs.arm) not in refused
    ]


def _gain(pairs: Pairs) -> PairingGain:
    a, b = pairs.baseline_values, pairs.arm_values
    unpaired = float(a.var(ddof=1) + b.var(ddof=1))
    paired = 0.0 if pairs.is_constant else float(pairs.differences.var(ddof=1))
    spread = len(a) >= 3 and np.ptp(a) > 0 and np.ptp(b) > 0
    return PairingGain(
        cell=pairs.cell,
        arm=pairs.arm,
        metric=pairs.metric.name,
        n=len(a),
        correlation=float(np.corrcoef(a, b)[0, 1]) if spread else nan,
        variance_paired=paired,
        variance_unpaired=unpaired,
        gain=unpaired / paired if paired > 0 else nan,
    )


def _any_done(seeds: dict[int, Outcome]) -> bool:
    return any(o.status == "done" for o in seeds.values())
