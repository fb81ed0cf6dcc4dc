"""The atlas over training and beyond its length: sink, drain and loss step by step, and accuracy at multiples of the length."""

from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

from .atlas_book import book_of, colours, linked, way
from .card_figures import Band, band, bands
from .document import Charts
from .markup import NONE, Html, number, tag
from .measured import thin
from .parts import section
from .tables import table as tabulated
from .tasks.page import extrapolation

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas, Sheet
    from ..analysis.tasks import TaskRow
    from .book import Book

_MOST_POINTS = 60  # of a curve
_TITLES = {
    "first_token_mass": ("Sink: first-token mass", "share of attention"),
    "value_drain": ("Drain: first token's value norm", "of the median's"),
    "val_loss": ("Held-out loss", "nats"),
}


def emergence(atlas: "Atlas", charts: Charts) -> Html:
    """What comes first, of the studies that looked at their runs more than at the end."""
    from ..analysis.atlas_views import LEAST_LOOKS

    out, lacking = [], []
    for s in (s for s in atlas.sheets if s.views is not None):
        book = book_of(s, charts)
        drawn = [_cell(book, s, cell["name"]) for cell in book.cells]
        if any(drawn):
            shown = [part for part in drawn if part]
            n = f"{len(shown)} cell{'s' * (len(shown) != 1)}"
            summary = tag("summary", tag("b", f"{s.letter} {s.name}"), f": sink, drain and loss by step in {n}")
            there = tag("p", "On its own page: ", linked(s, section="mass"), class_="about")
            out.append(tag("details", summary, there, colours(book), shown, class_="print"))
        else:
            n = s.views.n_looks
            looks = f"{n} look{'s' * (n != 1)} a run at the sink" if n else "the sink was not looked at"
            beside = way(s, "learning", "accuracy over training is on its page") or way(s, "loss", "its page")
            lacking.append(tag("li", linked(s), f": no curve stored, {looks}", ["; ", beside] if beside else None))
    lead = (
        "What comes first, and what the gate keeps from coming: sink, drain and loss by step, of the studies whose rows have"
        f" {LEAST_LOOKS} looks at a run or more."
    )
    none = tag("ul", lacking, class_="plain about") if lacking else None
    return section("training", "Emergence over training", tag("p", lead), out, none)


def _cell(book: "Book", s: "Sheet", cell: str) -> Html | None:
    """A chart a sight; None where no run of the cell has a curve."""
    figures = []
    for reading, (title, unit) in _TITLES.items():
        found = [b for arm in book.arms.labels if (b := _band(s, cell, arm, reading)) and len(b.median) > 1]
        if found:
            said = "; ".join(f"{book.arms.labels[b.arm]} {_ends(b)}" for b in found)
            most = max(b.n_seeds for b in found)
            drawn = f"the median of {most} seeds, band: least to largest" if most > 1 else "the one seed"
            about = f"Line: {drawn}. From the first look to the last (step {found[0].median[-1][0]:,.0f}): {said}."
            alt_text = f"{title} over training in {cell}. {about}"
            figures.append(book.charts.place(bands(found, book.arms, unit, alt_text), title, about))
    return (
        tag("div", tag("h4", f"{cell} ({s.letter} {s.name})"), tag("div", figures, class_="row")) if figures else None
    )


def _band(s: "Sheet", cell: str, arm: str, reading: str) -> Band | None:
    of = [points for key, points in sorted(s.views.courses.items()) if (key[0], key[1], key[3]) == (cell, arm, reading)]
    return band(arm, [dict(thin(points, max(x for x, _ in points), _MOST_POINTS)) for points in of])


def _ends(b: Band) -> str:
    return f"{number(b.median[0][1])} to {number(b.median[-1][1])}"


def lengths(atlas: "Atlas", charts: Charts) -> Html:
    """Accuracy at multiples of the length of training."""
    out = []
    for s in asked(atlas):
        book, final = book_of(s, charts), final_rows(s)
        figures = []
        for cell, task in solved_cells(final):
            own = [r for r in final if r.cell == cell]
            beside = [r for r in s.views.tasks if r.cell == cell]
            ways = dict.fromkeys(r.stretch for r in own if r.task == task)
            figures += [
                tag("div", tag("h4", cell), extrapolation(book, beside, own, task, stretch)) for stretch in ways
            ]
        read = (
            "How to read it: at 1× is the length of training; a thick line (median of the seeds) that stays up reaches further, one"
            " that falls to the grey lines says nothing more than copying or chance would."
        )
        n = len({r.cell for r in final})
        which = (
            f"Drawn: {len(solved_cells(final))} of {n} cells, those in which some arm has nine in ten right at 1×; all are in the"
            " table."
        )
        out += [
            tag("h3", linked(s, section="lengths")), colours(book),
            tag("div", figures, class_="grid") if figures else None,
            tag("p", read if figures else "", f" {which}", class_="about"), _folded(s, book, final),
        ]  # fmt: skip
    if not out:
        return section("lengths", "Beyond the length of training", tag("p", "No study here asked beyond its length."))
    lead = "How far what was learnt at one length holds at two, four and eight times it. Positions as trained, unless said."
    return section("lengths", "Beyond the length of training", tag("p", lead), out)


def asked(atlas: "Atlas") -> "list[Sheet]":
    """The studies with rows at more than one length."""
    return [s for s in atlas.sheets if s.views is not None and len({r.times for r in s.views.tasks}) > 1]


def final_rows(s: "Sheet") -> "list[TaskRow]":
    """Accuracies at the end of every run."""
    from ..analysis.tasks import last_rows

    return [r for own in last_rows(s.views.tasks).values() for r in own if r.metric == "exact_match"]


def middles(rows: "Iterable[TaskRow]") -> dict[tuple[str, str, str, str], dict[int, float]]:
    """{(cell, task, stretch, arm): {times: median of the seeds}}."""
    held: dict[tuple[str, str, str, str], dict[int, list[float]]] = {}
    for r in rows:
        held.setdefault((r.cell, r.task, r.stretch, r.arm), {}).setdefault(r.times, []).append(r.value)
    return {key: {t: median(values) for t, values in sorted(of.items())} for key, of in held.items()}


def solved_cells(rows: "list[TaskRow]") -> list[tuple[str, str]]:
    """(cell, task) that some arm solves at the length of training in the median of its seeds, in the order of the rows."""
    from ..study.metrics import SOLVED

    found = {(cell, task) for (cell, task, _, _), at in middles(rows).items() if at.get(1, 0.0) >= SOLVED}
    return [key for key in dict.fromkeys((r.cell, r.task) for r in rows) if key in found]


def _folded(s: "Sheet", book: "Book", rows: "list[TaskRow]") -> Html:
    """Medians at the length of training and at the largest multiple."""
    at = middles(rows)
    n = max(len({r.seed for r in rows if r.cell == cell}) for cell in {r.cell for r in rows})
    body = []
    for cell, task, stretch in dict.fromkeys(key[:3] for key in at):
        of = {arm: at.get((cell, task, stretch, arm), {}) for arm in book.arms.labels}
        name = cell if task in cell else f"{cell}, {task}"
        body.append([f"{name}{'' if stretch == 'none' else f', {stretch}'}", *(_two(x) for x in of.values())])
    columns = ["accuracy, shortest to longest", *book.arms.labels.values()]
    table = tabulated(columns, body, numeric=set(range(1, len(columns))), name=f"lengths of {s.letter} {s.name}")
    return tag("details", tag("summary", f"all cells, medians of up to {n} seeds"), table, class_="print")


def _two(at: dict[int, float]) -> str:
    if not at:
        return NONE
    first, last = min(at), max(at)
    return f"{at[first]:.2f} at {first}×, {at[last]:.2f} at {last}×"
