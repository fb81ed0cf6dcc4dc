"""Stack: M runs of one shape trained in one step: weights [M, …], batches [M·B, …], one pass, one update.

Notable: a run's own model and optimiser state are views of the stack's, so that looks, rows and checkpoints of a run are
what they are without it. Losses are summed, so gradients of runs do not meet; learning rates, decays, clips and the end of
a diverged run are numbers of one axis. On a GPU the step is captured once, as one CUDA graph, and replayed.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data import IGNORED, Batch
from ..models.model import Model
from .objectives import target_losses

if TYPE_CHECKING:
    from .group import Group, Member

# What the update takes of each run, in this order.
_HYPER = ("rate", "decay", "beta1", "beta2", "eps", "unbias1", "unbias2", "clip", "alive")


def why_not(group: "Group") -> str | None:
    """Why the runs of a group cannot be stacked; None where they can."""
    config = group.run.model
    if group.ranks.world > 1:
        return "several processes share the group"
    if config.moe is not None:
        return "experts are computed a model at a time"
    if config.positions == "relative":
        return "a relative position's bias is one for the whole batch"
    if any(m.run.optim.qk_clip is not None for m in group.members):
        return "optim.qk_clip rescales a model's own weights"
    for layer in group.members[0].model._attention_layers():
        if layer.sink is not None and not layer.normaliser.may_differ:
            return f"what {layer.normaliser.kind} learns is one for the whole batch"
    return None


class Stack:
    """The members of a group as one model. Built where training begins: it takes weights and optimiser states as they stand,
    and from then on is where they are.

    Args:
        group: for which `why_not` finds nothing.
    """

    def __init__(self, group: "Group"):
        self.members, self.device, self.is_compiled = group.members, group.device, group.is_compiled
        self.n_parts = -(-group.run.train.batch_size // group.micro_batch)
        self.model = _stacked([m.model for m in self.members])
        self.names = [name for name, _ in self.model.named_parameters()]
        self.parameters = [p for _, p in self.model.named_parameters()]
        decays = _decays(self.members[0])
        self.decayed = [decays[name] for name in self.names]
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self._take_states()
        self._losses: Callable[..., Tensor] = target_losses
        self._update: Callable[..., Tensor] = update
        if self.is_compiled:
            self._losses = torch.compile(target_losses, dynamic=False)
            self._update = torch.compile(update, dynamic=False)
        self._captured: _Captured | None = None

    @property
    def size(self) -> int:
        """M."""
        return len(self.members)

    def optimise(self, batch: "StackedBatch", rates: list[float], step: int) -> Tensor:
        """One step (counted from 0) of all that are alive: cross-entropies and gradient norms before clipping, [M, 2]."""
        hyper = self._hyper(rates, step)
        if self.device.type != "cuda":
            return self._step(batch, hyper)
        hyper = hyper.pin_memory().to(self.device, non_blocking=True)
        if self._captured is None:
            self._captured = _Captured(self, batch, hyper)
        return self._captured.replay(batch, hyper)

    def publish(self, step: int) -> None:
        """Give each run's optimiser its state as it stands after `step` steps."""
        for m, member in enumerate(self.members):
            own = dict(member.model.named_parameters())
            for name, first, second in zip(self.names, self.first, self.second, strict=True):
                count = torch.tensor(float(step), device=self.device)
                member.optimizer.state[own[name]] = {"step": count, "exp_avg": first[m], "exp_avg_sq": second[m]}

    def _take_states(self) -> None:
        for m, member in enumerate(self.members):
            for name, p in member.model.named_parameters():
                if state := member.optimizer.state.get(p):
                    i = self.names.index(name)
                    self.first[i][m].copy_(state["exp_avg"])
                    self.second[i][m].copy_(state["exp_avg_sq"])

    def _hyper(self, rates: list[float], step: int) -> Tensor:
        """[9, M] in the order of `_HYPER`, float32 on the host."""
        columns = []
        for member, rate in zip(self.members, rates, strict=True):
            o = member.run.optim
            beta1, beta2 = o.betas
            unbias1, unbias2 = 1 - beta1 ** (step + 1), math.sqrt(1 - beta2 ** (step + 1))
            columns.append(
                (rate, rate * o.weight_decay, beta1, beta2, o.eps, unbias1, unbias2, o.clip or math.inf, member.alive)
            )
        return torch.tensor(columns, dtype=torch.float64).T.float().contiguous()

    def _step(self, batch: "StackedBatch", hyper: Tensor) -> Tensor:
        total_M, gradients = None, None
        for part in batch.parts(self.n_parts):
            loss_M = self._losses(self.model, *part) / batch.n_targets_M
            found = torch.autograd.grad(loss_M.sum(), self.parameters)
            total_M = loss_M.detach() if total_M is None else total_M + loss_M.detach()
            gradients = found if gradients is None else torch._foreach_add(gradients, found)
        with torch.no_grad():
            norm_M = self._update(self.parameters, gradients, self.first, self.second, self.decayed, hyper)
        return torch.stack([total_M, norm_M], dim=1)


class StackedBatch:
    """The batches of M runs, one after the other, on their device; `n_targets_M` counts each run's targets."""

    def __init__(self, batch: Batch, n_models: int, device: torch.device):
        counts = (batch.targets_BT != IGNORED).reshape(n_models, -1).sum(axis=1)
        arrays = (batch.inputs_BT, batch.targets_BT, batch.segment_ids_BT, batch.decoder_inputs_BT)
        tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
        self.n_models, self.n_targets_M = n_models, torch.from_numpy(counts).float()
        self.tensors: list[Tensor | None] = tensors
        if device.type == "cuda":
            self.n_targets_M, *self.tensors = (
                None if t is None else t.pin_memory().to(device, non_blocking=True)
                for t in (self.n_targets_M, *tensors)
            )

    def parts(self, n: int) -> Iterator[tuple[Tensor | None, ...]]:
        """Each run's sequences in n parts: M, then inputs, targets, segment ids and a decoder's inputs, [M·B/n, T]."""
        if n == 1:
            yield (self.n_models, *self.tensors)
            return
        M = self.n_models
        chunks = [None if t is None else t.unflatten(0, (M, -1)).chunk(n, dim=1) for t in self.tensors]
        for i in range(len(chunks[0])):
            yield (M, *(None if c is None else c[i].flatten(0, 1) for c in chunks))

    def copy_(self, other: "StackedBatch") -> None:
        """Take another's contents."""
        for own, given in zip((self.n_targets_M, *self.tensors), (other.n_targets_M, *other.tensors), strict=True):
            if own is not None:
                own.copy_(given, non_blocking=True)


class _Captured:
    """A step as a CUDA graph, with the tensors that it reads and writes."""

    def __init__(self, stack: Stack, batch: StackedBatch, hyper: Tensor):
        self.batch, self.hyper = copy.copy(batch), hyper.clone()
        self.batch.tensors = [None if t is None else t.clone() for t in batch.tensors]
        self.batch.n_targets_M = batch.n_targets_M.clone()
        # Compiled, and every kernel chosen, before the capture: in steps of runs that are not alive, which change nothing.
        self.hyper[_HYPER.index("alive")] = 0
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                stack._step(self.batch, self.hyper)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = stack._step(self.batch, self.hyper)

    def replay(self, batch: StackedBatch, hyper: Tensor) -> Tensor:
        self.batch.copy_(batch)
        self.hyper.copy_(hyper, non_blocking=True)
        self.graph.replay()
        return self.result


def update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    decayed: list[bool],
    hyper: Tensor,
) -> Tensor:
    """AdamW with decoupled decay (arXiv 1711.05101) in place, after clipping each run's global norm; returns the norms [M].

    All tensors are [M, …]; `hyper` is [9, M] in the order of `_HYPER`. A run that is not alive keeps every bit.
    """
    norm_M = torch.stack([g.flatten(1).float().square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    rate, decay, beta1, beta2, eps, unbias1, unbias2, clip, alive = hyper.unbind(0)
    scale_M = (clip / (norm_M + 1e-6)).clamp(max=1.0)
    for p, g, m, v, is_decayed in zip(parameters, gradients, first, second, decayed, strict=True):

        def wide(values_M: Tensor, like: Tensor = p) -> Tensor:
            return values_M.view(-1, *[1] * (like.dim() - 1))

        g = g * wide(scale_M)
        new_m = m + (g - m) * (1 - wide(beta1))
        new_v = v * wide(beta2) + g * g * (1 - wide(beta2))
        start = p * (1 - wide(decay)) if is_decayed else p
        step = new_m / (new_v.sqrt() / wide(unbias2) + wide(eps))
        new_p = start - wide(rate / unbias1) * step
        goes_on = wide(alive) > 0
        m.copy_(torch.where(goes_on, new_m, m))
        v.copy_(torch.where(goes_on, new_v, v))
        p.copy_(torch.where(goes_on, new_p, p))
    return norm_M


def _decays(member: "Member") -> dict[str, bool]:
    """By name, whether weight decay applies."""
    matrices = {id(p) for p in member.optimizer.param_groups[0]["params"]}  # as `build_optimizer` orders them
    return {name: id(p) in matrices for name, p in member.model.named_parameters()}


def _stacked(models: list[Model]) -> Model:
    """A model of the same modules whose parameters are [M, …]; those of the models become views of them."""
    out = copy.deepcopy(models[0])
    own = [dict(model.named_parameters()) for model in models]
    joined = {name: nn.Parameter(torch.stack([o[name].detach() for o in own])) for name in own[0]}
    ids = {id(p): joined[name] for name, p in out.named_parameters()}
    for module in out.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = ids[id(p)]
    for m, parameters in enumerate(own):
        for name, p in parameters.items():
            p.data = joined[name].detach()[m]
    return out
