"""train: a generator of `Step`. Logging, probing, evaluating, saving and stopping are statements of its consumer.

group = Group([run])
for step in train(group):
    print(step.step, step.loss[0])
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from ..config.run import Run
from ..data import IGNORED, Batch, objective_batch
from ..nn.moe import Routing
from ..record import Step
from .feed import Feed
from .group import Group, Member
from .objectives import Loss, choices, router_loss, target_loss
from .qk_clip import clip_queries, largest_logits
from .schedule import learning_rate
from .stack import StackedBatch

# Of M runs cross-entropy and gradient norm, [M, 2], and of each its first-token mass, [L, H], where it is watched and alive.
Measured = tuple[Tensor, list[Tensor | None]]


def train(group: Group | Run) -> Iterator[Step]:
    """Train from where the group stands to the end of its budget, one `Step` after each optimiser step.

    A run whose loss or gradient norm is no longer finite has diverged: it is marked, stops, and the others go on; when
    all have stopped, so does the generator. With several processes every rank must consume it.
    """
    group = Group([group]) if isinstance(group, Run) else group
    steps = group.run.train.steps
    if group.step >= steps:
        return
    training = _Together(group) if group.is_stacked else _InTurn(group)
    training.fetch(group.step)
    while group.step < steps and any(m.alive for m in group.members):
        index = group.step
        rates = [learning_rate(m.run.optim, index, steps) for m in group.members]
        measured, masses = training.optimise(rates, index)
        group.step = index + 1
        if group.step < steps:
            # Before the results are read: on a GPU the next batch is made while this step computes.
            training.fetch(group.step)
        watch = group.run.probe.watch
        first_mass = _on_host(masses) if watch and group.step % watch == 0 else None
        losses, norms, diverged = [], [], []
        for m, (loss, norm) in zip(group.members, measured.tolist(), strict=True):
            loss, norm = (loss, norm) if m.alive else (math.nan, math.nan)
            diverged.append(m.alive and not (math.isfinite(loss) and math.isfinite(norm)))
            m.alive = m.alive and not diverged[-1]
            m.losses.append(loss)
            losses.append(loss)
            norms.append(norm)
        tokens = group.step * group.run.train.tokens_per_step
        yield Step(group.step, tokens, rates, losses, norms, diverged, first_mass)


def _on_host(masses: list[Tensor | None]) -> list[list[list[float]] | None]:
    """The first-token mass of each run, by layer and head; None of one that has stopped."""
    each = iter(torch.stack([mass_LH for mass_LH in masses if mass_LH is not None]).tolist())
    return [None if mass_LH is None else next(each) for mass_LH in masses]


class _Together:
    """A group whose runs are one stack."""

    def __init__(self, group: Group):
        self.group, self.stack, self.feed = group, group.stacked(), Feed(group.members)

    def fetch(self, step: int) -> None:
        """Make the batches of a step."""
        self.batch = StackedBatch(self.feed.at(step), len(self.group.members), self.group.device)

    def optimise(self, rates: list[float], step: int) -> Measured:
        """One step of all."""
        measured, mass_MLH = self.stack.optimise(self.batch, rates, step)
        alive = [m.alive and mass_MLH is not None for m in self.group.members]
        return measured, [mass_MLH[i] if is_alive else None for i, is_alive in enumerate(alive)]


class _InTurn:
    """A group whose runs take their steps one after the other."""

    def __init__(self, group: Group):
        self.group = group
        self.loss_function = _loss_function(group)

    def fetch(self, step: int) -> None:
        """Make the batches of a step."""
        self.batches = [_batch(self.group, m, step) for m in self.group.members]

    def optimise(self, rates: list[float], step: int) -> Measured:
        """One step of each."""
        nothing = torch.full((2,), math.nan, device=self.group.device), None
        found = [
            _optimise(self.group, m, batch, rate, self.loss_function) if m.alive else nothing
            for m, batch, rate in zip(self.group.members, self.batches, rates, strict=True)
        ]
        return torch.stack([measured for measured, _ in found]), [mass_LH for _, mass_LH in found]


def _loss_function(group: Group) -> Loss:
    """Compiled as a whole in one process; on a mesh blocks are, and what ranks exchange lies between them."""
    if group.ranks.mesh is None:
        return torch.compile(target_loss, dynamic=False) if group.is_compiled else target_loss
    if group.ranks.n_tensor == 1:
        return target_loss
    from .shard.loss import target_loss_among

    return target_loss_among(group.ranks.mesh.tensor)


def _optimise(
    group: Group, member: Member, batch: "DeviceBatch", rate: float, loss_function: Loss
) -> tuple[Tensor, Tensor | None]:
    """One optimiser step; returns (cross-entropy, gradient norm) and the first-token mass where it is watched, on the
    device."""
    optim = member.run.optim
    member.optimizer.zero_grad(set_to_none=True)
    with nullcontext({}) if optim.qk_clip is None else largest_logits(member.model) as logits_H:
        total, mass_LH = _backward(group, member, batch, loss_function)
    group.ranks.sum_(total)
    if mass_LH is not None and mass_LH.numel():
        group.ranks.sum_(mass_LH)
        mass_LH = group.ranks.all_heads(mass_LH)
    if member.layout is None:
        group.ranks.sum_gradients(member.model)
        norm = torch.nn.utils.clip_grad_norm_(member.model.parameters(), optim.clip or math.inf)
    else:
        norm = member.layout.clip_gradients(optim.clip)
    for parameters in member.optimizer.param_groups:
        parameters["lr"] = rate
    member.optimizer.step()
    if optim.qk_clip is not None:
        clip_queries(logits_H, optim.qk_clip, group.ranks)
    return torch.stack([total, norm]), mass_LH


def _backward(group: Group, member: Member, batch: "DeviceBatch", loss_function: Loss) -> tuple[Tensor, Tensor | None]:
    """Gradients of this rank's share; returns its part of the mean cross-entropy, without the routers' losses, and of the
    mean first-token mass, [L, H], where it is watched.

    How often each expert was chosen is counted over the global batch ("Demons in the Detail", arXiv 2501.11873), which
    several micro-batches know only when all have been seen: then every one is run forward twice, first without gradient.
    """
    model, moe, parts = member.model, member.run.model.moe, list(batch.micro_batches(group.micro_batch))
    chosen = None
    if moe is not None and len(parts) > 1:
        passes: list[list[Routing]] = [[] for _ in parts]
        with torch.no_grad():
            for part, routed in zip(parts, passes, strict=True):
                loss_function(model, *part, routed)
        chosen = choices(passes, group.ranks)
    total, mass_LH = torch.zeros((), device=group.device), None
    for part in parts:
        routed, watch = None if moe is None else [], group.watch()
        loss = loss_function(model, *part, routed, watch) / batch.n_targets
        total = total + loss.detach()
        if watch is not None:
            sums_LH = watch.sums_MLH()[0] / batch.n_sequences
            mass_LH = sums_LH if mass_LH is None else mass_LH + sums_LH
        if moe is not None:
            chosen = choices([routed], group.ranks) if chosen is None else chosen
            # Ranks that share a layer hold summands of its gradients, and each computes all of its router's losses.
            loss = loss + router_loss(routed, moe, chosen) / group.ranks.n_tensor
        loss.backward()
    return total, mass_LH


class DeviceBatch:
    """This rank's share of a batch on its device; `n_targets` and `n_sequences` count those of all ranks."""

    def __init__(self, batch: Batch, group: Group):
        share = group.ranks.share(batch.inputs_BT.shape[0])
        self.n_targets, self.n_sequences = int((batch.targets_BT != IGNORED).sum()), batch.inputs_BT.shape[0]
        arrays = (batch.inputs_BT, batch.targets_BT, batch.segment_ids_BT, batch.decoder_inputs_BT)
        self.tensors = [None if a is None else _to(a[share], group.device) for a in arrays]

    def micro_batches(self, size: int) -> Iterator[tuple[Tensor | None, ...]]:
        """Inputs, targets, segment ids and a decoder's inputs of at most `size` sequences at a time."""
        for i in range(0, self.tensors[0].shape[0], size):
            yield tuple(None if t is None else t[i : i + size] for t in self.tensors)


def _batch(group: Group, member: Member, step: int) -> DeviceBatch:
    run, t = member.run, member.run.train
    objective = run.resolved_objective
    return DeviceBatch(objective_batch(member.source, objective, run.seed, step, t.batch_size, t.seq_len), group)


def _to(array: object, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
