"""Held-out loss, by domain, and the probes' rows, in one pass over the same sequences for every arm and seed."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..config.run import Run
from ..data import Source
from ..models.decoder import Decoder
from ..probes import capture
from ..record import Row
from ..train.objectives import IGNORED

# Bounds the memory of a look, not its result: at most so many sequences, and float32 logits (1 GiB), a forward pass.
_AT_ONCE, _LOGITS = 16, 2**28


@torch.no_grad()
def measure(model: Decoder, source: Source, run: Run, *, fingerprint: str, step: int) -> list[Row]:
    """Rows of source `eval` (val_loss, val_bpb) over `probe.eval_sequences`, and of every probe over the first
    `probe.sequences`, of the held-out sequences; fewer when the text has fewer."""
    wanted = max(run.probe.eval_sequences, run.probe.sequences)
    available = source.heldout_sequences(run.train.seq_len)
    total = wanted if available is None else min(wanted, available)
    sums = torch.zeros(1 + len(source.domains), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    rows: list[Row] = []
    at_once = max(1, min(_AT_ONCE, _LOGITS // (run.train.seq_len * model.config.vocab_size)))
    with capture(model, config=run.probe, domains=source.domains) as recorder:
        probed = min(run.probe.sequences, total)
        for first in range(0, probed, at_once):
            _losses(model, source, run, first, min(at_once, probed - first), sums, counts, recorder)
        rows += recorder.rows(fingerprint, step)
    for first in range(probed, min(run.probe.eval_sequences, total), at_once):
        _losses(model, source, run, first, min(at_once, total - first), sums, counts, None)
    means = (sums / counts).tolist()
    rows.insert(
        0, Row(fingerprint, step, "eval", "val_loss", means[0], "nats", split="heldout", length=run.train.seq_len)
    )
    for domain, value, count in zip(source.domains, means[1:], counts[1:].tolist(), strict=True):
        if count:
            rows.append(Row(fingerprint, step, "eval", "val_loss", value, "nats", split="heldout", domain=domain))
    if source.bytes_per_token:
        bits = means[0] / math.log(2) / source.bytes_per_token
        rows.append(Row(fingerprint, step, "eval", "val_bpb", bits, "bits/byte", split="heldout"))
    return rows


def _losses(
    model: Decoder,
    source: Source,
    run: Run,
    first: int,
    n: int,
    sums: torch.Tensor,
    counts: torch.Tensor,
    recorder: object | None,
) -> None:
    """Add the losses of held-out sequences first … first + n − 1, in all and by domain."""
    device = model.head.weight.device
    # One at a time, because a batch index counts batches and the last chunk is shorter.
    batches = [source.heldout_batch(i, 1, run.train.seq_len) for i in range(first, first + n)]
    inputs_BT, targets_BT, segment_ids_BT, domain_BT = (
        None
        if getattr(batches[0], name) is None
        else torch.from_numpy(np.concatenate([getattr(b, name) for b in batches])).to(device)
        for name in ("inputs_BT", "targets_BT", "segment_ids_BT", "domain_BT")
    )
    if recorder is not None:
        recorder.domain_BT = domain_BT
    logits_BTV = model(inputs_BT, segment_ids_BT=segment_ids_BT).float()
    loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="none").double()
    counted_BT = targets_BT != IGNORED
    for i in range(len(sums)):
        selected_BT = counted_BT if i == 0 else counted_BT & (domain_BT == i - 1)
        sums[i] += loss_BT[selected_BT].sum().cpu()
        counts[i] += selected_BT.sum().cpu()
