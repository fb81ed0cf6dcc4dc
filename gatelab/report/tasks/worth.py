"""Tables of what answers are worth beside their accuracy: how far a seed keeps it, what is copied, which errors are made."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from ..markup import NONE, Html, decimal
from ..tables import table

if TYPE_CHECKING:
    from ...analysis.task_study import TaskStudy
    from ...analysis.tasks import TaskRow

Key = tuple[str, int | None]  # metric, and the number of a sentence or of pairs
# What stands beside scores, in the order of the rows; of one in a thousand something is to be seen.
_GREY, _DIGITS = ("copying", "chance", "untrained"), 3
_STRETCHED = {"none": "", "yarn": ", with YaRN"}
# In the order of the columns.
_WORDS = {
    "copied_from_start": "copied from the start", "edit_similarity": "edit similarity", "answer_precision": "precision",
    "answer_recall": "recall", "answer_f1": "F1", "answer_exact": "value right", "citation_precision": "citation precision",
    "citation_recall": "citation recall", "citation_f1": "citation F1", "context_answers": "says the text's value",
    "memory_answers": "says the learned one", "memorization_ratio": "memorization ratio",
    "error_neighbour": "says a neighbour's value", "error_other_value": "says another pair's",
    "error_elsewhere": "says no pair's", "first_error": "tokens before the first error", "sentence_recall": "says sentence",
    "query_accuracy": "each key",
}  # fmt: skip


def worth_tables(study: "TaskStudy", own: "Sequence[TaskRow]", labels: dict[str, str]) -> list[Html]:
    """Of the final rows of a cell's finished runs."""
    cell = own[0].cell
    far = {key[1:]: by_seed for key, by_seed in study.effective.items() if key[0] == cell}
    before = [r for r in study.rows if r.cell == cell and r.step == 0]
    return [*([_effective(far, labels)] if far else []), *(_more(task, own, before, labels) for task in _tasks(own))]


def _tasks(own: "Sequence[TaskRow]") -> list[str]:
    return list(dict.fromkeys(r.task for r in own if r.metric in _WORDS))


def _effective(far: dict[tuple[str, str, str], dict[int, int | None]], labels: dict[str, str]) -> Html:
    """In multiples of the length of training, seed by seed."""
    arms = [arm for arm in labels if any(arm == own for own, _, _ in far)]
    rows = []
    for task, stretch in sorted({key[1:] for key in far}):
        told = [
            ", ".join("none" if t is None else f"{t}×" for _, t in sorted(far.get((arm, task, stretch), {}).items()))
            for arm in arms
        ]
        rows.append([f"{task}{_STRETCHED.get(stretch, f', {stretch}')}", *(t or NONE for t in told)])
    columns = ["effective length of each seed", *(labels[arm] for arm in arms)]
    return table(columns, rows, numeric=set(), name="effective lengths")


def _more(task: str, own: "Sequence[TaskRow]", before: "Sequence[TaskRow]", labels: dict[str, str]) -> Html:
    """Medians over seeds, by arm and length, positions as trained; and beside them what guessing scores, and models of any arm
    did before training, where that is known."""
    found: dict[tuple[str, int], dict[Key, list[float]]] = {}
    for r in own:
        if r.task == task and r.metric in _WORDS and r.stretch == "none":
            found.setdefault((r.arm, r.times), {}).setdefault((r.metric, r.bin), []).append(r.value)
    beside = _beside(task, own, before)
    keys = sorted(
        {key for of in found.values() for key in of}, key=lambda key: (list(_WORDS).index(key[0]), key[1] or 0)
    )
    rows = [
        [f"{labels[arm]} at {times}×", *(decimal(median(of[key]), 2) if key in of else NONE for key in keys)]
        for (arm, times), of in sorted(found.items(), key=lambda entry: (list(labels).index(entry[0][0]), entry[0][1]))
    ]
    rows += [
        [f"{name}, {times}×", *(decimal(median(of[key]), _DIGITS) if key in of else NONE for key in keys)]
        for (name, times), of in sorted(beside.items(), key=lambda entry: (_GREY.index(entry[0][0]), entry[0][1]))
    ]
    words = [_named(*key) for key in keys]
    return table(
        [f"{task}, median of seeds", *words], rows, numeric=set(range(1, len(words) + 1)), name=f"more of {task}"
    )


def _beside(
    task: str, own: "Sequence[TaskRow]", before: "Sequence[TaskRow]"
) -> dict[tuple[str, int], dict[Key, list[float]]]:
    """{(name of `_GREY`, times): {score: values}}"""
    found: dict[tuple[str, int], dict[Key, list[float]]] = {}
    ends = {"_chance": "chance", "_floor": "copying"}
    guesses = [(r, end) for r in own for end in ends if r.metric.endswith(end) and r.metric.removesuffix(end) in _WORDS]
    named = [(r, ends[end], r.metric.removesuffix(end)) for r, end in guesses]
    named += [(r, "untrained", r.metric) for r in before if r.metric in _WORDS]
    for r, name, metric in named:
        if r.task == task and r.stretch == "none":
            found.setdefault((name, r.times), {}).setdefault((metric, r.bin), []).append(r.value)
    return found


def _named(metric: str, number: int | None) -> str:
    if number is None:
        return _WORDS[metric]
    return f"{_WORDS[metric]}, {number} pairs" if metric == "query_accuracy" else f"{_WORDS[metric]} {number + 1}"
