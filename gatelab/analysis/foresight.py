"""The power plan: what so many seeds can see, from the spread that pairs have shown.

Cells spread differently, by a thousand times where one of them trains badly, so that a plan is made of each cell's own spread and
speaks of the median one. A standard deviation is itself uncertain: beside it stands its 80% upper bound, with which the plan is
made, so that in four of five pilots the power in the median cell is at least what is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

from .anomalies.evidence import Evidence
from .student import detectable_effect

SEEDS = (3, 5, 8, 12, 20)
UPPER = 0.8


@dataclass(frozen=True, slots=True)
class Foresight:
    """The smallest true effect of an arm that `n_seeds` pairs a cell see with 80% power: `alone` at 5%, `screened` as the
    first discovery among the study's tests at the false-discovery rate, `confirmed` as one of `n_claims` by Holm, one-sided 5%.

    `sigma` is that of a pair in the median of `n_spreading` cells, known with `df` degrees of freedom; `sigma_upper`, the median of
    their upper bounds, is what the plan uses; `sigma_low` and `sigma_high` are of the cells that spread least and most. Variances
    are shrunk over ten cells or more, as in tests, but those of the last two are as measured. A metric whose seeds change regime
    has no row: no mean describes its runs.
    """

    arm: str
    reading: str
    unit: str
    sigma: float
    df: float
    sigma_upper: float
    n_seeds: int
    alone: float
    screened: float
    confirmed: float
    n_claims: int
    n_spreading: int
    sigma_low: float
    sigma_high: float


def foresee(
    evidence: Evidence,
    readings: Sequence[str],
    *,
    seeds: Sequence[int] = SEEDS,
    n_cells: int | None = None,
    n_arms: int | None = None,
    n_claims: int = 5,
    fdr: float = 0.10,
) -> list[Foresight]:
    """A row an arm, reading and number of seeds, from the pairs there are; none where no cell has two with spread.

    Args:
        n_cells: of the study that is planned; those of the evidence unless given.
        n_arms: its gates; those of the evidence unless given.
    """
    from scipy.special import chdtri

    readings = [r for r in readings if r in evidence.readings]
    n_tests = max(1, len(readings) * (n_arms or len(evidence.arms)) * (n_cells or len(evidence.cells)))
    out = []
    for arm in evidence.arms:
        for reading in readings:
            groups = [evidence.pairs(reading, c, arm) for c in evidence.cells if (c, arm) not in evidence.refused]
            if any(g.changes is not None for g in groups):
                continue
            spreading = [g for g in groups if not g.is_constant]
            found = [e for g in spreading if (e := evidence.estimate(reading, g.cell, arm)) is not None]
            if not found:
                continue
            own = [float(g.differences.std(ddof=1)) for g in spreading]
            sigma, df = median(e.sigma for e in found), median(e.df for e in found)
            upper = median(e.sigma * sqrt(e.df / float(chdtri(e.df, UPPER))) for e in found)
            spread = (len(own), min(own), max(own))
            for n in seeds:
                levels = (0.05, fdr / n_tests, 2 * 0.05 / n_claims)
                seen = (detectable_effect(upper, n, level) for level in levels)
                unit = evidence.readings[reading].unit
                out.append(Foresight(arm, reading, unit, sigma, df, upper, n, *seen, n_claims, *spread))
    return out
