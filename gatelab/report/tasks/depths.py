"""The section of tasks by depth: maps of length × depth, curves over depth at every length, and their ends against the middle."""

from statistics import median
from typing import TYPE_CHECKING

from ..book import Book
from ..markup import Html, decimal, number, tag
from ..parts import ramp, section
from ..style import RAMP
from .figures import depth_chart, depth_map
from .scores import SCORES, Score
from .table import curve_table

if TYPE_CHECKING:
    from ...analysis.task_study import TaskStudy
    from ...analysis.tasks import TaskRow


def depths_section(book: Book, study: "TaskStudy", final: "list[TaskRow]") -> Html | None:
    """Accuracy by length and depth, curves over depth of accuracy and margin, and their ends against the middle."""
    final = [r for r in final if r.bin is not None and r.metric == "exact_match" and r.stretch == "none"]
    if not final:
        return None
    lead = (
        "Where the evidence stands: at the beginning of the text (0) or as late as it can (100%). Maps: the median of an arm's"
        " finished seeds, by length. Lines: all seeds of an arm, an item's score being its mean over them; bands: 95% of what"
        " other items like these would give to the same seeds. Accuracy above, below it the margin in nats, which does not"
        " saturate. The U-index is the mean of both ends less the middle three depths. Several pieces stand side by side at a"
        " depth, which training strews, so these are other items than those of the accuracy by length; items without evidence"
        " are left out."
    )
    out = [tag("p", lead), ramp(RAMP, "0", "1", "accuracy; all maps of this section are on this one scale")]
    for cell in book.cells:
        own = [r for r in final if r.cell == cell["name"]]
        for task in dict.fromkeys(r.task for r in own):
            of_task = [r for r in own if r.task == task]
            arms = [a for a in book.arms.labels if any(r.arm == a for r in of_task)]
            maps = [_map(book, task, [r for r in of_task if r.arm == arm]) for arm in arms]
            heading = tag("h3", cell["title"] if task in cell["title"] else f"{cell['title']}, {task}")
            out += [heading, tag("div", maps, class_="row"), _curves(book, study, cell["name"], task)]
    return section("depths", "Tasks by depth", out)


def _map(book: Book, task: str, own: "list[TaskRow]") -> Html:
    cells: dict[tuple[int, int], list[float]] = {}
    for r in own:
        cells.setdefault((r.times, r.bin), []).append(r.value)
    n, arm = len({r.seed for r in own}), own[0].arm
    values = {key: median(found) for key, found in cells.items()}
    lowest = min(values, key=lambda key: (values[key], key))
    caption = f"median of {n} seed{'s' if n > 1 else ''}; lowest {decimal(values[lowest], 2)} at {lowest[0]}×, {lowest[1] * 10}%"
    alt_text = f"Accuracy of {task} by length and depth, {book.arms.labels[arm]}: {caption}"
    return book.charts.place(depth_map(values, alt_text), book.arm(arm), caption)


def _curves(book: Book, study: "TaskStudy", cell: str, task: str) -> list[Html]:
    """Of every length: a line of small figures of accuracy, one of the margin, and a table of each."""
    out = []
    for score, curves in ((SCORES[0], study.curves), (SCORES[2], study.margins)):
        found = {
            (t, arm): curves[cell, arm, task, t, "none"]
            for t in sorted({g[3] for g in curves if (g[0], g[2], g[4]) == (cell, task, "none")})
            for arm in book.arms.labels
            if (cell, arm, task, t, "none") in curves
        }
        if found:
            figures = [_figure(book, cell, task, t, score, found) for t in dict.fromkeys(t for t, _ in found)]
            out += [tag("div", figures, class_="grid narrow"), curve_table(found, book.arms.labels, score)]
    return out


def _figure(book: Book, cell: str, task: str, times: int, score: Score, found: dict) -> Html:
    own = {arm: curve for (t, arm), curve in found.items() if t == times}
    said = "; ".join(f"{book.arms.labels[arm]} U-index {number(c.u_index.value, 2)}" for arm, c in own.items())
    bins, ranges = {a: c.bins for a, c in own.items()}, {a: c.ranges for a, c in own.items()}
    alt_text = f"{score.said} of {task} by depth at {times}× the length, in {cell}. {said}"
    return book.charts.place(depth_chart(bins, ranges, book.arms, score, alt_text), f"{task} at {times}×{score.title}")
