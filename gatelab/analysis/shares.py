"""Shares for metrics that are bimodal over seeds: in how many runs the thing is there, with an exact interval.

A mean of 0.4 between runs at 0.05 and runs at 0.95 describes none of them; '3 of 8 seeds' describes all. The interval
is Clopper and Pearson's (Biometrika 26, 1934), which covers at least the stated confidence at every n.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log2

from ..record import Metric
from .paired import Outcome, Outcomes


@dataclass(frozen=True, slots=True)
class Share:
    """`k` of an arm's `n` finished runs have `metric` above its threshold; `low` to `high` covers the true share."""

    cell: str
    arm: str
    metric: str
    k: int
    n: int
    low: float
    high: float


def exact_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share seen as k of n.

    Raises:
        ValueError: when k is not in 0..n or n is 0.
    """
    from scipy.special import betaincinv

    if not 0 <= k <= n or n == 0:
        raise ValueError(f"k={k!r} of n={n!r}: expected 0 <= k <= n with at least one run")
    tail = (1 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    return low, float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0


def share(outcomes: Outcomes, cell: str, arm: str, metric: Metric, confidence: float = 0.95) -> Share | None:
    """The share of one arm's finished runs, paired or not; None when no run finished."""
    values = [o.value for o in outcomes.of(cell, arm, metric).values() if o.usable]
    if not values:
        return None
    k = sum(value > metric.threshold for value in values)
    return Share(cell, arm, metric.name, k, len(values), *exact_interval(k, len(values), confidence))


def shares(
    outcomes: Iterable[Outcome],
    metrics: Sequence[Metric],
    *,
    arms: Sequence[str],
    cells: Sequence[str],
    confidence: float = 0.95,
) -> list[Share]:
    """One row a cell, bimodal metric and arm (the baseline among them) that has a finished run with the metric."""
    table = Outcomes(outcomes)
    rows = (share(table, c, a, m, confidence) for c in cells for m in metrics if m.bimodal for a in arms)
    return [row for row in rows if row is not None]


def p_changes(lost: int, gained: int) -> float:
    """Two-sided exact p of McNemar's test: under no effect each seed that changes is as likely to lose as to gain."""
    from scipy.special import bdtr

    n = lost + gained
    # Both tails of a fair coin are alike; that of the middle holds more than a half.
    return min(1.0, 2 * float(bdtr(min(lost, gained), n, 0.5))) if n else 1.0


def p_more_often(k: int, n: int, share: float) -> float:
    """One-sided exact p of k or more events in n runs that each show one with probability `share` at most."""
    from scipy.special import bdtrc

    return float(bdtrc(k - 1, n, share)) if k else 1.0


def seeds_needed(level: float) -> int:
    """The fewest seeds, all changing the same way, that McNemar's test calls significant at `level`."""
    return max(1, ceil(1 + log2(1 / level)))
