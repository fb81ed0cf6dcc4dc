"""Accuracies: solved or not, where the runs really fall into two groups; else a number like any other.

A metric that is `bimodal` and `graded` counts seeds that change sides of its threshold only where all values of a comparison, arm
and baseline together, lie in two groups on either side of it with little between. Which arm a value is of is not looked at, so
that under no effect the choice says nothing of the differences. docs/metrics.md has the rule, and what it sees in simulations.
"""

from collections.abc import Sequence

import numpy as np

# That a seed changes state in the direction asked about, where both arms have it in half of their runs, independently: the
# largest chance there is under no effect.
LUCK = 0.25

GAP = 0.5  # of the range of all values, that two groups leave empty at the threshold
APART = 0.2  # and never less: 0.85 and 0.95 of the items are no two states


def splits(values: Sequence[float] | np.ndarray, threshold: float) -> bool:
    """Whether the values lie in two groups on either side of the threshold."""
    ordered = np.sort(np.asarray(values, dtype=float))
    below = int((ordered <= threshold).sum())
    if not 0 < below < len(ordered):
        return False
    gap = ordered[below] - ordered[below - 1]
    return bool(gap >= max(APART, GAP * (ordered[-1] - ordered[0])))


def no_surer(p: float, n: int) -> float:
    """Student's two-sided p, not below the chance that n seeds of two states all change alike: seeds that agree by luck spread
    too little for t."""
    return max(p, 2 * LUCK**n)
