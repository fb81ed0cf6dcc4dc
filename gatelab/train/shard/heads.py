"""Attention of anyone's model shared out head by head: `tensor`'s layers alone, on a mesh of the user's; weights are DTensors.

Notable: gradients are whole when a backward pass ends, so that whatever takes DTensors of one mesh serves: torch's optimisers, its
norm of gradients, its checkpoints, and `fully_shard` on another axis of the mesh. The layer computes with what lies on its rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from ...config.parallel import unshareable_heads
from ...nn.attention import GatedAttention
from .exchange import enter
from .parts import Parts
from .tensor import PartOfLayer, make_part, share_heads


def shard_heads(model: nn.Module, mesh: DeviceMesh, *, src_data_rank: int | None = 0) -> nn.Module:
    """Share every `GatedAttention` of a model, or the layer that is given, among the ranks of a mesh, in place; returns the model.

    A rank then has some query heads, the kv heads that they read and both's gates, in `q_proj`, `k_proj`, `v_proj`, `o_proj`
    and `gates` under the names they had. Kv heads that are fewer than ranks lie whole on each, and so does what is of no head:
    gates that are averaged over heads, norms of one head. Parameters are DTensors of the mesh. The layer takes and returns what it
    did, plain tensors that are whole and equal on all ranks; a cache of it needs the rank's own `n_kv_heads`. With dropout, ranks
    of equal seeds drop the same places of their own heads: where nothing outside of attention is drawn, give each a seed of its
    own, `torch.manual_seed(seed + mesh.get_local_rank())`.

    Call it on every rank, before the optimiser is made, before `fully_shard` and before compilation.

    Args:
        mesh: of one axis, such as `init_device_mesh("cuda", (2, 4), mesh_dim_names=("dp", "tp"))["tp"]`.
        src_data_rank: whose weights all take; None: each rank its part of its own, which then have to be equal.

    Raises:
        ValueError: a mesh of more axes than one, a model without such a layer, or layers that cannot be shared so: heads that ranks
            do not divide, `softmax=differential`, weights that are shared out already or with another layer. Nothing was changed
            then.
    """
    if mesh.ndim != 1:
        raise ValueError(
            f'a mesh of axes {mesh.mesh_dim_names or mesh.ndim}: give the one that shares heads, mesh["tp"]'
        )
    layers = {name: m for name, m in model.named_modules() if isinstance(m, GatedAttention)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no GatedAttention; give a model or a layer that has")
    for name, layer in layers.items():
        if found := _problems(layer, mesh.size()):
            raise ValueError(f"{name}: {found[0]}" if name else found[0])
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for p in layer.parameters():
            if owners.setdefault(id(p), name) != name:
                raise ValueError(f"{name} has a weight of {owners[id(p)]} too; give each layer its own")
    for layer in layers.values():
        parts = _Distributed(mesh, layer=layer, source=src_data_rank)
        share_heads(layer, mesh.get_group(), parts)
        make_part(layer, mesh.get_group(), parts)
    return model


class HeadParallel(ParallelStyle):
    """`shard_heads` in a plan of torch's: `parallelize_module(model, mesh, {"blocks.*.attention": HeadParallel(), …})`."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return shard_heads(module, device_mesh, src_data_rank=self.src_data_rank)


def _problems(layer: GatedAttention, n: int) -> list[str]:
    if isinstance(layer, PartOfLayer) or any(isinstance(p, DTensor) for p in layer.parameters()):
        return ["its weights are shared out already; share heads first, and once, then apply fully_shard"]
    return unshareable_heads(n, layer.n_heads, layer.n_kv_heads, layer.normaliser, word=f"a mesh of {n} ranks")


@dataclass
class _Distributed(Parts):
    """Parts whose weights are DTensors on `base`; the layer reads what lies here, and all of it has its whole gradient."""

    layer: GatedAttention | None = None
    source: int | None = 0

    def slice(self, module: nn.Module, name: str, dim: int, mesh: DeviceMesh | None = None) -> None:
        """A weight of which each rank has its slice along an axis."""
        if self._distribute(module, name, Shard(dim)):
            super().see(self.layer, module, name, lambda weight: weight.to_local())

    def see(self, layer: nn.Module, module: nn.Module, name: str, through: Callable[[Tensor], Tensor]) -> None:
        """A weight that every rank has whole, and of whose gradient each computes a summand."""
        group = self.base.get_group()
        if self._distribute(module, name, Replicate()):
            super().see(layer, module, name, lambda weight: through(enter(weight.to_local(), group)))

    def sum_over(self, module: nn.Module) -> None:
        """All that nobody shared is whole on every rank."""
        for owner in module.modules():
            for name, p in owner._parameters.items():
                if p is not None and not isinstance(p, DTensor):
                    self.see(module, owner, name, lambda whole: whole)

    def _distribute(self, module: nn.Module, name: str, placement: Placement) -> bool:
        whole = module._parameters.get(name)
        if whole is None:
            return False
        with torch.no_grad():
            own = distribute_tensor(whole.detach(), self.base, [placement], src_data_rank=self.source)
        module._parameters[name] = nn.Parameter(own, requires_grad=whole.requires_grad)
        return True
