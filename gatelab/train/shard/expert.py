"""Expert parallel: each rank of a group holds some experts whole, and tokens travel to the experts that they chose and back.

Notable: routers, and all that is no expert, stay with the tokens; the gradient of an expert comes from all tokens of the group.
Once a layer and forward pass a host waits for its GPU, for how many rows go and come; a backward pass waits only where it computes
blocks again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ...nn.moe import ExpertMLP
from ...ops.expert_ffn import expert_rows
from ...ops.expert_ffn.hidden import hidden
from ...ops.expert_ffn.rows import by_expert, inverse, permuted, to_experts, weighted_sum
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
            layer.ffn = TravellingFFN(mesh.expert.get_group("expert"))


class TravellingFFN:
    """`expert_ffn` over the experts of all ranks of a group, of which each gives its own X in the group's order; every rank must
    call it.

    What an expert says of a token is rounded to x's type before it travels back; then the weighted sum as there.
    """

    def __init__(self, group: ProcessGroup):
        self.group = group
        self.between, self.weigh = hidden, weighted_sum

    def compile(self) -> None:
        """Compile what lies between the products, whatever number of rows comes, and the weighted sum of those that come back."""
        self.between, self.weigh = torch.compile(hidden, dynamic=True), torch.compile(weighted_sum, dynamic=False)

    def __call__(
        self,
        x_ND: Tensor,
        chosen_NE: Tensor,
        weight_NE: Tensor,
        w1_XFD: Tensor,
        w3_XFD: Tensor,
        w2_XDF: Tensor,
        **others: Any,
    ) -> Tensor:
        """As `expert_ffn`."""
        R, X = self.group.size(), w1_XFD.shape[0]
        order_P, place_P, ends_X = by_expert(chosen_NE, n_experts=R * X)  # P = N·E pairs of a token and a choice
        to_RX = ends_X.diff(prepend=ends_X.new_zeros(1)).view(R, X)
        come_RX = torch.empty_like(to_RX)
        torch.distributed.all_to_all_single(come_RX, to_RX, group=self.group)
        x_PD = to_experts(x_ND, order_P, place_P, chosen_NE.shape[1])
        to, come = torch.stack([to_RX, come_RX]).sum(dim=-1).tolist()
        x_QD = travel(x_PD, to, come, self.group)
        order_Q, place_Q = _by_own_expert(come_RX, n_rows=len(x_QD))
        ends_X = come_RX.sum(dim=0).cumsum(dim=0, dtype=torch.int32)
        x_QD = permuted(x_QD, order_Q, place_Q)
        y_QD = expert_rows(x_QD, ends_X, w1_XFD, w3_XFD, w2_XDF, between=self.between, **others)
        y_PD = travel(permuted(y_QD, place_Q, order_Q), come, to, self.group)
        return self.weigh(y_PD, place_P, order_P, weight_NE)


def _by_own_expert(come_RX: Tensor, *, n_rows: int) -> tuple[Tensor, Tensor]:
    """Of rows that came rank by rank, sorted by expert within each: the row at each place of the order by expert, and back."""
    ended_RX = come_RX.flatten().cumsum(dim=0).view_as(come_RX)
    placed_RX = come_RX.T.flatten().cumsum(dim=0).view(come_RX.T.shape).T
    shift_Q = (placed_RX - ended_RX).flatten().repeat_interleave(come_RX.flatten(), output_size=n_rows)
    place_Q = shift_Q + torch.arange(n_rows, device=shift_Q.device)
    return inverse(place_Q), place_Q
