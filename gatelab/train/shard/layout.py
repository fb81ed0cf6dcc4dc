"""Layout: a model whose weights are shared out over a mesh, as a whole that can be read, filled, stepped and saved.

Notable: a weight and its optimiser state are DTensors of the mesh here, whatever the model computes with, so that gathering,
resharding and saving are torch's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from ...models.model import Model
from ..checkpoint import misfit
from ..mesh import Mesh
from ..optim import begin_state
from .compiled import compile_blocks
from .expert import share_experts
from .fsdp import share_storage
from .parts import Part, Parts
from .tensor import share_layers

_STATE = ("exp_avg", "exp_avg_sq")


@dataclass
class Layout:
    """`parts` by name: where each weight lies on the first axis of its mesh; on the second it is shared out, or not."""

    model: Model
    mesh: Mesh
    parts: dict[str, Part]

    @property
    def is_stored_apart(self) -> bool:
        """Whether data ranks share out what they hold."""
        return self.mesh.config.shard != "none"

    def weights(self) -> Iterator[tuple[str, DTensor]]:
        """Every weight by name, sharing this rank's memory."""
        for name, p in self.model.named_parameters():
            yield name, self._whole(name, _local(p))

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """What `checkpoint.pack` names, sharing this rank's memory; state that the optimiser does not have yet begins as
        nothing."""
        out: dict[str, Tensor] = {}
        begin_state(self.model, optimizer)
        for name, p in self.model.named_parameters():
            state = optimizer.state[p]
            out[f"model.{name}"] = self._whole(name, _local(p))
            out[f"optim.step.{name}"] = state["step"]
            out |= {f"optim.{key}.{name}": self._whole(name, _local(state[key])) for key in _STATE}
        return out

    def gather(self, onto: nn.Module | None) -> None:
        """Give a model of one process all weights; every rank must call it, those without a model with None."""
        whole = {} if onto is None else dict(onto.named_parameters())
        for name, weight in self.weights():
            # One axis of the mesh after the other.
            full = weight.redistribute(placements=(weight.placements[0], Replicate())).full_tensor()
            if name in whole:
                whole[name].data.copy_(full)

    @torch.no_grad()
    def take(self, whole: dict[str, Tensor]) -> None:
        """Fill the weights from those of one process, by name."""
        for name, weight in self.weights():
            weight.to_local().copy_(self._own(whole[name], weight))

    @torch.no_grad()
    def take_all(self, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, path: Path) -> None:
        """Fill weights and optimiser state from those of one process, as `checkpoint.pack` names them.

        Raises:
            CheckpointError: when one is missing or has another shape; `path` is for the message.
        """
        for name, own in self.tensors(optimizer).items():
            stored = tensors.get(name)
            if stored is None or stored.shape != own.shape:
                raise misfit(path, name, None if stored is None else stored.shape, own.shape)
            if isinstance(own, DTensor):
                own.to_local().copy_(self._own(stored, own))
            else:
                own.copy_(stored)

    @torch.no_grad()
    def clip_gradients(self, most: float | None) -> Tensor:
        """Finish what a backward pass left, the sums over ranks; then bound the norm of all. Returns it as it was before."""
        summands: dict[object, list[Tensor]] = {}
        gradients = []
        for name, p in self.model.named_parameters():
            if p.grad is None:
                continue
            part, gradient = self.parts[name], _local(p.grad)
            gradients.append((part, gradient))
            if not self.is_stored_apart:
                summands.setdefault(part.mesh.get_group(1), []).append(gradient)
            if part.is_summand:
                summands.setdefault(self.mesh.tensor, []).append(gradient)
        for group, own in summands.items():
            if group.size() > 1:
                flat = torch.cat([g.flatten() for g in own])
                torch.distributed.all_reduce(flat, group=group)
                summed = flat.split([g.numel() for g in own])
                torch._foreach_copy_(own, [s.view_as(g) for s, g in zip(summed, own, strict=True)])
        # Each number counts once, however many ranks hold it.
        by_copies: dict[int, list[Tensor]] = {}
        for part, gradient in gradients:
            by_copies.setdefault(self._copies(part), []).append(gradient)
        total = sum(_square(own) / n for n, own in by_copies.items())
        torch.distributed.all_reduce(total)
        norm = total.sqrt()
        if most is not None:
            torch._foreach_mul_([g for _, g in gradients], (most / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _copies(self, part: Part) -> int:
        first = part.mesh.size(0) if part.placement.is_shard() else 1
        second = part.mesh.size(1) if self.is_stored_apart else 1
        return torch.distributed.get_world_size() // (first * second)

    def _whole(self, name: str, local: Tensor) -> DTensor:
        part = self.parts[name]
        stride = torch.empty(part.shape, device="meta").stride()
        placements = (part.placement, Shard(0) if self.is_stored_apart else Replicate())
        return DTensor.from_local(local, part.mesh, placements, run_check=False, shape=part.shape, stride=stride)

    def _own(self, whole: Tensor, like: DTensor) -> Tensor:
        mesh = like.device_mesh
        whole = whole.detach().to(mesh.device_type)
        return distribute_tensor(whole, mesh, like.placements, src_data_rank=None).to_local()


def lay_out(model: Model, mesh: Mesh, dtype: torch.dtype, device: torch.device, *, compiled: bool = False) -> Layout:
    """Share a whole model out over the mesh, in place: every rank gives the same one, on the host. `compiled`: its blocks are, one
    by one."""
    parts = Parts(mesh.base)
    if mesh.n_tensor > 1:
        share_layers(model, mesh, parts)
    if mesh.config.ep > 1:
        share_experts(model, mesh, parts)
    placed = parts.of(model)
    if compiled:
        compile_blocks(model)
    if mesh.config.shard != "none":
        share_storage(model, mesh, dtype, mesh.config.shard)
    model.to(device)
    return Layout(model, mesh, placed)


def _square(gradients: list[Tensor]) -> Tensor:
    """Of the norm of all, in few kernels."""
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32)).square().sum()


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
