"""What reweighting does for the answer: its log-probability and whether it is said, beside the untouched model, paired."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np
import torch

from ...models.decoder import Decoder
from ...record import Row
from ..changes import interval, share_interval
from ..next_token import NextToken, next_token
from ..question import Question
from .attention import DocumentAttention, document_attention
from .reweight import TEMPERATURE, Focus, reweighted


@dataclass(frozen=True)
class Reweighted:
    """By question: the answer's log-probability in nats and whether each of its tokens alone is the likeliest, untouched and
    reweighted; not-a-number and not right where there is no relevance to reweight by."""

    questions: tuple[Question, ...]
    log_p: tuple[tuple[float, float], ...]
    is_right: tuple[tuple[bool, bool], ...]

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Rows of source `middle`; docs/metrics.md defines them."""
        gain = [after - before for before, after in self.log_p if isfinite(after) and isfinite(before)]
        tasks = {q.task for q in self.questions}
        task = (next(iter(tasks)) if len(tasks) == 1 else "") or None

        def row(metric: str, value: float, unit: str, stage: str | None = None) -> Row:
            return Row(run, step, "middle", metric, float(value), unit, task=task, stage=stage)

        low, high = interval(gain)
        of_gain = {"": np.mean(gain), "_low": low, "_high": high} if gain else {}
        return [
            *(row(f"reweighting_gain{end}", value, "nats") for end, value in of_gain.items()),
            row("reweighting_nan", 1 - len(gain) / len(self.log_p), "share"),
            *(
                row(f"reweighted_answer{end}", value, "share", stage)
                for stage, is_right in zip(("raw", "reweighted"), zip(*self.is_right, strict=True), strict=True)
                for end, value in zip(
                    ("", "_low", "_high"), (np.mean(is_right), *share_interval(is_right)), strict=True
                )
            ),
        ]


@torch.no_grad()
def reweighting_effect(
    model: Decoder,
    questions: Sequence[Question],
    *,
    dummy: Sequence[int],
    form: str = "mass",
    layers: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
    found: Sequence[DocumentAttention] | None = None,
) -> Reweighted:
    """Ask each question as it is, and with attention reweighted from the prompt's last token on.

    Args:
        form: which calibrated attention is the relevance; a mean over all layers. A question for which it is no number is
            asked as it is alone.
        layers: those that are changed; None: the latter half.
        found: what `document_attention` gave for these questions; None looks.

    Raises:
        ValueError: no questions, and as `document_attention` and `reweighted`.
    """
    if not questions:
        raise ValueError("no questions; ask one at least")
    language = next_token(model)
    found = document_attention(model, questions, dummy=dummy) if found is None else found
    log_p, is_right = [], []
    for question, attention in zip(questions, found, strict=True):
        relevance = tuple(attention.of("calibrated", form).tolist())
        before, after = _asked(language, question), (nan, False)
        if np.isfinite(relevance).all():
            focus = Focus(question.documents, relevance, len(question.prompt) - 1)
            with reweighted(model, [focus], layers=layers, temperature=temperature):
                after = _asked(language, question)
        log_p.append((before[0], after[0]))
        is_right.append((before[1], after[1]))
    return Reweighted(tuple(questions), tuple(log_p), tuple(is_right))


def _asked(language: NextToken, question: Question) -> tuple[float, bool]:
    """The answer's log-probability, and whether each of its tokens, after the right ones before it, alone is the likeliest."""
    at_A = torch.tensor(question.asked, device=language.device)
    log_p_AV = language.logits(language.states(list(question.ids)), at_A).double().log_softmax(dim=-1).cpu()
    right_A1 = torch.tensor(question.answer)[:, None]
    right_p_A1 = log_p_AV.gather(1, right_A1)
    rivals_A = log_p_AV.scatter(1, right_A1, -torch.inf).amax(dim=-1)
    return float(right_p_A1.sum()), bool((right_p_A1[:, 0] > rivals_A).all())
