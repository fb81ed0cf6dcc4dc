"""Held-out loss, by domain, and the probes' rows, in one pass over the same sequences for every arm and seed.

Notable: a stack of runs is looked at as one model, and its rows are told apart by their place in the batch; what each of them
reads may be another source's.
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
    return measure_stack(model, [source], run, fingerprints=[fingerprint], step=step)[0]


def look(group: Group, fingerprints: list[str]) -> list[list[Row]]:
    """`measure` of every run of a group where it stands, together where it is one stack; no rows of a run that diverged."""
    first, members = group.run, group.members
    sources = [m.source for m in members]
    if group.is_stacked and all(m.run.probe == first.probe for m in members) and _are_alike(sources, first):
        found = measure_stack(group.stacked().model, sources, first, fingerprints=fingerprints, step=group.step)
        return [rows if m.alive else [] for m, rows in zip(members, found, strict=True)]
    return [
        measure(m.model, m.source, m.run, fingerprint=name, step=group.step) if m.alive else []
        for m, name in zip(members, fingerprints, strict=True)
    ]


def _are_alike(sources: list[Source], run: Run) -> bool:
    """Whether they have as many sequences, of the same kind, and say the same of them."""
    said = {
        (type(s), s.domains, s.bytes_per_token, s.heldout_sequences(run.train.seq_len)) for s in dict.fromkeys(sources)
    }
    return len(said) == 1


@torch.no_grad()
def measure_stack(
    model: Model, sources: list[Source], run: Run, *, fingerprints: list[str], step: int
) -> list[list[Row]]:
    """`measure` of the M runs of a stacked model, in the same passes, each over its own source; `run` is one of them."""
    M, config, source = len(fingerprints), model.config, sources[0]
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
            _look(model, sources, run, first, min(at_once, probed - first), sums, recorder)
        found = recorder.rows_of(fingerprints, step)
    for first in range(probed, min(run.probe.eval_sequences, total), at_once):
        _look(model, sources, run, first, min(at_once, total - first), sums, None)
    return [
        _losses(sums, m, source, run, name, step, rows)
        for m, (name, rows) in enumerate(zip(fingerprints, found, strict=True))
    ]


def _losses(sums: "_Sums", m: int, source: Source, run: Run, name: str, step: int, rows: list[Row]) -> list[Row]:
    """The probes' rows of one run, and its losses around them."""

    def row(metric: str, value: float, unit: str, *, domain: str | None = None, length: int | None = None) -> Row:
        return Row(name, step, "eval", metric, value, unit, split="heldout", domain=domain, length=length)

    mean, *by_domain = (sums.loss_MN[m] / sums.n_targets_MN[m]).tolist()
    rows.insert(0, row("val_loss", mean, "nats", length=run.train.seq_len))
    for domain, value, count in zip(source.domains, by_domain, sums.n_targets_MN[m, 1:].tolist(), strict=True):
        if count:
            rows.append(row("val_loss", value, "nats", domain=domain))
    if source.bytes_per_token and run.resolved_objective.kind == "next-token":
        rows.append(row("val_bpb", mean / math.log(2) / source.bytes_per_token, "bits/byte"))
    if sums.counts_LMX is not None:
        counts_LX = sums.counts_LMX[:, m]
        share_LX = counts_LX / counts_LX.sum(dim=1, keepdim=True)
        load = share_LX.amax(dim=1).mean().item() * share_LX.shape[1]
        rows.append(row("expert_load_max", load, "ratio"))
    return rows


class _Sums:
    """Sums over sequences, float64 on the host: each run's loss, and the number of its targets, in all and by domain; how often
    each expert was chosen, None without experts."""

    def __init__(self, n_models: int, n_domains: int):
        self.loss_MN = torch.zeros(n_models, 1 + n_domains, dtype=torch.float64)
        self.n_targets_MN = torch.zeros(n_models, 1 + n_domains, dtype=torch.float64)
        self.counts_LMX: torch.Tensor | None = None

    def add(self, loss_MBT: torch.Tensor, targets_MBT: torch.Tensor, domain_MBT: torch.Tensor | None) -> None:
        counted_MBT = targets_MBT != IGNORED
        n_kinds = 1 if domain_MBT is None else self.n_targets_MN.shape[1]
        selected_NMBT = torch.stack(
            [counted_MBT if i == 0 else counted_MBT & (domain_MBT == i - 1) for i in range(n_kinds)]
        )
        loss_MN = torch.stack([(loss_MBT * s).sum(dim=(1, 2), dtype=torch.float64) for s in selected_NMBT], dim=1)
        self.loss_MN[:, :n_kinds] += loss_MN.cpu()
        self.n_targets_MN[:, :n_kinds] += selected_NMBT.sum(dim=(2, 3)).T.cpu()

    def route(self, routed: list[Routing]) -> None:
        counts_LMX = torch.stack([r.counts_X for r in routed]).double().cpu()
        counts_LMX = counts_LMX.reshape(len(routed), len(self.loss_MN), -1)
        self.counts_LMX = counts_LMX if self.counts_LMX is None else self.counts_LMX + counts_LMX


def _look(
    model: Model, sources: list[Source], run: Run, first: int, n: int, sums: _Sums, recorder: Recorder | None
) -> None:
    """Add held-out sequences first … first + n − 1."""
    M = len(sums.loss_MN)
    batch = _of_runs([_batch(s, run, first, n, model.head.weight.device) for s in dict.fromkeys(sources)], sources)
    inputs_BT, segment_ids_BT, decoder_inputs_BT = (
        batch[name] for name in ("inputs_BT", "segment_ids_BT", "decoder_inputs_BT")
    )
    if recorder is not None:
        # The domains are those of the targets' queries, and an encoder's queries are others.
        is_one = decoder_inputs_BT is None
        recorder.domain_BT = batch["domain_BT"] if is_one else None
        recorder.tokens_BT = inputs_BT if is_one else None
    routed: list[Routing] | None = None if model.config.moe is None else []
    logits_BTV = logits_of(model, inputs_BT, segment_ids_BT, decoder_inputs_BT, routed).float()
    targets_BT, domain_BT = batch["targets_BT"], batch["domain_BT"]
    loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="none")
    sums.add(*(None if x_BT is None else x_BT.unflatten(0, (M, n)) for x_BT in (loss_BT, targets_BT, domain_BT)))
    if routed is not None:
        sums.route(routed)


def _of_runs(batches: list[dict[str, torch.Tensor | None]], sources: list[Source]) -> dict[str, torch.Tensor | None]:
    """The batches of distinct sources, in their order, as what each run reads, one after the other: [M·B, T]."""
    if len(batches) == 1:
        return {name: None if x_BT is None else x_BT.repeat(len(sources), 1) for name, x_BT in batches[0].items()}
    own = dict(zip(dict.fromkeys(sources), batches, strict=True))
    parts = {name: [own[source][name] for source in sources] for name in batches[0]}
    return {name: None if parts_M[0] is None else torch.cat(parts_M) for name, parts_M in parts.items()}


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
