"""Student's t on paired differences: estimates, intervals, equivalence, power, and variances shrunk across cells.

Everything here takes numbers and knows nothing of cells or arms. An `Estimate` carries its own degrees of freedom, so a
moderated one (G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 3:3, 2004: the model behind limma's eBayes) goes through the
same interval, p and power as a plain one. `docs/statistics.md` has the formulas and says why there is no bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf, isfinite, log, sqrt

import numpy as np


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `n` differences whose standard deviation `sigma` is known with `df` degrees of freedom."""

    mean: float
    sigma: float
    n: int
    df: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.sigma / sqrt(self.n)


@dataclass(frozen=True, slots=True)
class Prior:
    """What a grid of cells says about the variance of any one: `variance`, worth `df` degrees of freedom (0 to inf)."""

    df: float
    variance: float


def estimate(differences: Sequence[float], *, scale: float = 0.0) -> Estimate:
    """The plain estimate from two or more differences: sample standard deviation, n - 1 degrees of freedom.

    `scale` is the size of the numbers that were subtracted: what differs by less than 1e-12 of it is the rounding of float64,
    and sigma is 0.
    """
    d = np.asarray(differences, dtype=float)
    sigma = 0.0 if np.ptp(d) <= 1e-12 * scale else float(d.std(ddof=1))
    return Estimate(float(d.mean()), sigma, len(d), len(d) - 1)


def interval(e: Estimate, confidence: float) -> tuple[float, float]:
    """The two-sided t interval of the mean."""
    half = critical_t(e.df, 1 - confidence) * e.error
    return e.mean - half, e.mean + half


def p_two_sided(e: Estimate) -> float:
    """The p of a mean of zero."""
    from scipy.special import stdtr

    return float(2 * stdtr(e.df, -abs(e.mean) / e.error))


def p_above(e: Estimate, bound: float = 0.0) -> float:
    """The one-sided p of a mean that is not above `bound`."""
    from scipy.special import stdtr

    return float(stdtr(e.df, (bound - e.mean) / e.error))


def p_equivalent(e: Estimate, bound: float) -> float:
    """The p of |true mean| >= bound: the larger of two one-sided t tests (TOST; Schuirmann 1987)."""
    from scipy.special import stdtr

    return float(stdtr(e.df, (abs(e.mean) - bound) / e.error))


def power(effect: float, sigma: float, n: int, alpha: float = 0.05, df: float | None = None) -> float:
    """Chance that a two-sided t test at level `alpha` on `n` pairs sees a true `effect`.

    `sigma` is the standard deviation of the differences; `df` is n - 1 unless given (a moderated variance has more).
    The probability is the noncentral t's.

    Raises:
        ValueError: for a sigma that is not positive, fewer than two pairs, an alpha outside of (0, 1).
    """
    df = _degrees(sigma, n, alpha, df)
    return _power(abs(effect) * sqrt(n) / sigma, alpha, df)


def detectable_effect(sigma: float, n: int, alpha: float = 0.05, power: float = 0.8, df: float | None = None) -> float:
    """The smallest true effect that a two-sided t test at level `alpha` on `n` pairs sees with the given `power`.

    Raises:
        ValueError: as `power()` does, and for a power outside of (alpha, 1).
    """
    df = _degrees(sigma, n, alpha, df)
    if not alpha < power < 1:
        raise ValueError(f"power={power!r}: expected a number between alpha ({alpha:g}) and 1")
    return _shift(alpha, power, df) * sigma / sqrt(n)


def fit_prior(variances: Sequence[float], df: Sequence[float]) -> Prior:
    """Moment fit of scaled F: each variance is prior.variance times F with (its df, prior.df) degrees of freedom.

    log(s^2) minus its known mean has variance trigamma(df/2) from sampling; what is left over is trigamma(prior.df/2).
    Nothing left over means that the cells share one variance: prior.df is infinite. When more than half of the
    variances are zero nothing can be borrowed: prior.df is 0.
    """
    from scipy.special import digamma, polygamma

    s2, half = np.asarray(variances, dtype=float), np.asarray(df, dtype=float) / 2
    middle = float(np.median(s2))
    if len(s2) < 2 or middle == 0:
        return Prior(0.0, 0.0)
    # A cell without any spread would have log variance -inf; the floor is limma's.
    logs = np.log(np.maximum(s2, 1e-5 * middle)) - digamma(half) + np.log(half)
    left_over = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if left_over <= 0:
        return Prior(inf, float(np.average(s2, weights=half)))
    d0 = 2 * _trigamma_inverse(left_over)
    return Prior(d0, float(np.exp(logs.mean() + digamma(d0 / 2) - log(d0 / 2))))


def moderate(estimates: Sequence[Estimate], prior: Prior) -> list[Estimate]:
    """The estimates with variances moved towards the prior's, and the degrees of freedom this earns.

    A total never exceeds the degrees of freedom that all the cells have together.
    """
    if prior.df == 0:
        return list(estimates)
    pooled = sum(e.df for e in estimates)
    out = []
    for e in estimates:
        weight = 1.0 if prior.df == inf else prior.df / (prior.df + e.df)
        variance = weight * prior.variance + (1 - weight) * e.sigma**2
        out.append(replace(e, sigma=sqrt(variance), df=min(prior.df + e.df, pooled)))
    return out


def q_values(p: Sequence[float]) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p: the smallest false-discovery rate at which each test is discovered.

    As `scipy.stats.false_discovery_control`, of which tests hold it to the last bit; importing scipy.stats takes longer than
    all the rest of an analysis.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    raised = values[order] * (len(values) / np.arange(1, len(values) + 1))
    out = np.empty_like(values)
    out[order] = np.minimum.accumulate(raised[::-1])[::-1]
    return np.clip(out, 0.0, 1.0)


def discovery_levels(p: Sequence[float], fdr: float) -> list[float]:
    """The level each test of a Benjamini-Hochberg family is held to: discovered exactly when p is not above it.

    That is fdr * R / m, with R the number of discoveries there would be among the m tests if this p were zero.
    """
    m, levels = len(p), []
    ranks = np.arange(2, m + 1)
    for i in range(m):
        others = np.sort(np.delete(np.asarray(p, dtype=float), i))
        levels.append(fdr * int(ranks[others <= fdr * ranks / m].max(initial=1)) / m)
    return levels


def critical_t(df: float, alpha: float) -> float:
    """The t beyond which, on both sides, lies the share `alpha`."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - alpha / 2))


def _degrees(sigma: float, n: int, alpha: float, df: float | None) -> float:
    if not (isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma={sigma!r}: the standard deviation of the differences must be positive and finite")
    if n < 2:
        raise ValueError(f"n={n!r}: a paired test needs at least 2 pairs")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r}: expected a level between 0 and 1")
    return n - 1 if df is None else df


@cache
def _shift(alpha: float, power: float, df: float) -> float:
    """The true effect, in standard errors, that is seen with `power`: tests of as many pairs share it.

    By halving, to the last bit: importing scipy.optimize for its root finders takes as long as ten of these or more.
    """
    low, high = 0.0, 1.0
    while _power(high, alpha, df) < power:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if _power(middle, alpha, df) < power:
            low = middle
        else:
            high = middle
    return high


def _power(shift: float, alpha: float, df: float) -> float:
    """P(|T| > critical) for T = (Z + shift) / W with W^2 = chi-square / df, averaged over Z.

    scipy's own noncentral t returns nan for the shifts that few seeds need.
    """
    from scipy.special import gammainc

    z = np.linspace(-8, 8, 1601)
    weights = np.exp(-(z**2) / 2)
    critical = critical_t(df, alpha)
    chances = [gammainc(df / 2, df / 2 * np.maximum(z + s, 0) ** 2 / critical**2) for s in (shift, -shift)]
    return float(weights @ np.sum(chances, axis=0) / weights.sum())


def _trigamma_inverse(x: float) -> float:
    """y with trigamma(y) = x, for x > 0: Newton on 1/trigamma, which is nearly straight (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    if x > 1e7:
        return 1 / sqrt(x)
    if x < 1e-6:
        return 1 / x
    y = 0.5 + 1 / x
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        change = trigamma * (1 - trigamma / x) / float(polygamma(2, y))
        y += change
        if abs(change) < 1e-10 * y:
            break
    return y
