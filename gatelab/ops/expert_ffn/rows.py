"""Rows on their way to experts and back: pairs of a token and a choice in the order of their experts, and the weighted sum of what
came of them.

Notable: where a gather's gradient would be a scattered sum, it is written as the gather that goes the other way, which is the same
in every run.
"""

import torch
from torch import Tensor


def by_expert(chosen_NE: Tensor, *, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The M = N·E pairs of a token and a choice, sorted by expert and within an expert by token.

    Returns the pair at each sorted place [M], the place of each pair [M], and where each expert's pairs end [X], int32.
    """
    expert_M, order_M = chosen_NE.flatten().sort(stable=True)
    experts_X = torch.arange(n_experts, device=expert_M.device)
    return order_M, inverse(order_M), torch.searchsorted(expert_M, experts_X, right=True, out_int32=True)


def inverse(order_M: Tensor) -> Tensor:
    """The order that undoes one."""
    return torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))


def to_experts(x_ND: Tensor, order_M: Tensor, position_M: Tensor, n_choices: int) -> Tensor:
    """The token of each sorted pair, [M, D]; a token's gradient is the sum over its pairs, taken in float32 at least and rounded
    once."""
    return _ToExperts.apply(x_ND, order_M, position_M, n_choices)


def permuted(y_MD: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    """Rows in another order; `back_M` is the order that undoes it."""
    return _Permuted.apply(y_MD, order_M, back_M)


def weighted_sum(y_MD: Tensor, position_M: Tensor, order_M: Tensor, weight_NE: Tensor) -> Tensor:
    """Of each token's rows, which lie sorted: [N, D], taken in float32 at least and rounded once, to their type."""
    y_NED = permuted(y_MD, position_M, order_M).unflatten(0, weight_NE.shape)
    wide = torch.promote_types(y_MD.dtype, torch.float32)
    return (y_NED.to(wide) * weight_NE.to(wide)[..., None]).sum(dim=1).to(y_MD.dtype)


class _ToExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, order_M: Tensor, position_M: Tensor, n_choices: int) -> Tensor:
        ctx.save_for_backward(position_M)
        ctx.n_choices = n_choices
        return x_ND.index_select(0, order_M // n_choices)

    @staticmethod
    def backward(ctx, dx_MD: Tensor) -> tuple[Tensor | None, ...]:
        (position_M,) = ctx.saved_tensors
        return dx_MD.index_select(0, position_M).unflatten(0, (-1, ctx.n_choices)).sum(dim=1), None, None, None


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_MD: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
        ctx.save_for_backward(back_M)
        return y_MD.index_select(0, order_M)

    @staticmethod
    def backward(ctx, dy_MD: Tensor) -> tuple[Tensor | None, ...]:
        (back_M,) = ctx.saved_tensors
        return dy_MD.index_select(0, back_M), None, None
