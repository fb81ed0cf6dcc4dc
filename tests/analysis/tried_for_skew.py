"""What was tried in the place of t for skewed differences, and not taken; docs/statistics.md has the numbers. Each gives one-sided
p of R samples of N differences, the larger of t's and its own."""

from itertools import product

import numpy as np
from scipy.special import stdtr

from gatelab.analysis.graded import LUCK
from gatelab.analysis.student import estimate, fit_prior, moderate


def by_t(d_RN):
    n = d_RN.shape[1]
    return stdtr(n - 1, -(n**0.5) * d_RN.mean(1) / d_RN.std(1, ddof=1))


def with_luck(d_RN):
    """No p below ¼ⁿ."""
    return np.maximum(by_t(d_RN), LUCK ** d_RN.shape[1])


def with_flips(d_RN):
    """The exact sign-flip test: of all 2ⁿ ways to turn differences round, those with a mean as large; of 4,096 above 12 seeds."""
    n = d_RN.shape[1]
    if n <= 12:
        signs_FN = np.array(list(product((1, -1), repeat=n)))
    else:
        signs_FN = np.vstack([np.ones(n), np.random.default_rng(0).choice((1, -1), (4095, n))])
    p = [((signs_FN @ d) >= d.sum() - 1e-12 * abs(d).sum()).mean() for d in d_RN]
    return np.maximum(by_t(d_RN), p)


def with_johnson(d_RN):
    """N. J. Johnson, JASA 73:536, 1978: t with the sample's third moment in its numerator."""
    n, mean, s, third = _moments(d_RN)
    moved = mean + third * s / (6 * n) + third * mean**2 / (3 * s)
    return np.maximum(by_t(d_RN), stdtr(n - 1, -(n**0.5) * moved / s))


def with_hall(d_RN):
    """P. Hall, JRSS B 54:221, 1992: the same correction by a cubic that is monotone."""
    n, mean, s, third = _moments(d_RN)
    moved = ((1 + third * mean / s / 3) ** 3 - 1) / third + third / (6 * n)
    return np.maximum(by_t(d_RN), stdtr(n - 1, -(n**0.5) * moved))


def over_cells(d_CN, *, is_corrected):
    """Two-sided p of C cells with shrunken variances, as a screen has them; or the larger of these and Hall's at the skewness that
    all cells have in the mean."""
    plain = [estimate(d) for d in d_CN]
    shrunk = moderate(plain, fit_prior([e.sigma**2 for e in plain], [e.df for e in plain]))
    s, df = np.array([e.sigma for e in shrunk]), np.array([e.df for e in shrunk])
    n, mean, own, third = _moments(d_CN)
    p = 2 * stdtr(df, -(n**0.5) * abs(mean) / s)
    if not is_corrected:
        return p
    pooled = float(np.clip((third * (own / s) ** 3).mean(), -3, 3))
    moved = ((1 + pooled * mean / s / 3) ** 3 - 1) / pooled + pooled / (6 * n)
    return np.minimum(1, np.maximum(p, 2 * stdtr(df, -(n**0.5) * np.sign(mean) * moved)))


def _moments(d_RN):
    """n, mean, standard deviation, skewness."""
    n, mean, s = d_RN.shape[1], d_RN.mean(1), d_RN.std(1, ddof=1)
    third = ((d_RN - mean[:, None]) ** 3).sum(1) * n / ((n - 1) * (n - 2)) / s**3
    return n, mean, s, third


TRIED = {"t": by_t, "not below 1/4^n": with_luck, "sign flips": with_flips, "Johnson": with_johnson, "Hall": with_hall}
