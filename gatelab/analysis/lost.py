"""Which runs are lost: they diverge, or end with a held-out loss above that of their own untrained weights.

Where most runs of an arm are lost there is no effect of a gate to tell, only how trainings fail: means of thirty nats with
intervals as wide, which no mean over cells and no test over cells survives.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from .refusals import Comparison, Run

WORDS = "they diverged, or ended above the held-out loss of their own untrained weights"
# Readings that are about such runs: over these a cell that is lost says what is asked.
OF_LOST = ("unstable", "loss_spikes")


def is_lost(status: str, untrained: float, end: float) -> bool:
    """Whether a run that ended is lost; `untrained` and `end` are its held-out loss before the first and after the last step."""
    return not (status == "done" and end <= untrained)


def lost_cells(connection: Any, runs: Sequence[Run]) -> dict[Comparison, str]:
    """{(cell, arm): 'ARM k of n'} where most of an arm's ended runs are lost.

    A run that goes on from the weights of another, or has no loss at step 0, has no untrained weights to compare with, and is
    lost where it diverged.

    Args:
        connection: of `digest`.
        runs: of a plan, with their states.
    """
    found = connection.execute(
        """SELECT cell, arm, seed, heights[1], coalesce(heights[-1], 'nan') FROM tables
           WHERE name = 'curves' AND metric = 'val_loss' AND steps[1] = 0"""
    ).fetchall()
    ends = {(cell, arm, seed): (untrained, end) for cell, arm, seed, untrained, end in found}
    counts: dict[Comparison, list[bool]] = {}
    for entry, _, state in runs:
        if state not in ("done", "diverged"):
            continue
        at = ends.get((entry["cell"], entry["arm"], entry["seed"])) if not entry.get("init_from") else None
        has_start = at is not None and at[0] is not None and isfinite(at[0])
        lost = state == "diverged" or (has_start and is_lost(state, *at))
        counts.setdefault((entry["cell"], entry["arm"]), []).append(lost)
    return {
        where: f"{where[1]} {sum(lost)} of {len(lost)}" for where, lost in counts.items() if 2 * sum(lost) > len(lost)
    }


def lost_at(lost: Mapping[Comparison, str], reading: str, cell: str, *arms: str) -> list[str]:
    """Which of these arms are lost in a cell, in words; none of a reading that is of such runs."""
    if reading.partition(":")[0] in OF_LOST:
        return []
    return [lost[cell, arm] for arm in arms if (cell, arm) in lost]


def said(lost: Mapping[Comparison, str]) -> str:
    """What is left out and why; empty where nothing is."""
    by_cell: dict[str, list[str]] = {}
    for (cell, _), why in lost.items():
        by_cell.setdefault(cell, []).append(why)
    cells = "; ".join(f"{cell}: {', '.join(why)}" for cell, why in by_cell.items())
    return f"cells in which most runs of an arm are lost ({WORDS}): {cells}" if cells else ""
