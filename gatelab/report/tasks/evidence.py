"""The section that joins being right with what is seen inside: attention to the evidence and gate scores at it, and whether the
document that is cited is the one that is looked at."""

from typing import TYPE_CHECKING

from ..book import Book
from ..markup import NONE, Html, decimal, tag
from ..parts import section
from ..tables import table
from .table import interval

if TYPE_CHECKING:
    from ...analysis.task_evidence import Contrast
    from ...analysis.task_study import TaskStudy

_STRETCHED = {"none": "", "yarn": ", with YaRN"}
_WORDS = {"evidence": "attention on the evidence", "first": "attention on the first token"}
_PLACES = {"evidence": "gate scores at the evidence", "asked": "gate scores at the tokens that are asked"}
_AGREEMENTS = {
    "cited gold": "cited is gold", "attended gold": "most attended is gold", "cited attended": "cited is most attended",
    "all three": "all three are", "cited attended, of wrong ones": "of wrong ones: cited is most attended",
}  # fmt: skip


def evidence_section(book: Book, study: "TaskStudy") -> Html | None:
    """Right against wrong items, and gold, cited and most attended documents."""
    if not study.inside:
        return None
    lead = (
        "Every item that a decoder was asked, looked into: what the tokens that are asked pay the evidence, mean over them, layers"
        " and heads, where the item goes on with the right answer; and gate scores, means over layers, heads and channels. Means"
        " over the right and the wrong items of an arm's finished seeds (how many in parentheses); right less wrong is within a"
        " seed, mean over those with three of each at least, with 95% of what other items would give. Even: were all tokens"
        " paid alike. Where many keys are asked, each and its own pair count by themselves. Being attended goes with being right"
        " here, or does not; whether it is why, deletion and reweighting ask."
    )
    out = []
    for cell in book.cells:
        groups = [g for g in study.inside if g[0] == cell["name"]]
        for task, stretch in dict.fromkeys((g[2], g[4]) for g in groups):
            name = cell["title"] if task in cell["title"] else f"{cell['title']}, {task}"
            out.append(tag("h3", f"{name}{_STRETCHED.get(stretch, f', {stretch}')}"))
            times = sorted({g[3] for g in groups if (g[2], g[4]) == (task, stretch)})
            order = [(t, arm, (cell["name"], arm, task, t, stretch)) for t in times for arm in book.arms.labels]
            of = {(t, arm): study.inside[group] for t, arm, group in order if group in study.inside}
            for reading in dict.fromkeys(name for found in of.values() for name in found):
                own = {key: found[reading] for key, found in of.items() if reading in found}
                out.append(_contrasts(reading, own, book.arms.labels))
            agreed = {(t, arm): study.agreements[group] for t, arm, group in order if group in study.agreements}
            if agreed:
                rows = [
                    [_label(t, arm, book.arms.labels), *(interval(found.get(name)) for name in _AGREEMENTS)]
                    for (t, arm), found in agreed.items()
                ]
                columns = ["documents", *_AGREEMENTS.values()]
                out.append(table(columns, rows, numeric=set(range(1, len(columns))), name=f"documents of {task}"))
    return section("evidence", "What is attended where the answer is right", tag("p", lead), out)


def _contrasts(reading: str, own: "dict[tuple[int, str], Contrast]", labels: dict[str, str]) -> Html:
    site, _, place = reading.rpartition(" ")
    said = f"{_PLACES[place]}, {site}" if site else _WORDS[reading]
    has_even = any(c.even is not None for c in own.values())
    rows = [
        [
            _label(t, arm, labels), _mean(c.right, c.n_right), _mean(c.wrong, c.n_wrong), interval(c.difference, 3),
            *([NONE if c.even is None else decimal(c.even, 3)] if has_even else []),
        ]
        for (t, arm), c in own.items()
    ]  # fmt: skip
    columns = [said, "right items", "wrong items", "right less wrong", *(["even"] if has_even else [])]
    return table(columns, rows, numeric=set(range(1, len(columns))), name=said)


def _label(times: int, arm: str, labels: dict[str, str]) -> str:
    return f"{times}×, {labels[arm]}"


def _mean(value: float | None, n: int) -> str:
    return NONE if value is None else f"{decimal(value, 3)} ({n:,})"
