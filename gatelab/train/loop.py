"""train: a generator of `Step`. Logging, probing, evaluating, saving and stopping are statements of its consumer.

group = Group([run])
for step in train(group):
    print(step.step, step.loss[0])
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..config.run import Run
from ..data import Batch
from ..record import Step
from .group import Group, Member
from .objectives import IGNORED, next_token_loss
from .schedule import learning_rate

Loss = Callable[..., Tensor]


def train(group: Group | Run) -> Iterator[Step]:
    """Train from where the group stands to the end of its budget, one `Step` after each optimiser step.

    A run whose loss or gradient norm is no longer finite has diverged: it is marked, stops, and the others go on; when
    all have stopped, so does the generator. With several processes every rank must consume it.
    """
    group = Group([group]) if isinstance(group, Run) else group
    steps = group.run.train.steps
    loss_function = torch.compile(next_token_loss, dynamic=False) if group.is_compiled else next_token_loss
    batches = [_batch(group, m) for m in group.members]
    while group.step < steps and any(m.alive for m in group.members):
        index = group.step
        rates = [learning_rate(m.run.optim, index, steps) for m in group.members]
        measured = [
            _optimise(group, m, batch, rate, loss_function) if m.alive else None
            for m, batch, rate in zip(group.members, batches, rates, strict=True)
        ]
        group.step = index + 1
        if group.step < steps:
            # Before the results are read: on a GPU the next batch is made while this step computes.
            batches = [_batch(group, m) for m in group.members]
        losses, norms, diverged = [], [], []
        for m, result in zip(group.members, measured, strict=True):
            loss, norm = (math.nan, math.nan) if result is None else result.tolist()
            diverged.append(m.alive and not (math.isfinite(loss) and math.isfinite(norm)))
            m.alive = m.alive and not diverged[-1]
            m.losses.append(loss)
            losses.append(loss)
            norms.append(norm)
        tokens = group.step * group.run.train.tokens_per_step
        yield Step(group.step, tokens, rates, losses, norms, diverged)


def _optimise(group: Group, member: Member, batch: "DeviceBatch", rate: float, loss_function: Loss) -> Tensor:
    """One optimiser step; returns (loss, gradient norm) on the device."""
    member.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=group.device)
    for inputs_BT, targets_BT, segment_ids_BT in batch.micro_batches(group.micro_batch):
        loss = loss_function(member.model, inputs_BT, targets_BT, segment_ids_BT) / batch.n_targets
        loss.backward()
        total = total + loss.detach()
    group.ranks.sum_(total)
    group.ranks.sum_gradients(member.model)
    norm = torch.nn.utils.clip_grad_norm_(member.model.parameters(), member.run.optim.clip or math.inf)
    for parameters in member.optimizer.param_groups:
        parameters["lr"] = rate
    member.optimizer.step()
    return torch.stack([total, norm])


class DeviceBatch:
    """This rank's share of a batch on its device; `n_targets` counts the targets of all ranks."""

    def __init__(self, batch: Batch, group: Group):
        share = group.ranks.share(batch.inputs_BT.shape[0])
        self.n_targets = int((batch.targets_BT != IGNORED).sum())
        arrays = (batch.inputs_BT, batch.targets_BT, batch.segment_ids_BT)
        self.tensors = [None if a is None else _to(a[share], group.device) for a in arrays]

    def micro_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Slices of at most `size` sequences."""
        inputs_BT, targets_BT, segment_ids_BT = self.tensors
        for i in range(0, inputs_BT.shape[0], size):
            part = slice(i, i + size)
            yield inputs_BT[part], targets_BT[part], None if segment_ids_BT is None else segment_ids_BT[part]


def _batch(group: Group, member: Member) -> DeviceBatch:
    t = member.run.train
    return DeviceBatch(member.source.train_batch(member.run.seed, group.step, t.batch_size, t.seq_len), group)


def _to(array: object, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
