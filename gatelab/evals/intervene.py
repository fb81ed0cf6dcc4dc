"""effects: what interventions do to the next-token loss, dose by dose, each beside its control.

Notable: a change is paired: the same target tokens of the same document, with and without the edit. Dose 0 is a second pass
of the untouched model, so that it says what the machine itself changes: nothing, where its kernels repeat themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import torch
from torch import nn

from ..nn.attention import GatedAttention
from ..probes.external.interpose import Attend, interposed
from ..probes.interventions import InputEdit, Intervention, intervened, parse, recorded
from .changes import Change, Curve, Effects, interval
from .next_token import NextToken, next_token

_Positions = Mapping[tuple[int, int], int]


@torch.no_grad()
def effects(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    interventions: Sequence[Intervention | str],
    *,
    doses: Sequence[float] | None = None,
    positions: _Positions | Sequence[_Positions] | None = None,
    donor: nn.Module | None = None,
    with_divergence: bool = False,
    seed: int = 0,
) -> Effects:
    """The change in next-token loss of each intervention and its control, at each dose.

    An intervention and its control are asked for the target tokens that all of their doses leave in place and predict: those
    that an edit of the text drops, and the first one left, do not count.

    Args:
        documents: token ids, two at least each; every one is run alone.
        interventions: values or words.
        doses: of every curve, besides 0; None takes the one that a word states, or its kind's.
        positions: the keys that `strongest` means, one table for all documents or one each.
        donor: whose gates of the same text `gate-transplant` takes; None takes this model's of the next document, which must
            be at least as long.
        with_divergence: also KL(untouched ‖ edited) of the output, for a second pass of the head.
        seed: of whatever is drawn; document i has seed + i.

    Raises:
        ValueError: a model without such a loss, a document that is too short, too long or of unknown ids, an intervention that
            cannot be made.
    """
    language = next_token(model)
    edits = [parse(word) if isinstance(word, str) else word for word in interventions]
    _check(language, documents, edits, positions)
    curves = [(edit, edit.control(), _doses(edit, doses)) for edit in edits]
    found: dict[tuple[Intervention, float], list[_Found]] = {}
    clean: list[float] = []
    with _as_evaluated(model), _as_evaluated(donor), _as_interposed(model):
        for d in range(len(documents)):
            document = _Document(language, documents, d, positions, donor, with_divergence, seed + d)
            clean.append(float(document.clean.losses[1:].mean()))
            for edit, control, at in curves:
                for key, change in document.curve(edit, control, at).items():
                    found.setdefault(key, []).append(change)

    def change(edit: Intervention, dose: float) -> Change:
        values = found[edit, dose]
        changes = tuple(v.change for v in values)
        divergence = float(np.mean([v.divergence for v in values])) if with_divergence else None
        return Change(dose, float(np.mean(changes)), *interval(changes), changes, divergence)

    return Effects(
        float(np.mean(clean)),
        tuple(len(ids) for ids in documents),
        tuple(
            Curve(edit, control, tuple(change(edit, a) for a in at), tuple(change(control, a) for a in at[1:]))
            for edit, control, at in curves
        ),
    )


@dataclass(frozen=True)
class _Found:
    change: float
    divergence: float


@dataclass(frozen=True)
class _Read:
    """Loss of each of a document's tokens, and divergences, where it is predicted; the stack's output."""

    is_predicted: np.ndarray
    losses: np.ndarray
    divergences: np.ndarray
    states: Any


class _Document:
    """One document, read untouched, and again for dose 0."""

    def __init__(
        self,
        language: NextToken,
        documents: Sequence[Sequence[int]],
        index: int,
        positions: _Positions | Sequence[_Positions] | None,
        donor: nn.Module | None,
        with_divergence: bool,
        seed: int,
    ):
        self.language, self.ids, self.seed, self.with_divergence = (
            language,
            list(documents[index]),
            seed,
            with_divergence,
        )
        self.donor = language if donor is None else next_token(donor)
        following = list(documents[(index + 1) % len(documents)])
        self.donor_ids = self.ids if donor is not None else following[: len(self.ids)]
        self.positions = positions if isinstance(positions, Mapping) or positions is None else positions[index]
        self.clean = self._read(self.ids, range(len(self.ids)), None)
        self.again = self._read(self.ids, range(len(self.ids)), self.clean)

    def curve(
        self, edit: Intervention, control: Intervention, doses: Sequence[float]
    ) -> dict[tuple[Intervention, float], _Found]:
        """The changes of an edit and its control; of dose 0, of the edit alone."""
        reads = {(edit, 0.0): self.again}
        recording = self._recorded(edit)
        for each in (edit, control):
            for dose in doses[1:]:
                reads[each, dose] = self._edited(each.at_dose(dose), recording)
        counted = np.all([read.is_predicted for read in (self.clean, *reads.values())], axis=0)
        if not counted.any():
            raise ValueError(
                f"{edit.word}: a document of {len(self.ids)} tokens has no target that all doses of it and of its control "
                "leave in place; take longer documents"
            )
        return {
            key: _Found(
                float((read.losses - self.clean.losses)[counted].mean()), float(read.divergences[counted].mean())
            )
            for key, read in reads.items()
        }

    def _edited(self, edit: Intervention, recording: Any) -> _Read:
        if isinstance(edit, InputEdit):
            text = edit.edited(self.ids, self.seed)
            self.language.check(len(text.ids), f"{edit.word}: the edited text")
            return self._read(text.ids, text.position, self.clean)
        positions = self.positions if (edit.at or "").endswith("strongest") else None
        with intervened(self.language.model, edit, seed=self.seed, positions=positions, recorded=recording):
            states = self.language.states(self.ids)
        return self._read(self.ids, range(len(self.ids)), self.clean, states)

    def _recorded(self, edit: Intervention) -> Any:
        if not edit.needs:
            return None
        language, ids = (self.donor, self.donor_ids) if edit.needs == "gates" else (self.language, self.ids)
        if len(ids) < len(self.ids):
            raise ValueError(
                f"{edit.word}: the gates of the next document are of {len(ids)} tokens, and this one has {len(self.ids)}; take "
                "documents of equal length, or a donor"
            )
        with recorded(language.model, edit) as recording:
            language.states(ids)
        return recording

    def _read(self, ids: list[int], position: Sequence[int], clean: _Read | None, states: Any = None) -> _Read:
        """Losses of the old tokens, each of which stands at its `position` (−1: nowhere) in the ids."""
        states = self.language.states(ids) if states is None else states
        n = len(self.ids)
        is_predicted = np.array([j > 0 and position[j] > 0 for j in range(n)])
        predicted = np.flatnonzero(is_predicted)
        before = [position[j] - 1 for j in predicted]
        is_compared = clean is not None and self.with_divergence
        reference = (clean.states, (predicted - 1).tolist()) if is_compared else None
        found, divergence = self.language.losses(states, before, [self.ids[j] for j in predicted], reference)
        losses, divergences = np.full(n, nan), np.full(n, nan)
        losses[predicted] = found.numpy()
        if divergence is not None:
            divergences[predicted] = divergence.numpy()
        return _Read(is_predicted, losses, divergences, states if clean is None else None)


def _check(
    language: NextToken,
    documents: Sequence[Sequence[int]],
    edits: list[Intervention],
    positions: _Positions | Sequence[_Positions] | None,
) -> None:
    language.check_documents(documents)
    for edit in edits:
        if isinstance(edit, InputEdit):
            edit.check_id(language.n_ids)
    if len(set(edits)) < len(edits):
        raise ValueError("an intervention is named twice; give each once")
    if isinstance(positions, Sequence) and len(positions) != len(documents):
        raise ValueError(
            f"{len(positions)} tables of positions and {len(documents)} documents; give one each, or one for all"
        )


def _doses(edit: Intervention, asked: Sequence[float] | None) -> tuple[float, ...]:
    own = edit.form.doses if edit.dose == 1 else (edit.dose,)
    doses = sorted({float(d) for d in (own if asked is None else asked)} | {0.0})
    for dose in doses:
        edit.at_dose(dose)  # refuses a dose that the kind does not have
    return tuple(doses)


@contextmanager
def _as_evaluated(model: nn.Module | None) -> Iterator[None]:
    """Without dropout."""
    training = [] if model is None else [m for m in model.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _as_interposed(model: nn.Module) -> Any:
    """A transformers model with the attention function that its edits will have, so that a pass is compared with its like."""
    if any(isinstance(m, GatedAttention) for m in model.modules()):
        return nullcontext()

    def around(attend: Attend, module: nn.Module, *args: Any, **keywords: Any) -> Any:
        return attend(module, *args, **keywords)

    return interposed(model, around)
