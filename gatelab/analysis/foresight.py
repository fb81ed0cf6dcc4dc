"""The power plan: what so many seeds can see, from the spread that pairs have shown.

A pilot's standard deviation is itself uncertain: beside it stands its 80% upper bound, with which the plan is made, so that
in four of five pilots the power is at least what is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from .anomalies.evidence import Evidence
from .student import detectable_effect

SEEDS = (3, 5, 8, 12, 20)
UPPER = 0.8


@dataclass(frozen=True, slots=True)
class Foresight:
    """The smallest true effect of an arm that `n_seeds` pairs a cell see with 80% power: `alone` at 5%, `screened` as the
    first discovery among the study's tests at the false-discovery rate, `confirmed` as one of `n_claims` by Holm, one-sided 5%.

    `sigma` is that of a pair, over all cells, known with `df` degrees of freedom; `sigma_upper` is what the plan uses.
    A metric whose seeds change regime has no row: no mean describes its runs.
    """

    arm: str
    reading: str
    unit: str
    sigma: float
    df: int
    sigma_upper: float
    n_seeds: int
    alone: float
    screened: float
    confirmed: float
    n_claims: int


def foresee(
    evidence: Evidence,
    readings: Sequence[str],
    *,
    seeds: Sequence[int] = SEEDS,
    n_cells: int | None = None,
    n_claims: int = 5,
    fdr: float = 0.10,
) -> list[Foresight]:
    """A row an arm, reading and number of seeds, from the pairs there are; none where no cell has two with spread.

    Args:
        n_cells: of the study that is planned; those of the evidence unless given.
    """
    from scipy.special import chdtri

    readings = [r for r in readings if r in evidence.readings]
    n_tests = max(1, len(readings) * len(evidence.arms) * (n_cells or len(evidence.cells)))
    out = []
    for arm in evidence.arms:
        for reading in readings:
            groups = [evidence.pairs(reading, c, arm) for c in evidence.cells if (c, arm) not in evidence.refused]
            if any(g.changes is not None for g in groups):
                continue
            groups = [g.differences for g in groups if len(g.seeds) >= 2]
            df = sum(len(d) - 1 for d in groups)
            total = sum(float(((d - d.mean()) ** 2).sum()) for d in groups)
            if not total > 1e-24 * sum(float(np.abs(d).max()) ** 2 for d in groups):
                continue
            upper = sqrt(total / float(chdtri(df, UPPER)))
            for n in seeds:
                levels = (0.05, fdr / n_tests, 2 * 0.05 / n_claims)
                seen = (detectable_effect(upper, n, level) for level in levels)
                unit = evidence.readings[reading].unit
                out.append(Foresight(arm, reading, unit, sqrt(total / df), df, upper, n, *seen, n_claims))
    return out
