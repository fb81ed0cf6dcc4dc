"""What several lengths or depths say together: the effective length, and the ends of the text against its middle."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..record import Row
from ..tasks.metrics import MIN_LENGTHS, N_BINS, effective_length, guessing, position_curve
from .own_lines import MAIN, guesses_beside, line

ByItem = dict[int, float]  # number of an item -> its score
_ENDS = ("primacy", "recency", "u_index", "worst")


def by_length(rows: Iterable[Row]) -> tuple[list[Row], list[dict[str, Any]]]:
    """The effective length of each score that was asked at three lengths or more, above what guessing scores where that is known:
    a row and a line where there is one."""
    beside: dict[tuple[str, float | None, str], dict[int, float]] = {}
    found: dict[tuple[str, float | None, str], dict[int, Row]] = {}
    for row in rows:
        if row.source != "tasks" or row.length is None or row.bin is not None:
            continue
        beside.setdefault((row.task, row.depth, row.metric), {})[row.length] = row.value
        if row.metric in MAIN:
            found.setdefault((row.task, row.depth, row.metric), {})[row.length] = row
    out, lines = [], []
    for (task, depth, metric), by in found.items():
        if len(by) < MIN_LENGTHS:
            continue
        known = {m for t, d, m in beside if (t, d) == (task, depth)}
        chances, floors = (beside.get((task, depth, name), {}) for name in guesses_beside(metric, known))
        longest = effective_length(
            {length: row.value for length, row in by.items()},
            {
                length: guess
                for length in by
                if (guess := guessing(chances.get(length), floors.get(length))) is not None
            },
            beside.get((task, depth, f"{metric}_low"), {}),
        )
        if longest is not None:
            lines.append(
                line(task, f"effective length of {metric}, tokens", None, depth, longest, items=None, refused=None)
            )
            first = next(iter(by.values()))
            out.append(
                replace(
                    first, metric="effective_length", value=float(longest), unit="tokens", length=None, domain=metric
                )
            )
    return out, lines


def by_depth(
    run: str, task: str, length: int, scores: dict[float | None, dict[str, ByItem]]
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Primacy, recency, U-index and the worst depth of each score and of the margin, of items that were asked at all eleven depths
    b / 10, with intervals over them; nothing where another set of depths was asked.

    Args:
        scores: by depth, by metric, by item.
    """
    if set(scores) != {b / (N_BINS - 1) for b in range(N_BINS)}:
        return [], []
    rows, lines = [], []
    for metric in dict.fromkeys(m for of in scores.values() for m in of):
        of = {depth: own.get(metric, {}) for depth, own in sorted(scores.items())}
        shared = sorted(set.intersection(*(set(by_item) for by_item in of.values())))
        if not shared:
            continue
        depths = [depth for depth in of for _ in shared]
        unit = "nats" if metric.endswith("_margin") else "share"
        curve = position_curve(depths, [of[d][i] for d in of for i in shared], is_paired=True)
        for name in _ENDS:
            found = getattr(curve, name)
            word = "worst_depth" if name == "worst" else name
            for metric_of, value in ((word, found.value), (f"{word}_low", found.low), (f"{word}_high", found.high)):
                rows.append(Row(run, 0, "tasks", metric_of, value, unit, task=task, length=length, domain=metric))
            what = f"{word} of {metric}"
            lines.append(
                line(task, what, length, "all", found.value, low=found.low, high=found.high, items=len(shared))
            )
    return rows, lines
