"""Held-out loss, by domain, and the probes' rows, in one pass over the same sequences for every arm and seed."""

import math
from dataclasses import fields

import numpy as np
import torch
import torch.nn.functional as F

from ..config.run import Run
from ..data import IGNORED, Batch, Source, objective_heldout
from ..models.model import Model
from ..nn.moe import Routing
from ..probes import capture
from ..probes.capture import Recorder
from ..record import Row
from ..train.objectives import logits_of

# Bounds the memory of a look, not its result: at most so many sequences, and float32 logits (1 GiB), a forward pass.
_AT_ONCE, _LOGITS = 16, 2**28


@torch.no_grad()
def measure(model: Model, source: Source, run: Run, *, fingerprint: str, step: int) -> list[Row]:
    """Rows of source `eval` (val_loss; val_bpb of the next token; expert_load_max with experts) over
    `probe.eval_sequences`, and of every probe over the first `probe.sequences`, of the held-out sequences; fewer when
    the text has fewer."""
    wanted = max(run.probe.eval_sequences, run.probe.sequences)
    available = source.heldout_sequences(run.train.seq_len)
    total = wanted if available is None else min(wanted, available)
    sums = _Sums(len(source.domains))
    rows: list[Row] = []
    at_once = max(1, min(_AT_ONCE, _LOGITS // (run.train.seq_len * model.config.vocab_size)))
    with capture(model, config=run.probe, domains=source.domains) as recorder:
        probed = min(run.probe.sequences, total)
        for first in range(0, probed, at_once):
            _look(model, source, run, first, min(at_once, probed - first), sums, recorder)
        rows += recorder.rows(fingerprint, step)
    for first in range(probed, min(run.probe.eval_sequences, total), at_once):
        _look(model, source, run, first, min(at_once, total - first), sums, None)

    def row(metric: str, value: float, unit: str, *, domain: str | None = None, length: int | None = None) -> Row:
        return Row(fingerprint, step, "eval", metric, value, unit, split="heldout", domain=domain, length=length)

    mean, *by_domain = (sums.loss / sums.n_targets).tolist()
    rows.insert(0, row("val_loss", mean, "nats", length=run.train.seq_len))
    for domain, value, count in zip(source.domains, by_domain, sums.n_targets[1:].tolist(), strict=True):
        if count:
            rows.append(row("val_loss", value, "nats", domain=domain))
    if source.bytes_per_token and run.resolved_objective.kind == "next-token":
        rows.append(row("val_bpb", mean / math.log(2) / source.bytes_per_token, "bits/byte"))
    if sums.counts_LX is not None:
        share_LX = sums.counts_LX / sums.counts_LX.sum(dim=1, keepdim=True)
        load = share_LX.amax(dim=1).mean().item() * share_LX.shape[1]
        rows.append(row("expert_load_max", load, "ratio"))
    return rows


class _Sums:
    """Sums over sequences, float64 on the host: loss and number of targets, in all and by domain, and how often each
    expert was chosen, None without experts."""

    def __init__(self, n_domains: int):
        self.loss = torch.zeros(1 + n_domains, dtype=torch.float64)
        self.n_targets = torch.zeros_like(self.loss)
        self.counts_LX: torch.Tensor | None = None

    def add(self, loss_BT: torch.Tensor, targets_BT: torch.Tensor, domain_BT: torch.Tensor | None) -> None:
        counted_BT = targets_BT != IGNORED
        for i in range(1 if domain_BT is None else len(self.loss)):
            selected_BT = counted_BT if i == 0 else counted_BT & (domain_BT == i - 1)
            self.loss[i] += loss_BT[selected_BT].double().sum().cpu()
            self.n_targets[i] += selected_BT.sum().cpu()

    def route(self, routed: list[Routing]) -> None:
        counts_LX = torch.stack([r.counts_X for r in routed]).double().cpu()
        self.counts_LX = counts_LX if self.counts_LX is None else self.counts_LX + counts_LX


def _look(model: Model, source: Source, run: Run, first: int, n: int, sums: _Sums, recorder: Recorder | None) -> None:
    """Add held-out sequences first … first + n − 1."""
    batch = _batch(source, run, first, n, model.head.weight.device)
    decoder_inputs_BT, domain_BT = batch["decoder_inputs_BT"], batch["domain_BT"]
    if recorder is not None:
        # The domains are those of the targets' queries, and an encoder's queries are others.
        recorder.domain_BT = domain_BT if decoder_inputs_BT is None else None
        recorder.tokens_BT = batch["inputs_BT"] if decoder_inputs_BT is None else None
    routed: list[Routing] | None = None if model.config.moe is None else []
    logits_BTV = logits_of(model, batch["inputs_BT"], batch["segment_ids_BT"], decoder_inputs_BT, routed).float()
    targets_BT = batch["targets_BT"]
    loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="none")
    sums.add(loss_BT, targets_BT, domain_BT)
    if routed is not None:
        sums.route(routed)


def _batch(source: Source, run: Run, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor | None]:
    # One at a time, because a batch index counts batches and the last chunk is shorter.
    batches = [
        objective_heldout(source, run.resolved_objective, i, 1, run.train.seq_len) for i in range(first, first + n)
    ]
    arrays = {f.name: [getattr(b, f.name) for b in batches] for f in fields(Batch)}
    return {
        name: None if parts[0] is None else torch.from_numpy(np.concatenate(parts)).to(device)
        for name, parts in arrays.items()
    }
