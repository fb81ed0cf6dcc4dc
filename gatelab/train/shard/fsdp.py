"""Fully sharded data parallel: weights, gradients and the optimiser's state are shared out among the data ranks, and a block's
weights are gathered while it computes (FSDP2, arXiv 2304.11277).

Notable: what a block casts to the compute type is gathered in it, which halves what travels; what computes in float32 whatever
the type (routers, embeddings, the head, and a block whose normaliser learns something) is gathered in float32. Gradients are
summed in float32.
"""

from typing import Literal

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ...models.block import Block
from ...models.model import Model
from ...nn.moe import ExpertMLP
from ...nn.softmax import LearnedNormaliser
from ..mesh import Mesh


def share_storage(model: Model, mesh: Mesh, dtype: torch.dtype, policy: Literal["zero2", "zero3"]) -> None:
    """Share out what a rank holds of a model among those that hold the same, in place; `dtype` is that of the computation."""
    data, release = mesh.base["data"], policy == "zero3"
    # Every block casts its weights to its input's type anyway.
    cast = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in [m for m in model.modules() if isinstance(m, Block)]:
        for module in list(block.modules()):
            if isinstance(module, ExpertMLP):
                fully_shard(module.router, mesh=data, reshard_after_forward=release, mp_policy=plain)
                if mesh.config.ep > 1:
                    _share_experts(module, mesh, release, cast)
        # What a normaliser learns is read by the layer around it, so it cannot be gathered alone.
        has_learned = any(isinstance(m, LearnedNormaliser) for m in block.modules())
        fully_shard(block, mesh=data, reshard_after_forward=release, mp_policy=plain if has_learned else cast)
    fully_shard(model, mesh=data, reshard_after_forward=False, mp_policy=plain)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are parts of a sum already; and gloo knows no sum of scaled parts.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _share_experts(layer: ExpertMLP, mesh: Mesh, release: bool, cast: MixedPrecisionPolicy) -> None:
    """Experts lie on a mesh of their own; what else the layer holds goes first, to the data ranks."""
    for module in (layer.shared, layer.shared_router):
        if module is not None:
            fully_shard(module, mesh=mesh.base["data"], reshard_after_forward=release, mp_policy=cast)
    # torch warns of a view, to which somebody might add in place.
    layer.register_forward_hook(lambda _layer, _given, out: out.clone())
    fully_shard(layer, mesh=mesh.expert["copy"], reshard_after_forward=release, mp_policy=cast)
