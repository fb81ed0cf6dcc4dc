"""Expert parallel: each rank of a group holds some experts whole, and tokens travel to the experts that they chose and back.

Notable: routers, and all that is no expert, stay with the tokens; the gradient of an expert comes from all tokens of the group.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ...nn.moe import ExpertMLP
from ...ops.expert_ffn import expert_ffn
from ..mesh import Mesh
from .exchange import travel
from .parts import Parts


def share_experts(model: nn.Module, mesh: Mesh, parts: Parts) -> None:
    """Keep this rank's experts of every layer, in place."""
    for layer in model.modules():
        if isinstance(layer, ExpertMLP):
            for experts in (layer.w1, layer.w3, layer.w2):
                parts.slice(experts, "weight", 0, mesh.expert)
                parts.slice(experts, "bias", 0, mesh.expert)
            layer.ffn = partial(travelling_ffn, mesh.expert.get_group("expert"))


def travelling_ffn(
    group: ProcessGroup,
    x_ND: Tensor,
    chosen_NE: Tensor,
    weight_NE: Tensor,
    w1_XFD: Tensor,
    w3_XFD: Tensor,
    w2_XDF: Tensor,
    **others: Any,
) -> Tensor:
    """`expert_ffn` over the experts of all ranks, of which each gives its own X in the group's order; every rank must call it.

    What an expert says of a token is rounded to x's type before it travels back; then the weighted sum as there.
    """
    (N, E), X = chosen_NE.shape, w1_XFD.shape[0]
    expert_P = chosen_NE.flatten()  # P = N·E pairs of a token and a choice
    order_P = expert_P.argsort(stable=True)
    to_R = torch.bincount(expert_P // X, minlength=group.size())
    come_R = torch.empty_like(to_R)
    torch.distributed.all_to_all_single(come_R, to_R, group=group)
    to, come = to_R.tolist(), come_R.tolist()
    here_Q = travel((expert_P % X)[order_P], to, come, group)
    x_QD = travel(x_ND[order_P // E], to, come, group)
    once_Q1 = torch.ones_like(here_Q[:, None], dtype=weight_NE.dtype)
    out_QD = expert_ffn(x_QD, here_Q[:, None], once_Q1, w1_XFD, w3_XFD, w2_XDF, **others)
    out_PD = torch.zeros_like(x_ND).repeat_interleave(E, dim=0).index_copy(0, order_P, travel(out_QD, come, to, group))
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    y_ND = (weight_NE.to(wide)[..., None] * out_PD.unflatten(0, (N, E)).to(wide)).sum(dim=1)
    return y_ND.to(x_ND.dtype)
