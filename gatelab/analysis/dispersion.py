"""Dispersion: does a gate change the spread over seeds, heads or layers, rather than the mean?

Over seeds the runs are pairs, so F would be wrong: Pitman and Morgan's test (Biometrika 31, 1939) is the correlation of
sums and differences, zero when both variances are equal. It trusts the normal distribution, and takes a long tail or a seed
that lies far out for a spread; nor does it know that cells share their seeds. So the mean over seeds of the difference of
squares must be sure of its sign as well. Pooled over cells the cells' own means are taken out first. Over heads and layers
a run's ln standard deviation is a number like any other, and its paired difference is tested by t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isfinite, nan, sqrt

import numpy as np

from .anomalies.evidence import Evidence
from .heterogeneity import left_out
from .student import critical_t, interval, p_two_sided, q_values

ALL_CELLS = "(all cells)"
SEEDS_NEEDED = 4  # fewer leave the correlation one degree of freedom
Group = tuple[np.ndarray, np.ndarray, Sequence[int]]  # of a cell: baseline, arm, seeds


@dataclass(frozen=True, slots=True)
class Spread:
    """The arm's standard deviation over the baseline's, `over` seeds, heads or layers, with its interval and two-sided p."""

    cell: str
    arm: str
    reading: str
    over: str
    n_pairs: int
    ratio: float
    low: float
    high: float
    p: float
    q: float = nan


def dispersions(evidence: Evidence, readings: Sequence[str], parts: dict[str, str]) -> list[Spread]:
    """Over seeds of the readings, by cell and over all cells; over heads and layers by `parts`, {reading: what it is over}.

    Over seeds only where runs cannot come in two states (`Evidence.may_split`): else the spread is how far those lie apart, and
    how many seeds are in either. Cells in which most runs are lost have no part in that of all. q is over all of them.
    """
    found = []
    for arm in evidence.arms:
        for reading in (r for r in readings if r in evidence.readings):
            groups = {}
            for cell in (c for c in evidence.cells if not evidence.may_split(reading, c)):
                pairs = evidence.pairs(reading, cell, arm)
                if (cell, arm) not in evidence.refused and len(pairs.seeds) >= 2:
                    groups[cell] = (pairs.baseline_values, pairs.arm_values, pairs.seeds)
            lost = left_out(evidence, reading, arm)
            together = [values for cell, values in groups.items() if cell not in lost]
            n_cells = len(evidence.cells) - len(lost)
            is_pooled = 2 * len(together) > n_cells > 1 < len(together) and not evidence.not_pooled
            several = {ALL_CELLS: together} if is_pooled else {}
            for cell, values in ({c: [v] for c, v in groups.items()} | several).items():
                spread = over_seeds(values)
                if spread is not None:
                    found.append(replace(spread, cell=cell, arm=arm, reading=reading))
        found += [s for name, over in parts.items() for s in _over_parts(evidence, name, arm, over)]
    tested = [i for i, s in enumerate(found) if isfinite(s.p)]
    if tested:
        for i, q in zip(tested, q_values([found[i].p for i in tested]), strict=True):
            found[i] = replace(found[i], q=float(q))
    return found


def over_seeds(groups: Sequence[Group], confidence: float = 0.95) -> Spread | None:
    """The larger p of Pitman and Morgan's test and of t over seeds of the difference of squares, over one or more cells, each
    around its own mean; the interval holds those of both. None of too few pairs, or without spread.

    That costs power: a spread three times as large is seen at 5% in one cell of 5, 16 and 64 normal pairs in 8, 85 and 100%, of
    lognormal ones (σ = 0.7) in 7, 38 and 83%, where one seed in twenty lies far out in less than a third.
    """
    alone = pitman_morgan(groups, confidence)
    if alone is None:
        return None
    seeds = np.concatenate([seeds for *_, seeds in groups])
    low, high, p = _by_seed(*_on_one_scale(groups), seeds, confidence)
    return replace(alone, low=min(alone.low, low), high=max(alone.high, high), p=max(alone.p, p))


def pitman_morgan(groups: Sequence[Group], confidence: float = 0.95) -> Spread | None:
    """Pitman and Morgan's test alone, for normal pairs of unrelated cells; the interval holds the ratios that it would not
    reject. None as of `over_seeds`."""
    a, b = _on_one_scale(groups)
    df = sum(len(g[0]) - 1 for g in groups) - 1
    if df < SEEDS_NEEDED - 2:
        return None
    aa, bb, ab = float(a @ a), float(b @ b), float(a @ b)
    if aa <= 0 or bb <= 0 or ab**2 >= aa * bb * (1 - 1e-12):
        return None
    # (bb − w·aa)² · df = 4 t² w (aa·bb − ab²) is a quadratic in the ratio w of the true variances.
    t = (bb - aa) * sqrt(df) / (2 * sqrt(aa * bb - ab**2))
    k = 1 + 2 * critical_t(df, 1 - confidence) ** 2 * (1 - ab**2 / (aa * bb)) / df
    low, high = (sqrt(bb / aa * (k + side * sqrt(k**2 - 1))) for side in (-1, 1))
    return Spread("", "", "", "seeds", len(a), sqrt(bb / aa), low, high, _p(df, t))


def _on_one_scale(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """All cells' baselines and arms, each cell around its means: cells of another scale would count for nothing, or for
    everything, so each is put on one of its own, the same for both arms."""
    centred = [(x - x.mean(), y - y.mean()) for x, y, _ in groups]
    scales = [sqrt(float(x @ x + y @ y) / max(1, len(x) - 1)) or 1.0 for x, y in centred]
    a, b = (np.concatenate([pair[side] / s for pair, s in zip(centred, scales, strict=True)]) for side in (0, 1))
    return a, b


def _by_seed(a: np.ndarray, b: np.ndarray, seeds: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """The interval of the ratio and p of t over seeds: b² − w·a², summed over cells, has mean zero at the ratio w of the true
    variances (Fieller's theorem)."""
    x, y = (np.array([(side[seeds == s] ** 2).sum() for s in np.unique(seeds)]) for side in (a, b))
    n = len(x)
    if n < 2 or np.ptp(y - x) == 0:
        return 0.0, inf, 1.0
    p = _p(n - 1, (y - x).mean() / ((y - x).std(ddof=1) / sqrt(n)))
    c = critical_t(n - 1, 1 - confidence) ** 2 / n
    (xx, xy), (_, yy) = np.cov(x, y)
    # (ȳ − w·x̄)² ≤ c (yy − 2w·xy + w²·xx): the ratios between two roots where x̄ itself is surely above zero, else those
    # beyond them.
    q = (x.mean() ** 2 - c * xx, -2 * (x.mean() * y.mean() - c * xy), y.mean() ** 2 - c * yy)
    root = q[1] ** 2 - 4 * q[0] * q[2]
    if q[0] == 0 or root < 0:
        return 0.0, inf, p
    low, high = sorted((-q[1] + side * sqrt(root)) / (2 * q[0]) for side in (-1, 1))
    if q[0] < 0:
        low, high = (high if low < 0 else 0.0), inf
    return sqrt(max(0.0, low)), sqrt(max(0.0, high)), p


def _p(df: float, t: float) -> float:
    """Two-sided."""
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(t)))


def _over_parts(evidence: Evidence, reading: str, arm: str, over: str) -> list[Spread]:
    out = []
    for cell in evidence.cells:
        e = evidence.estimate(reading, cell, arm)
        if e is not None and e.sigma > 0:
            low, high = interval(e, 0.95)
            out.append(Spread(cell, arm, reading, over, e.n, exp(e.mean), exp(low), exp(high), p_two_sided(e)))
    return out
