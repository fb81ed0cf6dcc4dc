"""Rules about seeds: arms that split into two regimes, and runs that are unstable where the baseline's are not."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ..shares import p_more_often
from .alarm import Alarm, Place
from .evidence import Evidence

# Simulated flat samples that a split is compared with.
_DRAWS = 20_000


def two_regimes(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """An arm's values fall into two groups of two or more seeds each, further apart than those of a flat sample (the flattest
    that has one group), while the baseline's do not at 5%. The statistic is the spread within the best two groups over the whole
    spread; activations are compared by their logarithm. Groups whose means differ by less than the metric's equivalence bound
    are one, of either arm: runs that solve a task end at 5.2e-8 and 5.4e-8."""
    place = Place("two-regimes", cell, arm, evidence.baseline)
    for reading in [n for name in ("val_loss", "first_token_mass", "massive_max") for n in evidence.family(name)]:
        pairs, metric = evidence.pairs(reading, cell, arm), evidence.readings[reading]
        if len(pairs.seeds) < 5:
            continue
        ours, theirs = (
            _groups(v, metric.equivalence or 0.0, is_log=reading == "massive_max")
            for v in (pairs.arm_values, pairs.baseline_values)
        )
        if ours is None or (theirs is not None and theirs[2] < 0.05):
            continue
        low, high, p = ours
        text = (
            f"the seeds of {arm} fall into two groups of {metric.label}: {len(low)} around {low.mean():.4g} and"
            f" {len(high)} around {high.mean():.4g}"
        )
        yield place.share(reading, pairs.seeds, len(high), p, text)


def _groups(values: np.ndarray, least: float, *, is_log: bool) -> tuple[np.ndarray, np.ndarray, float] | None:
    """The best two groups of values and the p of one; None without spread, and where the groups' means are nearer than `least`."""
    if np.ptp(values) == 0:
        return None
    compared = np.log(values) if is_log and (values > 0).all() else values
    low, high = np.split(np.sort(values), [_cut(compared)])
    return None if high.mean() - low.mean() < least else (low, high, p_split(compared))


def instability(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """McNemar's exact test, one-sided: more seeds are unstable with the gate alone than with the baseline alone."""
    pairs = evidence.pairs("unstable", cell, arm)
    if not pairs.seeds:
        return
    ours, theirs = pairs.arm_values > 0, pairs.baseline_values > 0
    gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    text = (
        f"of {len(pairs.seeds)} seeds {gained} diverge or spike with {arm} alone, {lost} with the baseline alone and"
        f" {int((ours & theirs).sum())} with both"
    )
    place = Place("instability", cell, arm, evidence.baseline)
    yield place.share("unstable", pairs.seeds, gained, p_more_often(gained, gained + lost, 0.5), text)


def p_split(values: np.ndarray) -> float:
    """The share of flat samples of as many values that split as clearly."""
    null = _null(len(values))
    return float((1 + np.searchsorted(null, _within(np.sort(values)[None])[0], side="right")) / (1 + len(null)))


def _cut(values: np.ndarray) -> int:
    """How many values the lower of the best two groups has."""
    return 2 + int(np.argmax(_between_at(np.sort(values)[None])[0][0]))


@lru_cache(maxsize=64)
def _null(n: int) -> np.ndarray:
    draws = np.sort(np.random.default_rng(n).random((_DRAWS, n)), axis=1)
    return np.sort(_within(draws))


def _within(ordered_RN: np.ndarray) -> np.ndarray:
    """Of R ordered samples of N values: the least sum of squares within two neighbouring groups over that of the whole."""
    between, whole = _between_at(ordered_RN)
    return 1 - between.max(axis=1) / whole


def _between_at(ordered_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of squares between the groups of every cut that leaves two values or more on each side, and that of the whole."""
    x = ordered_RN - ordered_RN.mean(axis=1, keepdims=True)
    n = x.shape[1]
    cuts = np.arange(2, n - 1)
    squared = np.cumsum(x, axis=1)[:, 1 : n - 2] ** 2
    # The whole sums to zero, so the other side's sum is minus this one's.
    return squared / cuts + squared / (n - cuts), (x**2).sum(axis=1)
