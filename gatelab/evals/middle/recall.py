"""Attention as a retriever: whether the gold document is among the k that get most, raw and calibrated; rows.

Notable: of documents that get equally much each has its share of the places that are left, so that attention which tells
nothing apart scores chance. Of k documents or fewer all are among the k, whatever is attended: such questions are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ...record import Row
from ..changes import interval, share_interval
from .attention import FORMS, DocumentAttention

STAGES = ("raw", "calibrated")


def recall_at(scores_D: Sequence[float], gold: Sequence[int], k: int = 3) -> float:
    """The share of the gold documents that are among the k of the largest scores; not-a-number where a score is none.

    Raises:
        ValueError: k below 1, no gold document.
    """
    scores_D = np.asarray(scores_D, dtype=float)
    if k < 1 or not len(gold):
        raise ValueError(
            f"recall at k={k} of {len(gold)} gold documents: take k from 1, and one gold document at least"
        )
    if np.isnan(scores_D).any():
        return float("nan")

    def credit(score: float) -> float:
        return min(1.0, max(0.0, (k - int((scores_D > score).sum())) / int((scores_D == score).sum())))

    return fmean(credit(scores_D[g]) for g in gold)


@dataclass(frozen=True)
class DocumentRecall:
    """What `document_attention` found, as retrieval at k.

    layers: whose attention is averaged, by number; None: all. The paper looks at all and changes the latter half.
    """

    found: Sequence[DocumentAttention]
    k: int = 3
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.found:
            raise ValueError("no questions; look at one at least")
        if len({f.layers for f in self.found}) > 1:
            raise ValueError("the questions were looked at in different layers; give those of one model")

    @property
    def telling(self) -> "list[DocumentAttention]":
        """The questions of more than k documents."""
        return [f for f in self.found if len(f.question.documents) > self.k]

    def recall(self, stage: str, form: str = "mass", layers: Sequence[int] | None = None) -> list[float]:
        """Of each that is telling; `layers` in the place of this value's own."""
        layers = self.layers if layers is None else layers
        return [recall_at(f.of(stage, form, layers), f.question.gold, self.k) for f in self.telling]

    def chance(self) -> float:
        """What attention that tells no documents apart recalls; not-a-number where no question is telling."""
        return fmean([self.k / len(f.question.documents) for f in self.telling] or [float("nan")])

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Rows of source `middle`; docs/metrics.md defines them. Forms that no layer tells have none."""
        layers = self.found[0].layers if self.layers is None else tuple(self.layers)
        questions = [f.question for f in self.found]
        tasks, lengths = {q.task for q in questions}, {len(q.prompt) for q in questions}

        def row(metric: str, value: float, unit: str = "share", **at: object) -> Row:
            task = next(iter(tasks)) if len(tasks) == 1 else ""
            length = next(iter(lengths)) if len(lengths) == 1 else None
            return Row(run, step, "middle", metric, value, unit, length=length, task=task or None, **at)

        rows = self._along(row, layers)
        few = 1 - len(self.telling) / len(self.found)
        rows.append(row("document_recall_few", few, threshold=self.k))
        if not self.telling:
            return rows
        rows.append(row("document_recall_chance", self.chance(), threshold=self.k))
        of_range = {"threshold": self.k, "split": "layers " + ",".join(map(str, layers))}
        for form in FORMS:
            raw, calibrated = (np.array(self.recall(stage, form, layers)) for stage in STAGES)
            is_known = ~(np.isnan(raw) | np.isnan(calibrated))
            rows.append(row("document_recall_nan", float(np.mean(~is_known)), domain=form, **of_range))
            if not is_known.any():
                continue
            for stage, recall in zip(STAGES, (raw, calibrated), strict=True):
                for end, value in zip(("low", "high"), share_interval(recall[is_known].tolist()), strict=True):
                    rows.append(row(f"document_recall_{end}", value, stage=stage, domain=form, **of_range))
            gain = (calibrated - raw)[is_known]
            low, high = interval(gain)
            for metric, value, stage in (
                ("document_recall", raw[is_known].mean(), "raw"),
                ("document_recall", calibrated[is_known].mean(), "calibrated"),
                ("document_recall_gain", gain.mean(), None),
                ("document_recall_gain_low", low, None),
                ("document_recall_gain_high", high, None),
            ):
                rows.append(row(metric, float(value), stage=stage, domain=form, **of_range))
            for layer in layers:
                for stage in STAGES:
                    known = [r for r in self.recall(stage, form, [layer]) if r == r]
                    if known:
                        at = {"stage": stage, "domain": form, "layer": layer, "threshold": self.k}
                        rows.append(row("document_recall", fmean(known), **at))
        return rows

    def _along(self, row: Callable[..., Row], layers: Sequence[int]) -> list[Row]:
        """Mean attention by place, of documents and of the dummy."""
        out, split = [], "layers " + ",".join(map(str, layers))
        for stage in ("raw", "dummy"):
            of = [f.of(stage, "mass", layers) for f in self.found]
            for place in range(max(map(len, of))):
                value = fmean(mass_D[place] for mass_D in of if len(mass_D) > place)
                out.append(row("document_mass", value, stage=stage, bin=place, split=split))
        return out
