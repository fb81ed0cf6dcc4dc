"""Tasks as numbers: the CSV file with all of them, and the tables of the page."""

from collections.abc import Collection, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..markup import NONE, Html, decimal
from ..tables import csv_text, table
from .scores import Score

if TYPE_CHECKING:
    from ...analysis.task_study import TaskStudy
    from ...analysis.tasks import Reached, Solved, TaskRow
    from ...tasks.metrics import Interval, PositionCurve


def tasks_csv(study: "TaskStudy") -> str:
    """Every mean over items of every run and step."""
    from ...analysis.tasks import TaskRow

    names = [f.name for f in fields(TaskRow)]
    of = attrgetter(*names)
    return csv_text(names, (dict(zip(names, of(row), strict=True)) for row in study.rows))


def solved_table(shares: Sequence["Solved"], labels: dict[str, str]) -> Html:
    """Seeds that solve a task, by length: arms side by side, with exact intervals."""
    found = {(s.task, s.times, s.stretch, s.arm): s for s in shares}
    arms = [arm for arm in labels if any(s.arm == arm for s in shares)]
    rows = [
        [_at(*key), *(_share(found.get((*key, arm))) for arm in arms)]
        for key in sorted({(s.task, s.times, s.stretch) for s in shares})
    ]
    columns = ["seeds that solve", *(labels[arm] for arm in arms)]
    return table(columns, rows, numeric=set(range(1, len(columns))), name="solved tasks")


def _at(task: str, times: int, stretch: str) -> str:
    return f"{task} at {times}×{'' if stretch == 'none' else f', {_STRETCHED.get(stretch, stretch)}'}"


_STRETCHED = {"yarn": "with YaRN"}


def _share(s: "Solved | None") -> str:
    return NONE if s is None else f"{s.k} of {s.n} ({s.low:.0%} to {s.high:.0%})"


def reached_table(
    found: Sequence["Reached"], labels: dict[str, str], baseline: str, refused: Collection[str] = ()
) -> Html:
    """How soon each arm had nine in ten right, a seed that never did being censored; `refused` arms are not compared."""
    from ...analysis.shares import p_changes
    from ...analysis.tasks import sooner

    base = {r.task: r for r in found if r.arm == baseline}
    rows = []
    for r in found:
        pairs = NONE
        if r.arm in refused:
            pairs = "refused"
        elif r.arm != baseline and r.task in base:
            a, b, same = sooner(r, base[r.task])
            pairs = f"{a} sooner, {b} later, {same} neither (p = {p_changes(a, b):.2g})"
        each = ", ".join(f"> {r.until:,}" if s is None else f"{s:,}" for s in r.steps.values())
        median = f"> {r.until:,}" if r.median is None else f"{r.median:,g}"
        got = f"{r.k} of {len(r.steps)} ({r.low:.0%} to {r.high:.0%})"
        rows.append([f"{r.task}, {labels[r.arm]}", got, median, each, pairs])
    columns = [
        "task and arm",
        "seeds that got there",
        "median step",
        "step of each seed",
        "against the baseline's seed",
    ]
    return table(columns, rows, numeric={1, 2}, name="steps to nine in ten")


def curve_table(curves: dict[tuple[int, str], "PositionCurve"], labels: dict[str, str], score: Score) -> Html:
    """What stands at the ends of the text against its middle, by length and arm."""
    rows = [
        [f"{t}×, {labels[arm]}", *(interval(getattr(c, name)) for name in ("primacy", "recency", "u_index", "worst"))]
        for (t, arm), c in curves.items()
    ]
    columns = [score.axis, "first less middle", "last less middle", "U-index", "worst depth"]
    return table(columns, rows, numeric={1, 2, 3, 4}, name=f"ends of the text against its middle, {score.axis}")


def interval(x: "Interval | None", digits: int = 2) -> str:
    """An estimate with its ends; a dash for none."""
    return NONE if x is None else f"{decimal(x.value, digits)} ({decimal(x.low, digits)} to {decimal(x.high, digits)})"


def citation_table(shares: dict[str, dict[tuple[bool, bool], float]], labels: dict[str, str]) -> Html:
    """Answer × citation, by arm: shares of all items of all its seeds."""
    order = [(True, True), (True, False), (False, True), (False, False)]
    rows = [[labels[arm], *(decimal(own[key], 2) for key in order)] for arm, own in shares.items()]
    columns = ["arm", "both right", "answer right, document wrong", "answer wrong, document right", "both wrong"]
    return table(columns, rows, numeric={1, 2, 3, 4}, name="answer by citation")


def beside(rows: Sequence["TaskRow"], score: str) -> dict[str, list[tuple[float, float]]]:
    """What a score of a task stands beside, as points over multiples of the length: means of what copying blindly gives, of
    tokens of the right kind drawn at random, and the score before training."""
    first = min((r.step for r in rows), default=0)
    what = "answer" if score == "exact_match" else score
    wanted: dict[str, Any] = {"copying": f"{what}_floor", "chance": f"{what}_chance", "untrained": score}
    out = {}
    for name, metric in wanted.items():
        by_times: dict[int, list[float]] = {}
        for r in rows:
            if r.metric == metric and r.bin is None and r.stretch == "none" and (name != "untrained" or r.step == 0):
                by_times.setdefault(r.times, []).append(r.value)
        if by_times and (name != "untrained" or first == 0):
            out[name] = [(t, sum(v) / len(v)) for t, v in sorted(by_times.items())]
    return out
