"""Held-out loss, by domain, and the probes' rows, in one pass over the same sequences for every arm and seed.

Notable: a stack of runs is looked at as one model, and its rows are told apart by their place in the batch.
"""

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
from ..train.group import Group
from ..train.objectives import logits_of

# Bounds the memory of a look, not its result: at most so many sequences, and float32 logits (1 GiB), a forward pass.
_AT_ONCE, _LOGITS = 16, 2**28


def measure(model: Model, source: Source, run: Run, *, fingerprint: str, step: int) -> list[Row]:
    """Rows of source `eval` (val_loss; val_bpb of the next token; expert_load_max with experts) over
    `probe.eval_sequences`, and of every probe over the first `probe.sequences`, of the held-out sequences; fewer when
    the text has fewer."""
    return measure_stack(model, source, run, fingerprints=[fingerprint], step=step)[0]


def look(group: Group, fingerprints: list[str]) -> list[list[Row]]:
    """`measure` of every run of a group where it stands, together where it is one stack; no rows of a run that diverged."""
    first, members = group.run, group.members
    if group.is_stacked and all((m.run.data, m.run.probe) == (first.data, first.probe) for m in members):
        model, source = group.stacked().model, members[0].source
        found = measure_stack(model, source, first, fingerprints=fingerprints, step=group.step)
        return [rows if m.alive else [] for m, rows in zip(members, found, strict=True)]
    return [
        measure(m.model, m.source, m.run, fingerprint=name, step=group.step) if m.alive else []
        for m, name in zip(members, fingerprints, strict=True)
    ]


@torch.no_grad()
def measure_stack(model: Model, source: Source, run: Run, *, fingerprints: list[str], step: int) -> list[list[Row]]:
    """`measure` of the M runs of a stacked model, in the same passes; `run` is one of them."""
    M, config = len(fingerprints), model.config
    wanted = max(run.probe.eval_sequences, run.probe.sequences)
    available = source.heldout_sequences(run.train.seq_len)
    total = wanted if available is None else min(wanted, available)
    sums = _Sums(M, len(source.domains))
    # A block of attention weights may be larger than the logits.
    per_sequence = M * run.train.seq_len * max(config.vocab_size, config.n_heads * min(256, run.train.seq_len))
    at_once = max(1, min(_AT_ONCE, _LOGITS // per_sequence))
    with capture(model, config=run.probe, domains=source.domains) as recorder:
        probed = min(run.probe.sequences, total)
        for first in range(0, probed, at_once):
            _look(model, source, run, first, min(at_once, probed - first), sums, recorder)
        found = recorder.rows_of(fingerprints, step)
    for first in range(probed, min(run.probe.eval_sequences, total), at_once):
        _look(model, source, run, first, min(at_once, total - first), sums, None)
    return [
        _losses(sums, m, source, run, name, step, rows)
        for m, (name, rows) in enumerate(zip(fingerprints, found, strict=True))
    ]


def _losses(sums: "_Sums", m: int, source: Source, run: Run, name: str, step: int, rows: list[Row]) -> list[Row]:
    """The probes' rows of one run, and its losses around them."""

    def row(metric: str, value: float, unit: str, *, domain: str | None = None, length: int | None = None) -> Row:
        return Row(name, step, "eval", metric, value, unit, split="heldout", domain=domain, length=length)

    mean, *by_domain = (sums.loss_MN[m] / sums.n_targets_N).tolist()
    rows.insert(0, row("val_loss", mean, "nats", length=run.train.seq_len))
    for domain, value, count in zip(source.domains, by_domain, sums.n_targets_N[1:].tolist(), strict=True):
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
    """Sums over sequences, float64 on the host: each run's loss, and the number of targets, in all and by domain; how often
    each expert was chosen, None without experts."""

    def __init__(self, n_models: int, n_domains: int):
        self.loss_MN = torch.zeros(n_models, 1 + n_domains, dtype=torch.float64)
        self.n_targets_N = torch.zeros(1 + n_domains, dtype=torch.float64)
        self.counts_LX: torch.Tensor | None = None

    def add(self, loss_MBT: torch.Tensor, targets_BT: torch.Tensor, domain_BT: torch.Tensor | None) -> None:
        counted_BT = targets_BT != IGNORED
        n_kinds = 1 if domain_BT is None else self.n_targets_N.numel()
        selected_NBT = torch.stack(
            [counted_BT if i == 0 else counted_BT & (domain_BT == i - 1) for i in range(n_kinds)]
        )
        loss_MN = torch.stack([(loss_MBT * s).sum(dim=(1, 2), dtype=torch.float64) for s in selected_NBT], dim=1)
        self.loss_MN[:, :n_kinds] += loss_MN.cpu()
        self.n_targets_N[:n_kinds] += selected_NBT.sum(dim=(1, 2)).cpu()

    def route(self, routed: list[Routing]) -> None:
        counts_LX = torch.stack([r.counts_X for r in routed]).double().cpu()
        self.counts_LX = counts_LX if self.counts_LX is None else self.counts_LX + counts_LX


def _look(model: Model, source: Source, run: Run, first: int, n: int, sums: _Sums, recorder: Recorder | None) -> None:
    """Add held-out sequences first … first + n − 1."""
    M = len(sums.loss_MN)
    batch = _batch(source, run, first, n, model.head.weight.device)
    inputs_BT, segment_ids_BT, decoder_inputs_BT = (
        None if batch[name] is None else batch[name].repeat(M, 1)
        for name in ("inputs_BT", "segment_ids_BT", "decoder_inputs_BT")
    )
    if recorder is not None:
        # The domains are those of the targets' queries, and an encoder's queries are others.
        is_one = decoder_inputs_BT is None
        recorder.domain_BT = batch["domain_BT"].repeat(M, 1) if is_one and batch["domain_BT"] is not None else None
        recorder.tokens_BT = inputs_BT if is_one else None
    routed: list[Routing] | None = None if model.config.moe is None else []
    logits_BTV = logits_of(model, inputs_BT, segment_ids_BT, decoder_inputs_BT, routed).float()
    targets_BT = batch["targets_BT"].repeat(M, 1)
    loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="none")
    sums.add(loss_BT.unflatten(0, (M, n)), batch["targets_BT"], batch["domain_BT"])
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
