"""Stack: M runs of one shape trained in one step: weights [M, …], batches [M·B, …], one pass, one update.

M may be 1: on a GPU a run alone is trained by the same step, for its graph. Gradients are the step's own: no parameter's
`grad` is set.

Notable: a run's own model and optimiser state are views of the stack's, so that looks, rows and checkpoints of a run are
what they are without it. Losses are summed, so gradients of runs do not meet; learning rates, decays, clips and the end of
a diverged run are numbers of one axis. That end is found on the device, so that a step may follow before the host has read the
one in which it came. On a GPU the step is captured once, as one CUDA graph, and replayed.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config.run import OptimConfig
from ..data import IGNORED, Batch
from ..models.model import Model
from ..nn.moe import Routing
from .objectives import Choices, choices, router_loss, target_losses

if TYPE_CHECKING:
    from .group import Group, Member

# A parameter begins at a multiple of so many float32 numbers.
_EVEN = 32
# What the update takes of each run, in this order.
_HYPER = ("rate", "decay", "beta1", "beta2", "eps", "unbias1", "unbias2", "clip", "alive")


def why_not(group: "Group") -> str | None:
    """Why the runs of a group cannot be stacked; None where they can."""
    config = group.run.model
    if group.ranks.world > 1:
        return "several processes share the group"
    if config.positions == "relative":
        return "a relative position's bias is one for the whole batch"
    if any(m.run.optim.qk_clip is not None for m in group.members):
        return "optim.qk_clip rescales a model's own weights"
    if len({getattr(m.run.data, "document_mask", False) for m in group.members}) > 1:
        return "some of its runs keep documents apart and others do not"
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
        self.watch, self.ranks = group.watch, group.ranks
        self.n_parts = -(-group.run.train.batch_size // group.micro_batch)
        self.places = _places(self.members[0].model)
        self.weights_MP = _flat([dict(m.model.named_parameters()) for m in self.members], self.places)
        self.first_MP, self.second_MP = torch.zeros_like(self.weights_MP), torch.zeros_like(self.weights_MP)
        self.model = _stacked([m.model for m in self.members], self.weights_MP, self.places)
        self.parameters = [dict(self.model.named_parameters())[name] for name in self.places]
        self.is_decayed_P = _decayed(self.members[0], self.places, self.weights_MP)
        self.has_ended_M = torch.tensor([not m.alive for m in self.members], device=self.device)
        self._take_states()
        optims = [m.run.optim for m in self.members]
        self.optims = list(dict.fromkeys(optims))
        places = {optim: i for i, optim in enumerate(self.optims)}
        self.optim_M = np.array([places[optim] for optim in optims])
        self.decay_M = np.array([optim.weight_decay for optim in optims])
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

    def optimise(self, batch: "StackedBatch", rates: list[float], step: int) -> tuple[Tensor, Tensor | None]:
        """One step (counted from 0) of all that are alive: cross-entropies and gradient norms before clipping, [M, 2]; and
        where the runs are watched their first-token mass, [M, L, H]."""
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
            for name, place in self.places.items():
                first, second = place.of(self.first_MP[m]), place.of(self.second_MP[m])
                count = torch.tensor(float(step), device=self.device)
                member.optimizer.state[own[name]] = {"step": count, "exp_avg": first, "exp_avg_sq": second}

    def _take_states(self) -> None:
        for m, member in enumerate(self.members):
            for name, p in member.model.named_parameters():
                if state := member.optimizer.state.get(p):
                    self.places[name].of(self.first_MP[m]).copy_(state["exp_avg"])
                    self.places[name].of(self.second_MP[m]).copy_(state["exp_avg_sq"])

    def _hyper(self, rates: list[float], step: int) -> Tensor:
        """[9, M] in the order of `_HYPER`, float32 on the host."""
        # As Python computes them: runs of one optimiser share what depends on the step alone.
        fixed_N6 = np.array([(*o.betas, o.eps, *_unbiases(o, step), o.clip or math.inf) for o in self.optims])
        rate_M = np.array(rates)
        alive_M = np.array([member.alive for member in self.members], float)
        columns = [rate_M, rate_M * self.decay_M, *fixed_N6[self.optim_M].T, alive_M]
        return torch.from_numpy(np.stack(columns).astype(np.float32))

    def _step(self, batch: "StackedBatch", hyper: Tensor) -> tuple[Tensor, Tensor | None]:
        total_M, gradients, mass_MLH = None, None, None
        moe, parts = self.model.config.moe, list(batch.parts(self.n_parts))
        chosen = self._choices(parts) if moe is not None and len(parts) > 1 else None
        for part in parts:
            routed, watch = None if moe is None else [], self.watch()
            loss_M = self._losses(self.model, *part, routed, watch) / batch.n_targets_M
            total_M = loss_M.detach() if total_M is None else total_M + loss_M.detach()
            if moe is not None:
                loss_M = loss_M + router_loss(routed, moe, chosen or choices([routed], self.ranks))
            found = torch.autograd.grad(loss_M.sum(), self.parameters)
            gradients = found if gradients is None else torch._foreach_add(gradients, found)
            if watch is not None:
                sums_MLH = watch.sums_MLH(self.size) / batch.n_sequences
                mass_MLH = sums_MLH if mass_MLH is None else mass_MLH + sums_MLH
        with torch.no_grad():
            gradient_MP = _side_by_side(gradients, self.places, self.weights_MP)
            moments = self.first_MP, self.second_MP
            norm_M = self._update(
                self.weights_MP, gradient_MP, *moments, self.is_decayed_P, hyper, total_M, self.has_ended_M
            )
        return torch.stack([total_M, norm_M], dim=1), mass_MLH

    @torch.no_grad()
    def _choices(self, parts: list[tuple[Any, ...]]) -> Choices:
        """What the routers choose in the whole batch, by a pass of its own; see `loop._backward`."""
        passes: list[list[Routing]] = [[] for _ in parts]
        for part, routed in zip(parts, passes, strict=True):
            self._losses(self.model, *part, routed)
        return choices(passes, self.ranks)


class StackedBatch:
    """The batches of M runs, one after the other, on their device; `n_targets_M` counts each run's targets, `n_sequences`
    the sequences of one."""

    def __init__(self, batch: Batch, n_models: int, device: torch.device):
        counts = (batch.targets_BT != IGNORED).reshape(n_models, -1).sum(axis=1)
        arrays = (batch.inputs_BT, batch.targets_BT, batch.segment_ids_BT, batch.decoder_inputs_BT)
        tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
        self.n_models, self.n_targets_M = n_models, torch.from_numpy(counts).float()
        self.n_sequences = len(batch.inputs_BT) // n_models
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

    def replay(self, batch: StackedBatch, hyper: Tensor) -> tuple[Tensor, Tensor | None]:
        self.batch.copy_(batch)
        self.hyper.copy_(hyper, non_blocking=True)
        self.graph.replay()
        return self.result


def _unbiases(optim: OptimConfig, step: int) -> tuple[float, float]:
    """What the moments are divided by after the step counted from 0: of the second the root."""
    beta1, beta2 = optim.betas
    return 1 - beta1 ** (step + 1), math.sqrt(1 - beta2 ** (step + 1))


def update(
    weights_MP: Tensor,
    gradient_MP: Tensor,
    first_MP: Tensor,
    second_MP: Tensor,
    is_decayed_P: Tensor,
    hyper: Tensor,
    loss_M: Tensor,
    has_ended_M: Tensor,
) -> Tensor:
    """AdamW with decoupled decay (arXiv 1711.05101) in place, after clipping each run's global norm; returns the norms [M].

    `hyper` is [9, M] in the order of `_HYPER`. A run that is not alive, or has ended before, keeps every bit; `has_ended_M` then
    says also which have with this step, whose loss or norm is no finite number.
    """
    norm_M = gradient_MP.square().sum(dim=1).sqrt()
    rate, decay, beta1, beta2, eps, unbias1, unbias2, clip, alive = hyper[:, :, None].unbind(0)
    gradient_MP = gradient_MP * (clip / (norm_M[:, None] + 1e-6)).clamp(max=1.0)
    new_first_MP = first_MP + (gradient_MP - first_MP) * (1 - beta1)
    new_second_MP = second_MP * beta2 + gradient_MP * gradient_MP * (1 - beta2)
    step_MP = new_first_MP / (new_second_MP.sqrt() / unbias2 + eps)
    new_weights_MP = weights_MP * (1 - decay * is_decayed_P) - rate / unbias1 * step_MP
    is_alive_M = alive[:, 0] > 0
    goes_on = (is_alive_M & ~has_ended_M)[:, None]
    first_MP.copy_(torch.where(goes_on, new_first_MP, first_MP))
    second_MP.copy_(torch.where(goes_on, new_second_MP, second_MP))
    weights_MP.copy_(torch.where(goes_on, new_weights_MP, weights_MP))
    has_ended_M.logical_or_(is_alive_M & ~(loss_M.isfinite() & norm_M.isfinite()))
    return norm_M


@dataclass(frozen=True)
class _Place:
    """Where a parameter of a shape stands among the P numbers of a model."""

    start: int
    shape: torch.Size

    def of(self, values: Tensor) -> Tensor:
        """The parameter in [P], or of all models in [M, P]: [M, *shape]."""
        part = values[..., self.start : self.start + self.shape.numel()]
        return part.view(*values.shape[:-1], *self.shape)


def _places(model: Model) -> dict[str, _Place]:
    """By name; each begins at a multiple of 128 bytes, so that kernels read whole lines."""
    places, start = {}, 0
    for name, p in model.named_parameters():
        places[name] = _Place(start, p.shape)
        start += -(-p.numel() // _EVEN) * _EVEN
    return places


def _flat(own: list[dict[str, nn.Parameter]], places: dict[str, _Place]) -> Tensor:
    """All models' parameters, [M, P]."""
    last = list(places.values())[-1]
    P = last.start + -(-last.shape.numel() // _EVEN) * _EVEN
    like = next(iter(own[0].values()))
    flat_MP = torch.zeros(len(own), P, dtype=like.dtype, device=like.device)
    for name, place in places.items():
        for m, parameters in enumerate(own):
            place.of(flat_MP[m]).copy_(parameters[name].detach())
    return flat_MP


def _side_by_side(gradients: Sequence[Tensor], places: dict[str, _Place], like_MP: Tensor) -> Tensor:
    """Gradients in the order of the places, as [M, P]."""
    M, padded = len(like_MP), []
    for gradient, place in zip(gradients, places.values(), strict=True):
        padded.append(gradient.reshape(M, -1))
        if rest := -place.shape.numel() % _EVEN:
            padded.append(like_MP.new_zeros(M, rest))
    return torch.cat(padded, dim=1)


def _decayed(member: "Member", places: dict[str, _Place], like_MP: Tensor) -> Tensor:
    """1 where weight decay applies, else 0, [P]."""
    matrices = {id(p) for p in member.optimizer.param_groups[0]["params"]}  # as `build_optimizer` orders them
    out_P = torch.zeros_like(like_MP[0])
    for name, p in member.model.named_parameters():
        places[name].of(out_P).fill_(float(id(p) in matrices))
    return out_P


def _stacked(models: list[Model], flat_MP: Tensor, places: dict[str, _Place]) -> Model:
    """A model of the same modules whose parameters are views of the flat ones, as are now those of the models; of several
    models with one more axis in front."""
    for m, model in enumerate(models):
        for name, p in model.named_parameters():
            p.data = places[name].of(flat_MP[m])
    if len(models) == 1:
        return models[0]
    out = copy.deepcopy(models[0])
    joined = {id(p): nn.Parameter(places[name].of(flat_MP)) for name, p in out.named_parameters()}
    for module in out.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = joined[id(p)]
    return out
