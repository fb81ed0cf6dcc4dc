"""Skew: where the pairs' differences lean so far to one side that t's level is not what it says.

Where a few seeds gain far more than the others, a few pairs seldom have one of them: they then lie close together and on the worse
side of the mean, of which t is sure. No correction is made (docs/statistics.md, "Noise that is not normal"): it is said.
"""

from collections.abc import Iterator
from math import sqrt

import numpy as np

from ..lost import lost_at
from .evidence import Evidence

# Of the sample skewness: less than `LEAST` is not said; `POOLED` and `ALONE` are in standard errors of normal noise, of an arm's
# mean over cells and of one cell among many.
LEAST, POOLED, ALONE = 0.5, 3.0, 4.0
_SEEDS = 3


def skewness(values: np.ndarray) -> tuple[float, float]:
    """Fisher's G1 of three values or more that are not all the same, and its standard error under normal noise (Joanes and Gill
    1998)."""
    n, centred = len(values), values - values.mean()
    third = float((centred**3).sum()) * n / ((n - 1) * (n - 2))
    return third / float(values.std(ddof=1)) ** 3, sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))


def skew_notices(evidence: Evidence) -> Iterator[str]:
    """Of each held-out loss a sentence for either side to which differences lean."""
    for reading in evidence.family("val_loss"):
        found = {arm: _by_cell(evidence, reading, arm) for arm in evidence.arms}
        for sign, few, often in ((-1, "gain", "worse"), (1, "lose", "better")):
            if where := _where(found, sign, is_pooled=not evidence.not_pooled):
                yield (
                    f"of the {evidence.readings[reading].label} a few seeds {few} far more than the others (skewness of the"
                    f" differences {'; '.join(where)}): there t says {often} too often, on fresh seeds too (docs/statistics.md);"
                    " look at the seeds"
                )


def _by_cell(evidence: Evidence, reading: str, arm: str) -> dict[str, tuple[float, float]]:
    out = {}
    for cell in evidence.cells:
        is_out = (cell, arm) in evidence.refused or lost_at(evidence.lost, reading, cell, evidence.baseline, arm)
        pairs = evidence.pairs(reading, cell, arm)
        if not is_out and len(pairs.seeds) >= _SEEDS and not pairs.is_constant:
            out[cell] = skewness(pairs.differences)
    return out


def _where(found: dict[str, dict[str, tuple[float, float]]], sign: int, *, is_pooled: bool) -> list[str]:
    """Arms whose cells lean to this side in their mean, the more certain counting more; and cells that do alone."""
    out, alone = [], []
    for arm, cells in found.items():
        if is_pooled and len(cells) > 1:
            g, error = np.array(list(cells.values())).T
            mean, of_mean = float(np.average(g, weights=error**-2)), float((error**-2).sum() ** -0.5)
            if sign * mean >= max(LEAST, POOLED * of_mean):
                out.append(f"{mean:+.1f} in the mean of the {len(cells)} cells of {arm}")
        alone += [(sign * g, cell, arm) for cell, (g, e) in cells.items() if sign * g >= max(LEAST, ALONE * e)]
    if alone:
        most, cell, arm = max(alone)
        others = f", the most of {len(alone)} cells and arms" if len(alone) > 1 else ""
        out.append(f"{sign * most:+.1f} in {cell} of {arm}{others}")
    return out
