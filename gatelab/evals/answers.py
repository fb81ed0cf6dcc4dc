"""Answers to items of tasks, and what they are worth: items, and rows by task, length and depth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..record import Item, Row
from ..tasks import Knobs, Task, TaskItem
from ..tasks.errors import UNITS, Key, errors_of, means
from ..tasks.guesses import copies, guesses_of
from ..tasks.metrics import Verdict, cited, copied_from_start, edit_similarity, overlap
from ..tasks.options import chance_of, copied_choice, options_of


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to an item. `margin`: the least, over the answer's tokens, of the right one's log-probability less
    the best wrong one's, in nats, each after the right ones before it; not-a-number where a logit is. `verdict` is of the
    exact match: a tie or no number anywhere is wrong. `rights`: the same of each token, after the right ones before it."""

    item: TaskItem
    given: tuple[int, ...]
    log_p: float
    margin: float
    verdict: Verdict
    rights: tuple[bool, ...] = ()


def items_of(answers: Sequence[Answer], knobs: Knobs, *, run: str, step: int) -> list[Item]:
    """One record an answer; its score is the margin, its factors the length, the depth, what guessing scores, and why it is
    not counted where it is not."""
    return [
        Item(
            run=run,
            step=step,
            task=a.item.task,
            item=a.item.index,
            correct=a.verdict.is_right,
            score=a.margin,
            answer=" ".join(map(str, a.item.answer)),
            given=" ".join(map(str, a.given)),
            factors={
                "length": knobs.length,
                "depth": a.item.depth,
                "floor": a.item.floor,
                "log_p": a.log_p if math.isfinite(a.log_p) else str(a.log_p),
                "tied": a.verdict.is_tied,
                "nan": a.verdict.is_nan,
                "copied_from_start": copied_from_start(a.given, a.item.tokens),
                "evidence": [list(span) for span in a.item.evidence],
                "distractors": [list(span) for span in a.item.distractors],
                **a.item.factors,
            },
        )
        for a in answers
    ]


def scores_of(a: Answer, task: Task) -> dict[str, float]:
    """{metric: share} of one answer: all of it, and by parts where the task's answer has some."""
    out = {"exact_match": float(a.verdict.is_right)}
    match task.answer:
        case "set":
            share = overlap(a.given, a.item.answer)
        case "cite":
            is_right, share = cited(a.given, a.item.answer)
            out["answer_exact"] = float(is_right)
        case "each":
            return out | {"query_accuracy": float(np.mean(a.rights))}
        case _:
            return out
    what = "citation" if task.answer == "cite" else "answer"
    return out | {f"{what}_{name}": getattr(share, name) for name in ("precision", "recall", "f1")}


def rows_of(answers: Sequence[Answer], task: Task, knobs: Knobs, *, run: str, step: int) -> list[Row]:
    """What docs/metrics.md says of source `tasks`: means over the items of one task and length.

    Raises:
        ValueError: without answers.
    """
    if not answers:
        raise ValueError(f"{task.name}: no answers; ask at least one item")

    def row(metric: str, values: Sequence[float], unit: str = "share") -> Row:
        return Row(
            run,
            step,
            "tasks",
            metric,
            float(np.mean(values)),
            unit,
            task=task.name,
            length=knobs.length,
            depth=knobs.depth,
        )

    margins = [a.margin for a in answers if math.isfinite(a.margin)]
    scores = [scores_of(a, task) for a in answers]
    guesses = [guesses_of(task, a.item) for a in answers]
    rows = [
        *(row(metric, [s[metric] for s in scores]) for metric in scores[0]),
        *(
            row(f"{metric}_{end}", [g[metric][i] for g in guesses])
            for metric in guesses[0]
            for i, end in enumerate(("chance", "floor"))
        ),
        row("answer_floor", [a.item.floor for a in answers]),
        row("answer_chance", [chance_of(a.item) for a in answers]),
        row("answer_ties", [a.verdict.is_tied for a in answers]),
        row("answer_nan", [a.verdict.is_nan for a in answers]),
        row("edit_similarity", [edit_similarity(a.given, a.item.answer) for a in answers]),
        row("copied_from_start", [copied_from_start(a.given, a.item.tokens) for a in answers]),
    ]
    if margins:
        rows.append(row("answer_margin", margins, "nats"))
    errors = means([_errors(a) for a in answers if not a.verdict.is_nan])
    return rows + [replace(row(metric, [value], UNITS[metric]), bin=b) for (metric, b), value in errors.items()]


def load_rows(answers: Sequence[Answer], task: Task, knobs: Knobs, *, run: str, step: int) -> list[Row]:
    """`query_accuracy` of items of so many pairs, chance and copying beside it, the number being the coordinate `bin`."""
    rows = rows_of(answers, task, knobs, run=run, step=step)
    return [replace(row, bin=1 + knobs.distractors) for row in rows if row.metric.startswith("query_accuracy")]


def _errors(a: Answer) -> dict[Key, float]:
    item = a.item
    others = {token for rival in item.rivals for token in rival} if item.task == "multikey" else ()
    return errors_of(item.task, a.given, item.answer, factors=item.factors, others=others, n_pieces=len(item.evidence))


def choice_rows(
    verdicts: Sequence[Verdict], items: Sequence[TaskItem], task: Task, knobs: Knobs, *, run: str, step: int
) -> list[Row]:
    """`choices` as rows: the score, ties by their share, beside that of chance."""
    values = {
        "choice": [v.credit for v in verdicts],
        "choice_chance": [1 / len(options_of(item)) for item in items],
        "choice_floor": [_copied(item) for item in items],
        "choice_ties": [v.is_tied for v in verdicts],
        "choice_nan": [v.is_nan for v in verdicts],
    }
    return [
        Row(
            run, step, "tasks", name, float(np.mean(v)), "share", task=task.name, length=knobs.length, depth=knobs.depth
        )
        for name, v in values.items()
    ]


def _copied(item: TaskItem) -> float:
    """What blind copying scores in the item's choice; of `absent` and `conflict` what one answer always does."""
    if not copies(item.task, item.floor):
        return item.floor
    return copied_choice(options_of(item), set(item.tokens[: item.asked[0] + 1]))
