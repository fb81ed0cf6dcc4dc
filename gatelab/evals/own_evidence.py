"""The measures `found` and `deletion` of posed items: rows, items and lines, at each depth and of all depths together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any

import numpy as np
from torch import nn

from ..models.decoder import Decoder
from ..record import Item, Row
from .deletion import Deleted, Faithfulness, faithfulness
from .found import Found
from .measures import EVIDENCE
from .middle import (
    FORMS,
    DocumentAttention,
    DocumentRecall,
    Reweighted,
    document_attention,
    reweighted,
    reweighting_effect,
)
from .middle.recall import STAGES
from .next_token import next_token
from .own_lines import PREFIX
from .own_posed import Measured, Place, Posed, asked, factors_of
from .own_text import Progress

K = 3  # the paper's Recall@3
# What is taken for relevance: the paper's, and ours, which a sink with a small value does not lead.
RELEVANCES = ("mass", "gated-value")


def why_not_reweighted(model: nn.Module) -> str | None:
    """Why the intervention is not for this model; None where it is."""
    if not isinstance(model, Decoder):
        return "attention is reweighted in decoders of ours alone; `gatelab convert MODEL OUT --to gatelab` makes one"
    try:
        with reweighted(model, []):
            return None
    except ValueError as error:
        return f"attention is not reweighted: {error}"


@dataclass(frozen=True)
class Attended:
    """What attention gives the documents of those that were asked, and, where the model can be changed, each of them untouched and
    reweighted, by the relevance that was taken."""

    posed: tuple[Posed, ...]
    found: tuple[DocumentAttention, ...]
    used: tuple[dict[str, Reweighted], ...]

    @classmethod
    def look(
        cls, model: nn.Module, posed: Sequence[Posed], noise: Sequence[int], say: Callable[[int], None]
    ) -> "Attended":
        """Pass by pass; `say` is told how many questions are done."""
        can_be = why_not_reweighted(model) is None
        found, used = [], []
        for number, one in enumerate(asked(posed), 1):
            (seen,) = document_attention(model, [one.question], dummy=noise)
            found.append(seen)
            used.append(_reweighted(model, seen, noise) if can_be else {})
            say(number)
        return cls(tuple(posed), tuple(found), tuple(used))

    @classmethod
    def together(cls, parts: "Sequence[Attended]") -> "Attended":
        """Several as one."""
        posed, found, used = (tuple(x for p in parts for x in getattr(p, name)) for name in ("posed", "found", "used"))
        return cls(posed, found, used)

    def at(self, place: Place) -> Measured:
        """As rows, items and lines."""
        out = Measured(place.counted(self.posed), place.refused(self.posed))
        if not self.found:
            out.lines.append(place.line("none", None, self.posed))
            return out
        recall = DocumentRecall(self.found, K)
        rows = recall.rows()
        out.rows += place.of(rows)
        of = {(r.metric, r.stage, r.domain): r.value for r in rows if r.layer is None and r.bin is None}
        for form in self._forms():
            for metric, stage in (*(("document_recall", s) for s in STAGES), ("document_recall_gain", None)):
                if (metric, stage, form) in of:
                    low, high = (of[f"{metric}_{end}", stage, form] for end in ("low", "high"))
                    chance = recall.chance() if stage else None
                    what = f"recall@{K} {stage or 'gain'}, {form}"
                    value, lost = of[metric, stage, form], of["document_recall_nan", None, form]
                    out.lines.append(
                        place.line(what, value, self.posed, low=low, high=high, chance=chance, not_finite=lost)
                    )
        if not recall.telling:
            # Whatever is attended, it is among the K.
            out.lines.append(place.line(f"recall@{K}: no question", None, self.posed))
        elif not out.lines:
            out.lines.append(place.line("none", None, self.posed, not_finite=of["document_recall_nan", None, "mass"]))
        self._add_use(place, out)
        for found, used in zip(self.found, self.used, strict=True):
            out.items.append(_found_item(place, found, used))
        return out

    def _forms(self) -> list[str]:
        """Those to be shown: of a model without gates at the output, `gated` is `mass`."""
        is_same = all(np.array_equal(f.raw_LD["gated"], f.raw_LD["mass"], equal_nan=True) for f in self.found)
        return [form for form in FORMS if not (is_same and form == "gated")]

    def _add_use(self, place: Place, out: Measured) -> None:
        """What is answered, untouched and reweighted, by relevances that are a number for a question at least."""
        forms = [form for form in RELEVANCES if any(_is_told(found, form) for found in self.found)]
        if not forms or not all(self.used):
            return
        chance = float(np.mean([p.chance for p in asked(self.posed)]))
        floors = [p.floor for p in asked(self.posed) if p.floor is not None]
        copying = float(np.mean(floors)) if floors else None
        guesses = {"answer_chance": chance} | ({} if copying is None else {"answer_floor": copying})
        out.rows += place.of([Row("", 0, "middle", m, v, "share") for m, v in guesses.items()])
        lines = []
        for form in forms:
            log_p, is_right = (tuple(getattr(u[form], name)[0] for u in self.used) for name in ("log_p", "is_right"))
            rows = Reweighted(tuple(f.question for f in self.found), log_p, is_right).rows()
            out.rows += place.of([replace(row, domain=form) for row in rows])
            of = {(r.metric, r.stage): r.value for r in rows}
            for metric, stage, what in (
                ("reweighted_answer", "raw", "answer, untouched"),
                ("reweighted_answer", "reweighted", f"answer, reweighted by {form}"),
                ("reweighting_gain", None, f"reweighting_gain by {form}, nats"),
            ):
                beside = {"chance": chance, "copying": copying} if stage else {}
                value, low, high = (of.get((f"{metric}{end}", stage)) for end in ("", "_low", "_high"))
                lost = of["reweighting_nan", None] if stage != "raw" else None
                lines.append(place.line(what, value, self.posed, low=low, high=high, not_finite=lost, **beside))
        # Untouched, an answer is the same whatever is taken for relevance.
        out.lines += [one for i, one in enumerate(lines) if one not in lines[:i]]


def _reweighted(model: Decoder, found: DocumentAttention, noise: Sequence[int]) -> dict[str, Reweighted]:
    """By relevance; of one that is no number, what the untouched model answers alone."""
    return {
        form: reweighting_effect(model, [found.question], dummy=noise, form=form, found=[found]) for form in RELEVANCES
    }


def _is_told(found: DocumentAttention, form: str) -> bool:
    """Whether every layer tells a relevance, as a number."""
    return bool(np.isfinite(found.of("calibrated", form)).all())


@dataclass(frozen=True)
class Deprived:
    """What those that were asked lose without their evidence, and without as much other text."""

    posed: tuple[Posed, ...]
    deleted: tuple[Deleted, ...]

    @classmethod
    def look(
        cls, model: nn.Module, posed: Sequence[Posed], noise: Sequence[int], say: Callable[[int], None]
    ) -> "Deprived":
        """Pass by pass; one that leaves no room for the control is refused. `say` is told how many are done."""
        language, out, deleted = next_token(model), [], []
        for one in posed:
            made = one
            if one.problem is None:
                try:
                    deleted += faithfulness(language, [one.question], noise=noise, seed=one.index).deleted
                except ValueError as error:
                    made = replace(one, problem=str(error))
            out.append(made)
            say(len(out))
        return cls(tuple(out), tuple(deleted))

    @classmethod
    def together(cls, parts: "Sequence[Deprived]") -> "Deprived":
        """Several as one."""
        return cls(tuple(x for p in parts for x in p.posed), tuple(x for p in parts for x in p.deleted))

    def at(self, place: Place) -> Measured:
        """As rows, items and lines."""
        out = Measured(place.counted(self.posed), place.refused(self.posed))
        if not self.deleted:
            out.lines.append(place.line("none", None, self.posed))
            return out
        rows = Faithfulness(self.deleted).rows()
        out.rows += place.of(rows)
        of = {r.metric: r.value for r in rows}
        for metric in ("evidence_drop", "control_drop", "evidence_excess"):
            low, high = (of[f"{metric}_{end}"] for end in ("low", "high"))
            out.lines.append(place.line(f"{metric}, nats", of[metric], self.posed, low=low, high=high))
        out.items += [_deleted_item(place, one) for one in self.deleted]
        return out


LOOKS = {"found": Attended, "deletion": Deprived}


def by_evidence(
    found: Found,
    model: nn.Module,
    noise: Sequence[int],
    posed: dict[float | None, list[Posed]],
    run: str,
    name: str,
    length: int,
    progress: Progress,
) -> None:
    """Add what a measure of evidence finds in items by depth; of several depths together too, with none as their depth.

    Raises:
        ValueError: a model that predicts no next token, or whose attention is not seen.
    """
    measure, _ = EVIDENCE[name]
    kind, parts = LOOKS[measure], []
    if measure == "found":
        if (reason := why_not_reweighted(model)) and reason not in found.notes:
            found.notes.append(reason)
        _note_few(found, [one for of_one in posed.values() for one in asked(of_one)], name)
    n_before, n_all = 0, sum(map(len, posed.values()))
    for depth, of_one in posed.items():

        def say(n: int, before: int = n_before) -> None:
            progress(f"looking at {name}", before + n, n_all)

        parts.append(kind.look(model, of_one, noise, say))
        made = parts[-1].at(Place(run, name, length, depth))
        found.rows += made.rows
        found.items += made.items
        found.records += made.lines
        n_before += len(of_one)
    if len(parts) > 1:
        made = kind.together(parts).at(Place(run, name, length, None))
        # An item is the same at every depth but for its place: no interval over items holds for all of them.
        found.rows += [row for row in made.rows if not row.metric.endswith(("_low", "_high"))]
        found.records += [one | {"depth": "all", "low": None, "high": None} for one in made.lines]


def _note_few(found: Found, posed: Sequence[Posed], name: str) -> None:
    """A sentence where recall says nothing of some questions."""
    n = sum(len(one.question.documents) <= K for one in posed)
    if n:
        found.notes.append(
            f"{PREFIX}{name}: {n} of {len(posed)} question{'s' * (len(posed) > 1)} left out of recall@{K}, with {K} documents "
            f"or fewer, which are all among {K} whatever is attended; ask for more with --distractors, or for longer items"
        )


def _found_item(place: Place, found: DocumentAttention, used: dict[str, Reweighted]) -> Item:
    question = found.question
    factors: dict[str, Any] = factors_of(question) | {
        f"{stage}_{form}": [float(v) if isfinite(v) else None for v in found.of(stage, form)]
        for stage in STAGES
        for form in FORMS
    }
    gain, was_right = nan, None
    for form, one in used.items():
        (before, after), (was_right, is_right) = one.log_p[0], one.is_right[0]
        factors["log_p"] = before
        if _is_told(found, form):
            factors |= {f"log_p_by_{form}": after, f"right_by_{form}": is_right}
        gain = after - before if form == RELEVANCES[0] else gain
    return place.item(question.index, gain, factors, is_right=was_right)


def _deleted_item(place: Place, one: Deleted) -> Item:
    factors = factors_of(one.question) | {
        "log_p": one.log_p,
        "without_evidence": one.without_evidence,
        "without_other": one.without_other,
        "other": [list(span) for span in one.spans],
    }
    return place.item(one.question.index, one.evidence_drop - one.control_drop, factors)
