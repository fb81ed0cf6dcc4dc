"""Outcomes in, findings out: every arm against the baseline, cell by cell and metric by metric.

Per comparison: Student's t on the differences between runs of one seed, with variances shrunk across cells where there
are ten or more; where a bimodal metric has runs in both its regimes, McNemar's exact test on the seeds that changed
regime instead, because three runs that happen to agree would make t certain; a graded one, which has them in no two groups,
by t with a least p. Over the study: Benjamini-Hochberg on the
primary metrics, all cells and arms as one family. Beside each: equivalence within the declared bound, and the smallest
effect that this test could have seen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isnan, nan

import numpy as np

from ..record import Finding, Metric
from .graded import LUCK, no_surer
from .lacking import Lack, lacks
from .lost import lost_at
from .paired import Outcome, Outcomes, Pairs, comparisons
from .refusals import Comparison
from .shares import p_changes, seeds_needed, share
from .student import (
    Estimate,
    detectable_effect,
    discovery_levels,
    estimate,
    fit_prior,
    interval,
    moderate,
    p_equivalent,
    p_two_sided,
    q_values,
)
from .verdicts import compact, refusal, sentence, verdict

MODERATION_CELLS = 10
_POWER = 0.8


@dataclass(slots=True)
class _Test:
    """One comparison on its way to a finding; `estimate` is None where no t test can be made, `refused` why none may be."""

    pairs: Pairs
    estimate: Estimate | None
    level: float
    q: float | None
    notes: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def p(self) -> float:
        """Two-sided; nan where nothing can be tested."""
        if self.refused:
            return nan
        if self.pairs.changes is not None and len(self.pairs.seeds) >= 2:
            return p_changes(*self.pairs.changes)
        if not self.estimate:
            return nan
        p = p_two_sided(self.estimate)
        return no_surer(p, len(self.pairs.seeds)) if self.pairs.metric.graded else p


def effects(
    outcomes: Iterable[Outcome],
    metrics: Sequence[Metric],
    *,
    baseline: str,
    arms: Sequence[str],
    cells: Sequence[str],
    confidence: float = 0.95,
    fdr: float = 0.10,
    refused: Mapping[Comparison, str] | None = None,
    lost: Mapping[Comparison, str] | None = None,
) -> list[Finding]:
    """One finding a cell, metric and arm, in this order of nesting; none where either side lacks the metric, unless it is one that
    it should have (`lacking`): then it is 'untestable' and says so.

    `arms` and `cells` choose what is compared and give the order. What cannot be tested (fewer than two pairs,
    identical differences) is a finding with verdict 'untestable', with nan for what does not exist. What may not be compared,
    `refused` {(cell, arm): why}, is a finding with verdict 'refused', its reason and no number: it has no part in the family, nor
    in the variance that cells share. Of the latter neither has a cell in which most runs of a side are `lost` (lost.py).

    Raises:
        ValueError: when the baseline is not among the arms or has no outcome, a run has two values for a metric, or
            confidence or fdr is not between 0 and 1.
    """
    for name, value in (("confidence", confidence), ("fdr", fdr)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r}: expected a number between 0 and 1, as in 0.95")
    table, why = Outcomes(outcomes), refused or {}
    tests = [
        _Test(
            pairs,
            None if (pairs.cell, pairs.arm) in why else _plain(pairs),
            level=1 - confidence,
            q=nan if pairs.metric.primary else None,
            refused=why.get((pairs.cell, pairs.arm), ""),
        )
        for pairs in comparisons(table, metrics, baseline=baseline, arms=arms, cells=cells)
    ]

    def is_lost(test: _Test) -> bool:
        pairs = test.pairs
        return bool(lost_at(lost or {}, pairs.metric.name, pairs.cell, baseline, pairs.arm))

    for metric in metrics:
        for arm in arms:
            _moderate(
                [t for t in tests if t.pairs.metric is metric and t.pairs.arm == arm and t.estimate and not is_lost(t)]
            )
    for test in tests:
        if test.estimate and test.estimate.sigma == 0:
            test.estimate = None
    _discover([t for t in tests if t.pairs.metric.primary and not isnan(t.p)], fdr)
    found = [_finding(test, table, baseline, confidence, fdr) for test in tests]
    holes = [
        _hole(lack, _finding(_empty(lack), table, baseline, confidence, fdr))
        for lack in lacks(table, metrics, baseline=baseline, arms=arms, cells=cells)
        if (lack.cell, lack.arm) not in why
    ]
    if not holes:
        return found
    order = {key: n for n, key in enumerate((c, m.name, a) for c in cells for m in metrics for a in arms)}
    return sorted([*found, *holes], key=lambda f: order[f.cell, f.metric, f.arm])


def _empty(lack: Lack) -> _Test:
    """The test that cannot be made; of a primary metric it has a place in the family, and no p there."""
    none = np.array([])
    pairs = Pairs(lack.cell, lack.arm, lack.metric, [], none, none, [])
    return _Test(pairs, None, level=nan, q=nan if lack.metric.primary else None)


def _hole(lack: Lack, f: Finding) -> Finding:
    said = f"{f.cell}: the effect of {f.arm} on the {lack.metric.label} cannot be tested: {lack.why}."
    return replace(f, sentence=said, notes=[f"untestable: {lack.why}"])


def _plain(pairs: Pairs) -> Estimate | None:
    if len(pairs.seeds) < 2:
        return None
    e = estimate(pairs.differences)
    return replace(e, sigma=0.0) if pairs.is_constant else e


def _moderate(tests: list[_Test]) -> None:
    """Shrink the variances of one metric and arm towards what its cells have in common."""
    if len(tests) < MODERATION_CELLS:
        return
    prior = fit_prior([t.estimate.sigma**2 for t in tests], [t.estimate.df for t in tests])
    if prior.df == 0:
        return
    worth = "the cells share one variance" if prior.df == inf else f"worth {compact(prior.df)} degrees of freedom"
    for test, shrunk in zip(tests, moderate([t.estimate for t in tests], prior), strict=True):
        test.estimate = shrunk
        test.notes.append(
            f"variance shrunk across {len(tests)} cells"
            f" (prior standard deviation {compact(prior.variance**0.5)}, {worth})"
        )


def _discover(family: list[_Test], fdr: float) -> None:
    if not family:
        return
    p = [t.p for t in family]
    for test, q, level in zip(family, q_values(p), discovery_levels(p, fdr), strict=True):
        test.q, test.level = float(q), level
        test.notes.append(f"one of {len(family)} primary tests; p up to {compact(level)} counts here")


def _finding(test: _Test, table: Outcomes, baseline: str, confidence: float, fdr: float) -> Finding:
    pairs, metric, e = test.pairs, test.pairs.metric, test.estimate
    # Where runs change regime the t interval would contradict the exact test: none is given.
    low, high = interval(e, confidence) if e and pairs.changes is None else (nan, nan)
    widest = 1.0 if metric.unit == "share" else inf  # two shares differ by 1 at most
    low, high = max(low, -widest), min(high, widest)
    # Seeds that all fell into one group spread little, so the t test would call bimodal arms equivalent by luck.
    bound = None if metric.bimodal else metric.equivalence
    # Where a run diverged those that are left say nothing of both arms being the same.
    is_judged = bound is not None and not table.any_diverged(pairs.cell, (baseline, pairs.arm))
    n = 0 if test.refused else len(pairs.seeds)
    found = Finding(
        cell=pairs.cell,
        arm=pairs.arm,
        baseline=baseline,
        metric=metric.name,
        unit=metric.unit,
        primary=metric.primary,
        direction=metric.direction,
        n_pairs=n,
        baseline_mean=float(pairs.baseline_values.mean()) if n else nan,
        arm_mean=float(pairs.arm_values.mean()) if n else nan,
        effect=float(pairs.differences.mean()) if n else nan,
        low=low,
        high=high,
        confidence=confidence,
        p=test.p,
        q=test.q,
        equivalence=bound,
        p_equivalence=None if not is_judged else p_equivalent(e, bound) if e else nan,
        detectable=_within(widest, detectable_effect(e.sigma, e.n, test.level, _POWER, e.df))
        if e and pairs.changes is None and not (metric.graded and no_surer(0.0, n) > test.level)
        else nan,
        verdict="",
        sentence="",
        seeds=pairs.seeds[:n],
        differences=pairs.differences[:n].tolist(),
    )
    if test.refused:
        return replace(found, verdict="refused", sentence=refusal(found, test.refused), notes=[test.refused])
    found = replace(found, verdict=verdict(found, fdr=fdr))
    both = (
        [share(table, pairs.cell, arm, metric, confidence) for arm in (baseline, pairs.arm)] if metric.bimodal else []
    )
    return replace(
        found,
        sentence=sentence(found, metric, excluded=pairs.excluded, shares=both, needed=_needed(test)),
        notes=[*pairs.excluded, *_cautions(found, test), *test.notes],
    )


def _within(widest: float, effect: float) -> float:
    """nan for an effect that cannot exist: no true difference would have been seen."""
    return effect if effect <= widest else nan


def _needed(test: _Test) -> int | None:
    """Seeds that would all have to change regime; None for a comparison of means."""
    return None if test.pairs.changes is None else seeds_needed(test.level)


def _cautions(f: Finding, test: _Test) -> list[str]:
    """What a careful reader would ask next."""
    notes = []
    if test.pairs.changes is not None:
        lost, gained = test.pairs.changes
        notes.append(
            f"bimodal over seeds: p is McNemar's exact test on the seeds that changed ({lost} lost it, {gained} gained"
            " it); the mean describes no single run, and its t interval trusts few seeds too much"
        )
    elif test.pairs.metric.graded and f.n_pairs >= 2:
        notes.append(
            f"graded over seeds: the values are in no two groups with the threshold between them, so means are compared; seeds that"
            f" agree by luck spread too little, and p is {compact(2 * LUCK**f.n_pairs)} at least"
        )
    if test.pairs.metric.bimodal and test.pairs.metric.equivalence is not None:
        notes.append("equivalence is not tested on a bimodal metric")
    if f.n_pairs >= 2 and test.pairs.is_constant:
        notes.append("the differences of all seeds are identical")
    if f.verdict in ("lower", "higher") and f.low <= 0 <= f.high:
        notes.append("the interval of this one difference includes zero; the verdict is that of the whole family")
    if f.n_pairs >= 2:
        alone, together = test.pairs.baseline_values.std(ddof=1), test.pairs.differences.std(ddof=1)
        notes.append(
            f"noise floor: standard deviation over seeds {compact(float(alone))} of {f.baseline},"
            f" {compact(float(together))} of the difference"
        )
    return notes
