"""The page of a study: one HTML file that asks nothing of the network, and three CSV files beside it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..record import Finding
from ..store import RunFolder, StudyFolder, write_text
from . import claims, sections
from .anomalies import anomalies_csv, anomalies_section
from .anomaly_cards import FILE as CONFIRMED
from .anomaly_cards import confirmed_csv
from .arithmetic import arms_table
from .book import Book
from .charts import Arms
from .document import document
from .markup import Html, join, tag
from .measured import measure, state_of
from .parts import contents, footer, glossary, section
from .phases import found_phases, phases_csv, phases_section
from .recommend import recommendations_csv, which_section
from .style import VERDICTS, arm_colours
from .tables import badge, curves_csv, effects_csv, pairing_table, runs_csv, runs_table, shares_table, shown_runs
from .tasks import task_sections, tasks_csv
from .varied import FILE as VARIED
from .varied import varied_csv, varied_section

if TYPE_CHECKING:
    from ..analysis.looked import Looked
    from ..analysis.phases import Phases
    from ..analysis.recommend import Advice
    from ..analysis.task_study import TaskStudy
    from ..analysis.varied import Varied

_NONE = tag("p", "None to report.", class_="about")
_PLAIN = "The charts need JavaScript. The verdicts, the tables and the CSV files do not."
_WORDS = {
    "Pair": "Two runs of one seed, arm and baseline: same data in the same order, same initial values of shared weights.",
    "Effect": "The mean over pairs of arm minus baseline, in the metric's unit.",
    "Interval": "Student's t over the pairs: in 95 of 100 such studies a 95% interval holds the true effect.",
    "p, q": "p: how often chance alone gives an effect this large. q: the share of false discoveries among the primary"
    " effects whose q is as small. For a thing that is there or not, p is of an exact test on the seeds that changed.",
    "Detectable": "The smallest true effect that had an 80% chance of being seen, with this many pairs and this noise.",
    "Counts as nothing": "A difference inside the shaded band of a plot; its width was declared before looking.",
    "Remainder": "Arms are matched in parameters by the width of the feed-forward layer, to the nearest unit; this is"
    " what is left over, in parameters.",
    "Arithmetic beside the baseline": "Operations of a token in training, forward and backward, over the baseline's.",
    "First-token mass": "Share of attention on the first token, mean over the queries after it. Uniform: what"
    " attention spread evenly over all visible tokens would give. Attention, gates and activations are of the decoder's"
    " self-attention where a model has an encoder too, never of cross-attention.",
    "Sink rate": "Share of heads whose first token gets more than a threshold of the attention of the queries that see it.",
    "Value drain": "Norm of the first token's value over the median of the others'; well below 1 is a drain.",
    "Massive activation": "Largest |entry| of the residual stream; its ratio is to the median |entry|.",
    "Gate score": "What the gate multiplies by: 0 is shut, 1 is open.",
}


def write_report(
    folder: StudyFolder,
    findings: Sequence[Finding],
    *,
    shares: Sequence[dict[str, Any]],
    pairing: Sequence[dict[str, Any]],
    tasks: "TaskStudy | None" = None,
    looked: "Looked | None" = None,
    advice: "Advice | str | None" = None,
    varied: "Varied | None" = None,
    note: str = "",
    state: Callable[[RunFolder], str] = state_of,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write report.html, effects.csv, runs.csv, curves.csv, tasks.csv of a study on tasks, phases.csv of one whose cells are a
    grid, anomalies.csv of one that was screened, confirmed.csv of one of which fresh seeds confirmed something,
    recommendations.csv of one that recommends, varied.csv of one with gates to compare over cells and what is `beside` them into
    the study's folder; returns the page's path.

    Same folder and findings in, same bytes out. Runs that are missing, unfinished or diverged are named with their
    state. Each file is replaced at once or not at all.

    Args:
        shares: of bimodal metrics; each with cell, arm, metric, k, n, low, high.
        pairing: what pairing bought; each with cell, arm, metric, n, correlation, gain (unpaired over paired variance).
        tasks: what `gatelab.analysis.task_study` makes of the folder; None: the page has no sections of tasks.
        looked: what the search for anomalies found; None: the page has no section of them.
        advice: which arm for which use, or why nothing is recommended; None: the page has no section of it.
        varied: how effects vary over cells and whose spread changes; None: the page has no section of it.
        note: a paragraph of the reporter's own, above the verdicts.
        state: a run folder's state in a word; 'done' is the one that counts as finished.
        beside: {name: text} of further files, such as `seeds_files` makes.

    Raises:
        StoreError: when the folder is not a study of this version.
    """
    measured = measure(folder, state)
    study = measured.study
    book = Book(measured, list(findings), arms_of(study), {m["name"]: m for m in study["metrics"]})
    grid = found_phases(book, shares)
    files = dict(beside or {})
    body = _body(book, shares, pairing, tasks, looked, advice, varied, grid, note, list(files))
    page = folder.path / "report.html"
    write_text(folder.path / "effects.csv", effects_csv(findings))
    write_text(folder.path / "runs.csv", runs_csv(measured))
    write_text(folder.path / "curves.csv", curves_csv(measured))
    for name, text in files.items():
        write_text(folder.path / name, text)
    if tasks is not None:
        write_text(folder.path / "tasks.csv", tasks_csv(tasks))
    if grid is not None:
        write_text(folder.path / "phases.csv", phases_csv(grid))
    if looked is not None:
        write_text(folder.path / "anomalies.csv", anomalies_csv(looked))
    if looked is not None and looked.confirmed:
        write_text(folder.path / CONFIRMED, confirmed_csv(looked.confirmed))
    if varied is not None:
        write_text(folder.path / VARIED, varied_csv(varied))
    if advice is not None and not isinstance(advice, str):
        write_text(folder.path / "recommendations.csv", recommendations_csv(advice))
    write_text(page, document(study["name"], body, book.charts, plain=_PLAIN))
    return page


def _body(
    book: Book,
    shares: Sequence[dict],
    pairing: Sequence[dict],
    tasks: "TaskStudy | None",
    looked: "Looked | None",
    advice: "Advice | str | None",
    varied: "Varied | None",
    grid: "Phases | None",
    note: str,
    files: Sequence[str],
) -> Html:
    study = book.measured.study
    parts = {
        "verdicts": ("Verdicts", claims.verdicts(book)),
        **({} if advice is None else {"which": ("Which for what", which_section(book, advice))}),
        **({} if tasks is None else task_sections(book, tasks)),
        **({} if grid is None else {"phases": ("Phases", phases_section(book, grid))}),
        **({} if varied is None else {"varies": ("Where it varies", varied_section(book, varied))}),
        **({} if looked is None else {"anomalies": ("Anomalies", anomalies_section(book, looked))}),
        "loss": ("Loss", sections.losses(book)),
        "mass": ("First-token mass", sections.masses(book)),
        "maps": ("Maps", sections.maps(book)),
        "gates": ("Gates", sections.gates(book)),
        "massive": ("Massive activations", sections.massive(book)),
        "effects": ("Effects", claims.effects(book)),
        "shares": ("Shares", _shares(book, shares)),
        "pairing": ("Pairing", _pairing(book, pairing)),
        "runs": ("Runs", _runs(book)),
        "how": ("How to read this page", _how()),
    }
    header = tag(
        "header",
        tag("h1", study["name"]),
        tag("p", study["question"], class_="question"),
        claims.facts(book),
        claims.missing(book),
        tag("div", tag("p", note), class_="notice") if note else None,
        contents({name: word for name, (word, _) in parts.items()}),
    )
    more = [
        name
        for name, part in (
            ("tasks.csv", tasks), ("phases.csv", grid), ("anomalies.csv", looked),
            (CONFIRMED, (looked.confirmed or None) if looked else None), ("recommendations.csv", advice), (VARIED, varied),
        )
        if part is not None and not isinstance(part, str)
    ]  # fmt: skip
    end = footer(study["version"], ", ".join(["effects.csv", "runs.csv", "curves.csv", *files, *more]))
    return join([header, claims.legend(book), tag("main", [part for _, part in parts.values()]), end])


def _shares(book: Book, shares: Sequence[dict]) -> Html:
    lead = (
        "Some things are there in a run or not, and a mean over seeds would describe no run. So they are counted, with"
        " exact (Clopper–Pearson) intervals of the true share."
    )
    table = shares_table(shares, book.metrics, book.arms.labels) if shares else _NONE
    return section("shares", "Shares of runs", tag("p", lead), table)


def _pairing(book: Book, pairing: Sequence[dict]) -> Html:
    lead = (
        "Runs of one seed see the same batches and start from the same shared weights. Where that makes them alike,"
        " their difference varies less than that of two unrelated runs. The variance ratio says how much less: above 1,"
        " pairing helped. With three pairs the correlation is a hint, not a measurement."
    )
    table = pairing_table(pairing, book.words, book.arms.labels) if pairing else _NONE
    study = book.measured.study
    arms = arms_table(study["plan"], study["baseline"], book.arms.labels)
    beside = None if arms is None else [tag("h3", "What the arms take"), arms]
    return section("pairing", "Does pairing work?", tag("p", lead), table, beside)


def _runs(book: Book) -> Html:
    n, shown = len(book.measured.runs), len(shown_runs(book.measured))
    which = "Every planned run."
    if shown < n:
        which = (
            f"Of {n:,} runs the first of each cell and arm, which differ from the others in the seed, and those that are not "
            "done; all are in runs.csv beside this page."
        )
    lead = f"{which} A run's name is the fingerprint of its configuration and data; the command repeats it."
    return section("runs", "Runs", tag("p", lead), runs_table(book.measured, book.arms.labels))


def _how() -> Html:
    words = [(badge(verdict), meaning[:1].upper() + meaning[1:] + ".") for verdict, (_, meaning) in VERDICTS.items()]
    return glossary([*words, *_WORDS.items()])


def arms_of(study: Mapping[str, Any]) -> Arms:
    """The arms of a study with their colours; two that are worded alike are called by their names."""
    arms, baseline = study["arms"], study["baseline"]
    worded = [arm["label"] for arm in arms]
    labels = {arm["name"]: arm["label"] if worded.count(arm["label"]) == 1 else arm["name"] for arm in arms}
    return Arms(labels, arm_colours(list(labels), baseline), baseline)
