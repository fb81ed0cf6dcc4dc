"""Faithfulness by deletion: how much of an answer's log-probability goes when its evidence does, beside other text.

Notable: what is taken away is replaced by noise of the same length, so that nothing moves; the control takes as many spans of
the same lengths elsewhere, filled with the same noise, and every comparison is paired within the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..record import Row
from ..tasks.task import Span
from ..tasks.vocabulary import FILL, N_FILL
from .changes import interval
from .intervene import _as_evaluated
from .next_token import NextToken, next_token
from .question import Question, filled

# What stands between the pieces of a task's item.
TASK_NOISE = tuple(range(FILL, FILL + N_FILL))


@dataclass(frozen=True)
class Deleted:
    """Of one question: the answer's log-probability in nats as it is, without the evidence, and without `spans`."""

    question: Question
    spans: tuple[Span, ...]
    log_p: float
    without_evidence: float
    without_other: float

    @property
    def evidence_drop(self) -> float:
        """What the evidence was worth."""
        return self.log_p - self.without_evidence

    @property
    def control_drop(self) -> float:
        """What other text of the same length was worth."""
        return self.log_p - self.without_other


@dataclass(frozen=True)
class Faithfulness:
    """The questions' own numbers, and their means as rows."""

    deleted: tuple[Deleted, ...]

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Rows of source `deletion`, each a mean over questions with its 95% interval; docs/metrics.md defines them."""
        tasks, lengths = {d.question.task for d in self.deleted}, {len(d.question.ids) for d in self.deleted}
        at = {
            "task": (next(iter(tasks)) if len(tasks) == 1 else "") or None,
            "length": next(iter(lengths)) if len(lengths) == 1 else None,
        }
        rows = []
        for metric, drops in (
            ("evidence_drop", [d.evidence_drop for d in self.deleted]),
            ("control_drop", [d.control_drop for d in self.deleted]),
            ("evidence_excess", [d.evidence_drop - d.control_drop for d in self.deleted]),
        ):
            low, high = interval(drops)
            for name, value in ((metric, float(np.mean(drops))), (f"{metric}_low", low), (f"{metric}_high", high)):
                rows.append(Row(run, step, "deletion", name, value, "nats", **at))
        return rows


@torch.no_grad()
def faithfulness(
    model: nn.Module | NextToken, questions: Sequence[Question], *, noise: Sequence[int], seed: int = 0
) -> Faithfulness:
    """Take the gold documents of each question away, and as much other text.

    Args:
        model: a decoder of Gatelab or of transformers.
        noise: ids that say nothing about the question, of which those that stand in are drawn: `TASK_NOISE` for items of
            tasks as ids; for text the ids of words, or of a text about something else.
        seed: of the draws; a question's depend on it and on the question's place alone.

    Raises:
        ValueError: no questions, no noise, a question that the model cannot read or that leaves no room for the control.
    """
    language, noise = next_token(model), tuple(noise)
    if not questions or not noise:
        raise ValueError(f"{len(questions)} questions and {len(noise)} ids of noise; give one at least of each")
    language.check_ids(noise, "noise")
    for question in questions:
        question.check(language)
    with _as_evaluated(language.model):
        return Faithfulness(tuple(_deleted(language, q, noise, (seed, i)) for i, q in enumerate(questions)))


def _deleted(language: NextToken, question: Question, noise: tuple[int, ...], key: tuple[int, int]) -> Deleted:
    rng = np.random.default_rng(key)
    longest = max(end - start for start, end in question.evidence)
    drawn = tuple(noise[i] for i in rng.integers(0, len(noise), longest).tolist())
    others = other_spans(question, rng)
    texts = (question.ids, filled(question.ids, question.evidence, drawn), filled(question.ids, others, drawn))
    return Deleted(question, others, *(_log_p(language, question, ids) for ids in texts))


def other_spans(question: Question, rng: np.random.Generator) -> tuple[Span, ...]:
    """Spans as long as those of the evidence, anywhere before the end of the prompt but in the evidence, in what is `kept`, in
    an answer, and in one another: each as likely where there is room.

    Raises:
        ValueError: no room.
    """
    is_free = np.zeros(len(question.ids), dtype=bool)
    is_free[: len(question.prompt)] = True
    said = tuple((p + 1, p + 2) for p in question.asked)
    for start, end in (*question.evidence, *question.kept, *said):
        is_free[start:end] = False
    spans = []
    # The longest first, while there is most room.
    for n in sorted((end - start for start, end in question.evidence), reverse=True):
        run = np.convolve(is_free, np.ones(n, dtype=int), mode="valid")
        starts = np.flatnonzero(run == n)
        if not len(starts):
            raise ValueError(
                f"{question.name}: no {n} tokens side by side are left for the control; ask longer items, or fewer documents"
            )
        start = int(starts[rng.integers(len(starts))])
        is_free[start : start + n] = False
        spans.append((start, start + n))
    return tuple(sorted(spans))


def _log_p(language: NextToken, question: Question, ids: tuple[int, ...]) -> float:
    losses_A, _ = language.losses(language.states(list(ids)), list(question.asked), list(question.answer))
    return -float(losses_A.sum())
