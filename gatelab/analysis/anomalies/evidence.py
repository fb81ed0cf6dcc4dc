"""Evidence: the readings of a study's runs as rules see them, in pairs, with variances shrunk over cells."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan

from ...record import Metric
from ..effects import MODERATION_CELLS
from ..graded import LUCK
from ..lost import lost_at
from ..paired import Outcome, Outcomes, Pairs
from ..refusals import Comparison
from ..student import Estimate, Prior, estimate, fit_prior, moderate, p_above


@dataclass
class Evidence:
    """What a study's runs measured.

    Args:
        outcomes: a value a run and reading; a reading with parts is `family:part`.
        metrics: by the name of the reading, parts without an entry being read as their family.
        baseline: the arm without a gate.
        arms: the gates: neither the baseline nor a control.
        cells: in order.
        rates: {cell: (what else it is, learning rate)}: cells with the same first part differ in the rate alone.
        longer: {cell: source}: cells that go on from another with longer sequences.
        refused: {(cell, arm): why} of comparisons that are not to be made.
        not_pooled: why nothing may be said over several cells; empty where it may.
        lost: {(cell, arm): how many} of arms, the baseline too, most of whose runs in a cell are lost (lost.py): nothing that is
            said over several cells is of these, nor is the variance that cells share, which is not theirs either.
        priors: {(arm, reading): Prior} known from other runs; None: from the cells themselves, where they are ten or more.
    """

    outcomes: Iterable[Outcome]
    metrics: Mapping[str, Metric]
    baseline: str
    arms: Sequence[str]
    cells: Sequence[str]
    rates: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    longer: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[Comparison, str] = field(default_factory=dict)
    not_pooled: str = ""
    lost: Mapping[Comparison, str] = field(default_factory=dict)
    priors: Mapping[tuple[str, str], Prior] | None = None

    def __post_init__(self) -> None:
        self.outcomes = list(self.outcomes)
        self._table = Outcomes(self.outcomes)
        names = dict.fromkeys(o.metric for o in self.outcomes)
        self.readings = {n: self._metric(n) for n in names if n.partition(":")[0] in self.metrics}
        self._pairs: dict[tuple[str, str, str], Pairs] = {}
        self._estimates: dict[tuple[str, str], dict[str, Estimate]] = {}

    def _metric(self, name: str) -> Metric:
        family, _, part = name.partition(":")
        metric = self.metrics[family]
        return replace(metric, name=name, label=f"{metric.label} ({part})") if part else metric

    def family(self, name: str) -> list[str]:
        """The readings of this name: itself, or its parts."""
        return [n for n in self.readings if n == name or n.startswith(f"{name}:")]

    def runs(self, reading: str, cell: str, arm: str) -> dict[int, float]:
        """{seed: value} of an arm's finished runs."""
        if reading not in self.readings:
            return {}
        of = self._table.of(cell, arm, self.readings[reading])
        return {seed: o.value for seed, o in sorted(of.items()) if o.usable}

    def comparable_runs(self, reading: str, cell: str, arm: str) -> dict[int, float]:
        """{seed: value} of the finished runs that may stand beside those of another arm or cell: without the seeds whose run
        is of another version than its baseline's."""
        runs = self.runs(reading, cell, arm)
        of = self._table.of(cell, arm, self.readings[reading]) if runs else {}
        return {seed: value for seed, value in runs.items() if not of[seed].unpaired}

    def pairs(self, reading: str, cell: str, arm: str) -> Pairs:
        """The arm and the baseline over the seeds that both finished."""
        key = (reading, cell, arm)
        if key not in self._pairs:
            self._pairs[key] = self._table.pairs(cell, arm, self.baseline, self.readings[reading])
        return self._pairs[key]

    def has(self, reading: str, cell: str, arm: str, *, is_paired: bool) -> bool:
        """Whether the arm's runs, and the baseline's for a pair, have the reading."""
        sides = (arm, self.baseline) if is_paired else (arm,)
        if reading not in self.readings:
            return False
        of = [self._table.of(cell, side, self.readings[reading]) for side in sides]
        return all(any(o.usable for o in runs.values()) for runs in of)

    def estimate(self, reading: str, cell: str, arm: str) -> Estimate | None:
        """Of the mean difference; None of fewer than two pairs, sigma 0 where all are the same."""
        if (arm, reading) not in self._estimates:
            self._estimates[arm, reading] = self._all(reading, arm)
        return self._estimates[arm, reading].get(cell)

    def prior(self, reading: str, arm: str) -> Prior | None:
        """What the cells say about the variance of any one; None of fewer than ten whose runs are not lost."""
        if self.priors is not None:
            return self.priors.get((arm, reading))
        if self.not_pooled:
            return None
        plain = list(self._moved(reading, arm, self._plain(reading, arm)).values())
        if len(plain) < MODERATION_CELLS:
            return None
        return fit_prior([e.sigma**2 for e in plain], [e.df for e in plain])

    def _plain(self, reading: str, arm: str) -> dict[str, Estimate]:
        out = {}
        for cell in self.cells:
            if (cell, arm) in self.refused or reading not in self.readings:
                continue
            pairs = self.pairs(reading, cell, arm)
            if len(pairs.seeds) >= 2:
                out[cell] = estimate(pairs.differences, scale=pairs.scale)
        return out

    def _all(self, reading: str, arm: str) -> dict[str, Estimate]:
        plain, prior = self._plain(reading, arm), self.prior(reading, arm)
        moved = self._moved(reading, arm, plain)
        if prior is None or not moved:
            return plain
        own = list(moved.values())
        shrunk = moderate(own, prior) if self.priors is None else [_with_prior(e, prior) for e in own]
        return plain | dict(zip(moved, shrunk, strict=True))

    def _moved(self, reading: str, arm: str, plain: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """Those of the cells that share a variance: with some spread, and without most runs of a side lost."""
        return {
            c: e for c, e in plain.items() if e.sigma > 0 and not lost_at(self.lost, reading, c, self.baseline, arm)
        }

    def may_split(self, reading: str, cell: str) -> bool:
        """Whether runs may come in two states, a sink or none, a task solved or not: all readings may, but the held-out loss
        of cells without tasks."""
        arms = (self.baseline, *self.arms)
        is_asked = any(self.runs(name, cell, arm) for name in self.family("accuracy") for arm in arms)
        return is_asked or reading.partition(":")[0] != "val_loss"

    def p_above(self, reading: str, cell: str, e: Estimate, bound: float = 0.0) -> float:
        """The one-sided p that the mean is not above `bound`; nan without spread. Seeds that agree by luck spread too little for
        t: where runs may come in two states it is `LUCK`ⁿ at least."""
        if not e.sigma > 0:
            return nan
        return max(p_above(e, bound), LUCK**e.n if self.may_split(reading, cell) else 0.0)

    def elsewhere(self, cell: str) -> list[str]:
        """The other cells."""
        return [c for c in self.cells if c != cell]

    def at_other_rates(self, cell: str) -> list[str]:
        """The cells that differ from this one in the learning rate alone."""
        kind = self.rates.get(cell, (None,))[0]
        return [c for c in self.elsewhere(cell) if kind is not None and self.rates.get(c, (None,))[0] == kind]

    def source(self, cell: str) -> list[str]:
        """The cell that this one goes on from with longer sequences, if any."""
        return [self.longer[cell]] if cell in self.longer else []

    def only(self, seeds: Iterable[int], priors: Mapping[tuple[str, str], Prior]) -> "Evidence":
        """The evidence of these seeds, with variances shrunk towards what others said."""
        kept = set(seeds)
        return replace(self, outcomes=[o for o in self.outcomes if o.seed in kept], priors=priors)

    def graded(self, readings: Container[str]) -> "Evidence":
        """The evidence with these readings, of those that are bimodal, graded, and no others."""
        found = replace(self)
        found.readings = {n: replace(m, graded=m.bimodal and n in readings) for n, m in self.readings.items()}
        return found


def _with_prior(e: Estimate, prior: Prior) -> Estimate:
    """The estimate with a variance moved towards that of other runs, whose worth does not grow with the cells tested here."""
    variance = (prior.df * prior.variance + e.df * e.sigma**2) / (prior.df + e.df)
    return replace(e, sigma=variance**0.5, df=prior.df + e.df)
