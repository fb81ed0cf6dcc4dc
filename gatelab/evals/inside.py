"""What every item that a decoder is asked looks like from inside: attention that its evidence is paid, gate scores at it.

Notable: read where the item itself goes on with the right answer, whatever the model would say, so right and wrong items are
read at the same places. A few rows of the attention weights are computed, those of the tokens that are asked, and no T×T matrix.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..config import Run
from ..config.run import ProbeConfig
from ..models.decoder import Decoder
from ..models.model import Model
from ..ops.attention_stats import Gates, Scores, Statistic
from ..probes.capture import capture
from ..probes.probe import AttentionView, Probe
from ..record import Item, Row
from ..tasks import TaskItem, open_task
from ..tasks.vocabulary import N_NUMBERS, NUMBERS
from .asking import questions
from .reach import reaching

# Tokens a pass, and rows of the weights at once; both bound memory, not the result.
_TOKENS, _ROWS = 2**14, 256


def with_inside(model: Model, run: Run, items: Sequence[Item]) -> list[Item]:
    """The items of a run on tasks, `inside` among the factors of each that has evidence and is not asked beside: what
    `read_inside` says of it. Of a decoder; else as they came."""
    out = list(items)
    if not isinstance(model, Decoder):
        return out
    groups: dict[tuple[str, int, str], list[int]] = {}
    for i, item in enumerate(items):
        f = item.factors
        if f.get("is_beside"):
            continue
        groups.setdefault((item.task, f["length"], f.get("intervention", "none")), []).append(i)
    for (name, length, stretch), own in groups.items():
        made = questions(run, name, length)
        reached = reaching(model, length, trained=run.train.seq_len if stretch == "yarn" else None)
        found = read_inside(reached, [made[items[i].item] for i in own])
        for i, inside in zip(own, found, strict=True):
            if inside is not None:
                out[i] = replace(out[i], factors={**out[i].factors, "inside": inside})
    return out


@torch.no_grad()
def read_inside(model: Decoder, items: Sequence[TaskItem]) -> list[dict[str, Any] | None]:
    """Of items of one task and length, None of one without evidence.

    By layer: `evidence`, `distractors`, `first`: what the tokens that are asked pay all tokens of those spans, and the first
    token, means over heads and over what is asked. `gates`: by site, mean scores at the tokens of the `evidence`, at those that
    are `asked`, and at `all`. `even`: what the evidence would get if each of them paid every token before it, and itself, alike.
    Of a task whose keys are asked one by one (`mqar`) the evidence of each is its own pair, and `of_each` says what each pays it,
    mean over layers and heads. `attended`, of an answer with documents: as many numbers of documents as it names, those that are
    paid most by the tokens before a number, mean over heads and layers; empty where that is no number.
    """
    at_once = max(1, _TOKENS // max((len(item.tokens) for item in items), default=1))
    out: list[dict[str, Any] | None] = []
    with capture(model, []) as recorder:
        for i in range(0, len(items), at_once):
            probe = _Inside(items[i : i + at_once], model.head.weight.device)
            recorder.probes[:] = [probe]
            model.hidden(torch.tensor([item.tokens for item in probe.items], device=model.head.weight.device))
            out += probe.found()
    return out


class _Inside(Probe):
    """Of B sequences of T tokens each."""

    name, metrics = "inside", {}

    def __init__(self, items: Sequence[TaskItem], device: torch.device):
        super().__init__(ProbeConfig(), ())
        self.items, self.n_tokens = items, len(items[0].tokens)
        self.asked_R = sorted({at for item in items for at in item.asked})
        self.evidence_BT = self._tokens([item.evidence for item in items], device)
        self.distractors_BT = self._tokens([item.distractors for item in items], device)
        self.asked_BT = self._tokens([[(at, at + 1) for at in item.asked] for item in items], device)
        answer = open_task(items[0].task).answer
        pair_2BT = torch.zeros(2, len(items), self.n_tokens, dtype=torch.int64)
        self.is_each = answer == "each"
        for b, item in enumerate(items if self.is_each else ()):
            for at, span in _pairs(item):
                pair_2BT[:, b, at] = torch.tensor(span)
        self.pair_2BT = pair_2BT.to(device)
        self.to_own_BT = torch.zeros(len(items), self.n_tokens, dtype=torch.float64, device=device)
        # Of an answer with documents the first token asked is before the value.
        self.has_documents = answer == "cite"
        numbered = [item.asked[1:] if self.has_documents else () for item in items]
        self.numbered_BT = self._tokens([[(at, at + 1) for at in own] for own in numbered], device)
        self.mass: dict[str, list[Tensor]] = {"evidence": [], "distractors": [], "first": []}
        self.gates: dict[str, dict[str, list[Tensor]]] = {}
        self.to_each_BT = torch.zeros(len(items), self.n_tokens, dtype=torch.float64, device=device)

    def _tokens(self, spans: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> Tensor:
        mark_BT = torch.zeros(len(spans), self.n_tokens, dtype=torch.float64)
        for row_T, own in zip(mark_BT, spans, strict=True):
            for start, end in own:
                row_T[start:end] = 1
        return mark_BT.to(device)

    def asks(self, gates: Gates) -> tuple[type[Statistic], ...]:
        """Nothing without a gate."""
        return (Scores,) if gates else ()

    def attention(self, view: AttentionView) -> None:
        """Layers come in order."""
        registers = view.n_keys - self.n_tokens
        paid_BS, own_BT = torch.zeros_like(self.to_each_BT), torch.zeros_like(self.to_each_BT)
        for at_R, weights_BHRS in self._rows(view, registers):
            mean_BRS = weights_BHRS.double().mean(dim=1)[:, :, registers:]
            paid_BS += torch.einsum("brs,br->bs", mean_BRS, _shares(self.asked_BT)[:, at_R])
            if self.is_each:
                up_to_BRS = torch.nn.functional.pad(mean_BRS.cumsum(dim=-1), (1, 0))
                start_BR1, end_BR1 = self.pair_2BT[:, :, at_R, None]
                own_BT[:, at_R] = (up_to_BRS.gather(-1, end_BR1) - up_to_BRS.gather(-1, start_BR1)).squeeze(-1)
            if self.has_documents:
                self.to_each_BT += torch.einsum("brs,br->bs", mean_BRS, _shares(self.numbered_BT)[:, at_R])
        self.to_own_BT += own_BT
        on_evidence_BT = own_BT * _shares(self.asked_BT) if self.is_each else paid_BS * self.evidence_BT
        self.mass["evidence"].append(on_evidence_BT.sum(dim=1))
        self.mass["distractors"].append((paid_BS * self.distractors_BT).sum(dim=1))
        self.mass["first"].append(paid_BS[:, 0])
        for site, scores in view.of(Scores).sites.items() if view.last.gates else ():
            mean_BTH = scores.mean_BTH
            if mean_BTH.shape[1] == view.n_keys:
                mean_BT = mean_BTH[:, registers:].double().mean(dim=-1).expand_as(self.evidence_BT)
                own = self.gates.setdefault(site, {"evidence": [], "asked": [], "all": []})
                own["evidence"].append((mean_BT * _shares(self.evidence_BT)).sum(dim=1))
                own["asked"].append((mean_BT * _shares(self.asked_BT)).sum(dim=1))
                own["all"].append(mean_BT.mean(dim=1))

    def _rows(self, view: AttentionView, registers: int) -> Any:
        """(tokens, their weights [B, H, R, S]) of all that is asked."""
        stretch, device = view.last, view.last.device
        if stretch.score_gate is not None and stretch.score_gate.form == "forget":
            # Its rows ask for those between them.
            for block in stretch.blocks():
                chosen = [at for at in self.asked_R if block.start <= at + registers < block.start + len(block.query_T)]
                if chosen:
                    index_R = torch.tensor(chosen, device=device) + registers - block.start
                    short_BHRS = block.weights_BHTS[:, :, index_R]
                    hidden = view.n_keys - short_BHRS.shape[-1]
                    yield chosen, torch.nn.functional.pad(short_BHRS, (0, hidden))
            return
        for i in range(0, len(self.asked_R), _ROWS):
            at_R = self.asked_R[i : i + _ROWS]
            yield at_R, stretch.rows(torch.tensor(at_R, device=device) + registers).weights_BHTS

    def found(self) -> list[dict[str, Any] | None]:
        """As `read_inside` says it."""
        mass = {name: torch.stack(layers, dim=1).tolist() for name, layers in self.mass.items()}
        gates = {
            site: {where: torch.stack(layers, dim=1).tolist() for where, layers in of.items()}
            for site, of in self.gates.items()
        }
        to_each, to_own = self.to_each_BT.tolist(), self.to_own_BT.tolist()
        out: list[dict[str, Any] | None] = []
        for b, item in enumerate(self.items):
            if not item.evidence:
                out.append(None)
                continue
            inside = {name: _rounded(layers[b]) for name, layers in mass.items()}
            inside["gates"] = {
                site: {where: _rounded(layers[b]) for where, layers in of.items()} for site, of in gates.items()
            }
            inside["even"] = _even(item, self.is_each)
            if self.is_each:
                n_layers = len(mass["evidence"][b])
                inside["of_each"] = _rounded([to_own[b][at] / n_layers for at in item.asked])
            if self.has_documents:
                inside["attended"] = _attended(item, to_each[b])
            out.append(inside)
        return out

    def summaries(self, rows: list[Row]) -> list[Row]:
        """None."""
        return rows


def _shares(mark_BT: Tensor) -> Tensor:
    return mark_BT / mark_BT.sum(dim=1, keepdim=True).clamp(min=1)


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [round(v, 5) if isfinite(v) else None for v in values]


def _pairs(item: TaskItem) -> list[tuple[int, tuple[int, int]]]:
    """Of each key that is asked, where, and the pair that it is the first token of."""
    of = {item.tokens[start]: (start, end) for start, end in item.evidence}
    return [(at, of[item.tokens[at]]) for at in item.asked]


def _even(item: TaskItem, is_each: bool) -> float:
    spans = [(at, (pair,)) for at, pair in _pairs(item)] if is_each else [(at, item.evidence) for at in item.asked]
    shares = [sum(max(0, min(end, at + 1) - start) for start, end in own) / (at + 1) for at, own in spans]
    return round(sum(shares) / len(shares), 5)


def _attended(item: TaskItem, paid: Sequence[float]) -> list[int]:
    """The numbers of the documents that are paid most."""
    if not all(map(isfinite, paid)):
        return []
    by_document = []
    for start, end in (*item.evidence, *item.distractors):
        number = next(t for t in item.tokens[start:end] if NUMBERS <= t < NUMBERS + N_NUMBERS)
        by_document.append((-sum(paid[start:end]), number))
    return [number for _, number in sorted(by_document)[: len(item.answer) - 1]]
