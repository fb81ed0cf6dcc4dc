"""The sections of tasks, in reading order; each is there only where its rows are."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from ..book import Book
from ..charts import Line
from ..figures import curves
from ..markup import Html, number, tag
from ..measured import Points, thin
from ..parts import section
from .depths import depths_section
from .evidence import evidence_section
from .figures import lengths_chart
from .items import worst_item
from .scores import SCORES, Score
from .table import beside, citation_table, reached_table, solved_table
from .worth import worth_tables

if TYPE_CHECKING:
    from ...analysis.task_study import TaskStudy
    from ...analysis.tasks import TaskRow

_WORDS = {"none": "as trained", "yarn": "with YaRN"}
Sections = dict[str, tuple[str, Html]]


def task_sections(book: Book, study: "TaskStudy") -> Sections:
    """{name: (word, section)} of what the study asked."""
    made: dict[str, tuple[str, Callable[[Book, TaskStudy], Html | None]]] = {
        "lengths": ("Tasks by length", _lengths),
        "learning": ("How soon", _learning),
        "depths": ("Tasks by depth", _depths),
        "citations": ("Citations", _citations),
        "evidence": ("Evidence", evidence_section),
        "items": ("Items", _items),
    }
    found = {name: (word, make(book, study)) for name, (word, make) in made.items()}
    return {name: (word, html) for name, (word, html) in found.items() if html is not None}


def _lengths(book: Book, study: "TaskStudy") -> Html | None:
    """Accuracy over multiples of the length of training, and in how many seeds a task is solved."""
    final = _final(book, study)
    if not final:
        return None
    lead = (
        "Items of which the model says all of the answer, at multiples of the length that it was trained at. Thin: one seed."
        " Thick: the median of an arm's finished seeds, not their mean: a seed solves a task or does not. Grey: what copying"
        " blindly out of the item gives (dotted), tokens of the right kind drawn at random (dashed), and the models before"
        " training (wide dots). The margin: by how much the right token leads the best wrong one where the answer is least"
        " sure, mean over items, in nats; it tells models apart where all is right, or nothing. Of a task that asks many keys also"
        " the share of keys after which the value is said; solved are items all of whose keys are right."
    )
    out = [tag("p", lead)]
    for cell in book.cells:
        own = [r for r in final if r.cell == cell["name"]]
        if not own:
            continue
        figures = [
            extrapolation(book, study.rows, own, task, stretch, score)
            for score in SCORES
            for task in _distinct(r.task for r in own if r.metric == score.metric)
            for stretch in _distinct(r.stretch for r in own if r.task == task and r.metric == score.metric)
        ]
        shares = [s for s in study.solved if s.cell == cell["name"]]
        out += [book.heading(cell), tag("div", figures, class_="grid"), solved_table(shares, book.arms.labels)]
        out += [*worth_tables(study, own, book.arms.labels), _holes(book, cell["name"])]
    said = tag(
        "p",
        "Solved: nine in ten items right, or more. Exact (Clopper–Pearson) intervals of the true share of seeds. Effective length:"
        " the longest at which a seed keeps 85% of the best accuracy at its own three shortest, both less what guessing scores"
        " (the greater of chance and copying); “none” where that best, or its interval over items, is not above guessing. Copied"
        " from the start: an answer that begins as the text does.",
    )
    return section("lengths", "Tasks by length", out, said)


def extrapolation(
    book: Book, rows: "list[TaskRow]", own: "list[TaskRow]", task: str, stretch: str, score: Score = SCORES[0]
) -> Html:
    """A cell's task by length, of its final rows `own`; among all `rows` are those that it stands beside."""
    # At the length of training there is nothing to stretch.
    meant = [r for r in own if r.task == task and (r.stretch == stretch or r.times == 1)]
    seeds = _by_seed([r for r in meant if r.metric == score.metric and r.bin is None])
    medians = _medians(book, seeds)
    cell = own[0].cell
    lines = beside([r for r in rows if r.cell == cell and r.task == task], score.metric)
    ends = "; ".join(f"{book.arms.labels[a]} {_said(points)}" for a, points in medians.items())
    alt_text = f"{score.said} of {task} by length, {_WORDS[stretch]}, in {cell}. Medians: {ends}"
    grey = ", ".join(f"{name} {number(points[0][1], 2)}" for name, points in lines.items())
    title = f"{task}{score.title}, positions {_WORDS[stretch]}"
    chart = lengths_chart(seeds, medians, lines, book.arms, score, alt_text)
    return book.charts.place(chart, title, f"At 1×: {grey}." if grey else None)


def _learning(book: Book, study: "TaskStudy") -> Html | None:
    """Accuracy over training, and after how many steps nine in ten are right."""
    lead = (
        "Accuracy at the length of training, as often as it was asked. Thin: one seed. Thick: the median of an arm's seeds. Cross:"
        " a run that is not done. A seed that never has nine in ten right is not slow but censored: its step is beyond the last."
        " The median counts it so, and the comparison counts in which of two runs of one seed it came sooner (p: exact, of the"
        " seeds that differ)."
    )
    out = []
    for cell in book.cells:
        figures = []
        own = [r for r in study.rows if r.cell == cell["name"] and r.bin is None]
        own = [r for r in own if r.times == 1 and r.stretch == "none"]
        for score in (s for s in SCORES if s.is_share):
            for task in _distinct(r.task for r in own if r.metric == score.metric):
                asked = [r for r in own if (r.task, r.metric) == (task, score.metric)]
                seeds = [_told(book, cell["name"], line) for line in _by_seed(asked, along="step")]
                if any(len(line.points) > 2 for line in seeds):
                    figures.append(_curve(book, cell["name"], task, seeds, score))
        found = [r for r in study.reached if r.cell == cell["name"]]
        if figures and found:
            refused = {f.arm for f in book.findings if f.cell == cell["name"] and f.verdict == "refused"}
            table = reached_table(found, book.arms.labels, book.arms.baseline, refused)
            out += [book.heading(cell), tag("div", figures, class_="grid"), table]
    return section("learning", "How soon a task is solved", tag("p", lead), out) if out else None


def _told(book: Book, cell: str, line: Line) -> Line:
    """With how its run ended, where it is not done."""
    run = next((r for r in book.measured.runs if r.key == (cell, line.arm, line.seed)), None)
    return line if run is None or run.is_done else replace(line, cut=run.state)


def _curve(book: Book, cell: str, task: str, seeds: list[Line], score: Score) -> Html:
    medians = _medians(book, seeds)
    ends = "; ".join(f"{book.arms.labels[a]} {number(p[-1][1])}" for a, p in medians.items() if p)
    chart = curves(
        seeds, medians, book.arms, domain=[0, 1], y_title=score.axis,
        alt_text=f"{score.said} of {task} over training in {cell}. Medians at the end: {ends}",
    )  # fmt: skip
    return book.charts.place(chart, f"{task}{score.title}")


def _depths(book: Book, study: "TaskStudy") -> Html | None:
    return depths_section(book, study, _final(book, study))


def _citations(book: Book, study: "TaskStudy") -> Html | None:
    """Answer × citation."""
    if not study.citations:
        return None
    lead = (
        "Whether the answer is right, and whether the documents that are cited are all that say it and no other. Shares of all"
        " items of an arm's finished seeds. An answer that is right beside a document that is wrong was not read where it says."
    )
    out = []
    for cell in book.cells:
        groups = sorted(g[2:] for g in study.citations if g[0] == cell["name"])
        for task, times, stretch in dict.fromkeys(groups):
            shares = {
                arm: study.citations[cell["name"], arm, task, times, stretch]
                for arm in book.arms.labels
                if (cell["name"], arm, task, times, stretch) in study.citations
            }
            title = f"{cell['title']}, {task} at {times}×{'' if stretch == 'none' else f', {_WORDS[stretch]}'}"
            out += [tag("h3", title), citation_table(shares, book.arms.labels)]
    return section("citations", "Answers and their citations", tag("p", lead), out)


def _items(book: Book, study: "TaskStudy") -> Html | None:
    """The items that most runs get wrong."""
    if not study.worst:
        return None
    lead = (
        "The items that most finished runs of a cell get wrong, at the shortest length at which any is wrong, to be opened and"
        " read: in words, with the evidence marked and the right answer set in bold type at the end. The margin is the mean over"
        " runs of the least lead of the right token, in nats."
    )
    out = []
    for cell in book.cells:
        own = [w for w in study.worst if w.cell == cell["name"]]
        out += [book.heading(cell), [worst_item(book, w) for w in own]] if own else []
    return section("items", "The worst items", tag("p", lead), out)


def _final(book: Book, study: "TaskStudy") -> "list[TaskRow]":
    """Of finished runs, at their end."""
    from ...analysis.tasks import last_rows

    done = {r.key for r in book.measured.runs if r.is_done}
    return [row for key, own in sorted(last_rows(study.rows).items()) if key in done for row in own]


def _by_seed(rows: "Iterable[TaskRow]", along: str = "times") -> list[Line]:
    found: dict[tuple[str, int], dict[int, float]] = {}
    for r in rows:
        found.setdefault((r.arm, r.seed), {})[getattr(r, along)] = r.value
    return [Line(arm, seed, thin(sorted(points.items()), max(points))) for (arm, seed), points in sorted(found.items())]


def _medians(book: Book, lines: list[Line]) -> dict[str, Points]:
    """Over an arm's seeds, where all of them have a point."""
    out = {}
    for arm in book.arms.labels:
        tables = [dict(line.points) for line in lines if line.arm == arm]
        if tables:
            shared = sorted(set(tables[0]).intersection(*tables[1:]))
            out[arm] = [(x, median(t[x] for t in tables)) for x in shared]
    return out


def _said(points: Points) -> str:
    return ", ".join(f"{number(v, 2)} at {int(t)}×" for t, v in points)


def _holes(book: Book, cell: str) -> Html | None:
    return tag("p", holes.strip(), class_="about") if (holes := book.holes(cell)) else None


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
