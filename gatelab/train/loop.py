"""train: a generator of `Step`. Logging, probing, evaluating, saving and stopping are statements of its consumer.

group = Group([run])
for step in train(group):
    print(step.step, step.loss[0])

Notable: nothing within a step waits for a GPU but what exchanges experts' tokens. Its numbers are copied to the host behind it,
and where the consumer says when it looks, the next step is begun before they are read.
"""

import math
from collections import deque
from collections.abc import Container, Iterator
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
from .room import telling_what_takes_less
from .schedule import learning_rate
from .stack import StackedBatch

# Of M runs cross-entropy and gradient norm, [M, 2], and of each its first-token mass, [L, H], where it is watched and alive.
Measured = tuple[Tensor, list[Tensor | None]]

# Steps that are begun before the numbers of the one before them are read. A CPU has ended a step when it gives it back.
AHEAD = {"cpu": 0, "cuda": 1}


def train(group: Group | Run, rests: Container[int] | None = None) -> Iterator[Step]:
    """Train from where the group stands to the end of its budget, one `Step` after each optimiser step.

    A run whose loss or gradient norm is no longer finite has diverged: it is marked, stops, and the others go on; when
    all have stopped, so does the generator. With several processes every rank must consume it, with equal `rests`.

    Args:
        rests: the steps after which the group has to stand where their `Step` says, since weights are looked at or saved
            there; None: all. Of others the numbers may come when the next step is under way, on a GPU (`group.ahead`), and
            `group.rest()` asks that there be none. What a diverged run is given meanwhile changes nothing of it. When the loop
            is left early, what is under way ends, counts, and is told by no `Step`.

    Raises:
        RuntimeError: for a group of which steps are under way.
    """
    group = Group([group]) if isinstance(group, Run) else group
    group.must_stand()
    steps, most = group.run.train.steps, 0 if rests is None else AHEAD[group.device.type]
    if group.step >= steps:
        return
    training = _Together(group) if group.is_stacked else _InTurn(group)
    training.fetch(group.step)
    begun, under_way = group.step, deque[_Numbers]()
    while group.step < steps and any(m.alive for m in group.members):
        if begun < steps and (not under_way or (len(under_way) <= most and not (group.is_asked or begun in rests))):
            group.is_asked &= bool(under_way)
            rates = [learning_rate(m.run.optim, begun, steps) for m in group.members]
            with telling_what_takes_less(group.execution):
                measured, masses = training.optimise(rates, begun)
            begun += 1
            watch = group.run.probe.watch
            under_way.append(_Numbers(rates, measured, masses if watch and begun % watch == 0 else []))
            if begun < steps:
                # Before any numbers are read: on a GPU the next batch is made while this step computes.
                training.fetch(begun)
            continue
        taken = _taken_in(group, under_way)
        try:
            yield taken
        except GeneratorExit:
            # Who leaves early finds a group that stands.
            while under_way and group.ahead:
                _taken_in(group, under_way)
            group.is_asked = False
            raise


def _taken_in(group: Group, under_way: "deque[_Numbers]") -> Step:
    """The first of the steps that are under way, when it has ended: the group and its runs know its numbers."""
    numbers = under_way.popleft()
    group.step += 1
    values, first_mass = numbers.read([m.alive for m in group.members])
    losses, norms, diverged = [], [], []
    for m, (loss, norm) in zip(group.members, values, strict=True):
        loss, norm = (loss, norm) if m.alive else (math.nan, math.nan)
        diverged.append(m.alive and not (math.isfinite(loss) and math.isfinite(norm)))
        m.alive = m.alive and not diverged[-1]
        m.losses.append(loss)
        losses.append(loss)
        norms.append(norm)
    # Where no run is left, what is under way changes nothing, and is forgotten.
    group.ahead = len(under_way) if any(m.alive for m in group.members) else 0
    tokens = group.step * group.run.train.tokens_per_step
    return Step(group.step, tokens, numbers.rates, losses, norms, diverged, first_mass)


class _Numbers:
    """What a step measured, on its way to the host."""

    def __init__(self, rates: list[float], measured: Tensor, masses: list[Tensor | None]):
        self.rates = rates
        self._has_mass = [mass_LH is not None for mass_LH in masses]
        present = [mass_LH for mass_LH in masses if mass_LH is not None]
        on_device = [measured, *([torch.stack(present)] if present else [])]
        # A captured step writes its numbers where it did before; these copies come first.
        self._values = [t.to("cpu", non_blocking=True) for t in on_device]
        self._copied = torch.cuda.Event() if measured.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self, alive: list[bool]) -> tuple[list[list[float]], list[list[list[float]] | None] | None]:
        """Loss and gradient norm of each run, and where it is watched the first-token mass of each, by layer and head; None of
        one that has stopped. Waits for the step, not for those after it."""
        if self._copied is not None:
            self._copied.synchronize()
        measured, *masses = (values.tolist() for values in self._values)
        if not self._has_mass:
            return measured, None
        each = iter(*masses)
        found = [next(each) if has_mass else None for has_mass in self._has_mass]
        return measured, [mass if is_alive else None for mass, is_alive in zip(found, alive, strict=True)]


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
        for m in group.members:
            # An optimiser that finds a 1 there leaves weights and state as they are, without the host being asked.
            m.optimizer.found_inf = torch.zeros((), device=group.device)

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
    has_ended = member.optimizer.found_inf
    if optim.qk_clip is not None:
        clip_queries(logits_H, optim.qk_clip, group.ranks, has_ended)
    measured = torch.stack([total, norm])
    has_ended.copy_(torch.where(measured.isfinite().all(), has_ended, 1.0))
    return measured, mass_LH


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
