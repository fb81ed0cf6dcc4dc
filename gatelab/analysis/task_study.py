"""All that a study's page shows of tasks, read once."""

from dataclasses import dataclass
from operator import attrgetter

from ..store import StudyFolder
from ..tasks.metrics import Interval, PositionCurve
from .task_evidence import Contrast, agreements, contrasts
from .task_items import Group, Worst, asked_items, citations, depth_curves, lower_ends, worst_items
from .tasks import Key, Reached, Solved, TaskRow, Told, effective_lengths, reached, solved, task_rows


@dataclass(frozen=True)
class TaskStudy:
    """Rows of every run and step; what is told of items and of shares of seeds is of finished runs. `curves` are of accuracy by
    depth, `margins` of the margin."""

    rows: list[TaskRow]
    solved: list[Solved]
    effective: dict[Told, dict[int, int | None]]
    reached: list[Reached]
    curves: dict[Group, PositionCurve]
    margins: dict[Group, PositionCurve]
    citations: dict[Group, dict[tuple[bool, bool], float]]
    inside: dict[Group, dict[str, Contrast]]
    agreements: dict[Group, dict[str, Interval]]
    worst: list[Worst]


def task_study(folder: StudyFolder, done: set[Key]) -> TaskStudy | None:
    """Of a study's folder; None where nothing was asked.

    Raises:
        StoreError: rows or items that cannot be read.
    """
    rows = task_rows(folder)
    if not rows:
        return None
    items = asked_items(folder, done)
    return TaskStudy(
        rows=rows,
        solved=solved(rows, done=done),
        effective=effective_lengths(rows, done=done, lows=lower_ends(items)),
        reached=reached(rows, done=done),
        curves=depth_curves(items),
        margins=depth_curves(items, attrgetter("margin")),
        citations=citations(items),
        inside=contrasts(items),
        agreements=agreements(items),
        worst=worst_items(items),
    )
