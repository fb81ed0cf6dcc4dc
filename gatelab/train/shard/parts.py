"""Parts: where each weight of a model lies among the ranks that share it, and the two ways in which a rank holds less.

Notable: modules stay those of one process; they hold a slice, or see one. What a rank stores is sliced where heads or channels
divide; where kv heads are fewer than ranks every rank stores all of them and sees its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard


@dataclass(frozen=True)
class Part:
    """A weight's place on the first axis of `mesh`, and its whole shape. `is_summand`: this rank's gradient is one of several
    whose sum is the gradient."""

    mesh: DeviceMesh
    placement: Placement
    shape: torch.Size
    is_summand: bool = False


@dataclass
class Parts:
    """Of a model whose weights are being shared out; by the weight's id, since slicing makes new ones."""

    base: DeviceMesh
    by_id: dict[int, Part] = field(default_factory=dict)

    def of(self, model: nn.Module) -> dict[str, Part]:
        """By name; a weight that nobody shared is whole on every rank."""
        whole = Replicate()
        return {name: self.by_id.get(id(p)) or Part(self.base, whole, p.shape) for name, p in model.named_parameters()}

    def sum_over(self, module: nn.Module) -> None:
        """Note that gradients of what a module holds whole are summands."""
        for p in module.parameters():
            if id(p) not in self.by_id:
                self.by_id[id(p)] = Part(self.base, Replicate(), p.shape, is_summand=True)

    def slice(self, module: nn.Module, name: str, dim: int, mesh: DeviceMesh | None = None) -> None:
        """Keep this rank's slice of a weight along an axis; nothing where the module has no such weight."""
        whole, mesh = module._parameters.get(name), mesh or self.base
        if whole is None:
            return
        own = (
            whole.detach().chunk(mesh.size(0), dim)[mesh.get_local_rank(0)].clone(memory_format=torch.contiguous_format)
        )
        module._parameters[name] = nn.Parameter(own)
        self.by_id[id(module._parameters[name])] = Part(mesh, Shard(dim), whole.shape)

    def see(self, layer: nn.Module, module: nn.Module, name: str, through: Callable[[Tensor], Tensor]) -> None:
        """Let a module read a weight of its own through a function while its layer computes (`layer.computes`); to all others,
        such as torch's sharding, the weight is what it is."""
        if module._parameters.get(name) is None:
            return

        def read(self: nn.Module) -> Tensor:
            weight = self._parameters[name]
            return through(weight) if layer.computes else weight

        kind = type(module)
        module.__class__ = type(kind.__name__, (kind,), {name: property(read), "__module__": kind.__module__})
