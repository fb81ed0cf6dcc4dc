"""Tokens sorted by expert, then one grouped product a weight; no token is dropped and none is computed in vain.

Notable: the groups' ends stay on the device, so a GPU never waits for the host; where a gather's gradient would be a
scattered sum, it is written as the gather that goes the other way, which is the same in every run. Experts without tokens
get zero gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.moe import Activation, SwiGLU
from .hidden import hidden

# What torch's grouped_mm multiplies. On CUDA other types fall back to a loop over groups that waits for the host; on CPU
# they run, and torch.compile refuses them.
_TYPES = {"cuda": (torch.bfloat16,), "cpu": (torch.bfloat16, torch.float16, torch.float32)}
# Every row starts at a multiple of this.
_ROW_BYTES = 16
# torch refuses 1,024 groups and more on a GPU.
MOST_EXPERTS = 1023


def obstacle(d_model: int, d_expert: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why grouped products cannot run here, or None."""
    types = _TYPES.get(device.type)
    if types is None:
        return f"torch has no grouped product for device {device.type!r}, only for {' and '.join(_TYPES)}"
    if dtype not in types:
        names = ", ".join(str(t).removeprefix("torch.") for t in types)
        return f"{str(dtype).removeprefix('torch.')} on {device.type}: grouped products take {names}"
    multiple = _ROW_BYTES // dtype.itemsize
    if d_model % multiple or d_expert % multiple:
        return (
            f"widths {d_model} and {d_expert}: rows must start at multiples of {_ROW_BYTES} bytes; "
            f"take multiples of {multiple}"
        )
    return None


def expert_ffn(
    x_ND: Tensor,
    chosen_NE: Tensor,
    weight_NE: Tensor,
    w1_XFD: Tensor,
    w3_XFD: Tensor,
    w2_XDF: Tensor,
    *,
    b1_XF: Tensor | None = None,
    b3_XF: Tensor | None = None,
    b2_XD: Tensor | None = None,
    activation: Activation = SwiGLU(),  # noqa: B008  (a frozen value)
) -> Tensor:
    """Same function as the reference; see `gatelab.ops.expert_ffn.expert_ffn`."""
    N, E = chosen_NE.shape
    order_M, position_M, ends_X = by_expert(chosen_NE, n_experts=w1_XFD.shape[0])
    x_MD = _ToExperts.apply(x_ND, order_M, position_M, E)
    a_MF, b_MF = (_product(x_MD, w, ends_X, bias) for w, bias in ((w1_XFD, b1_XF), (w3_XFD, b3_XF)))
    y_MD = _product(hidden(a_MF, b_MF, activation), w2_XDF, ends_X, b2_XD)
    y_NED = _Permuted.apply(y_MD, position_M, order_M).unflatten(0, (N, E))
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    return (y_NED.to(wide) * weight_NE.to(wide)[..., None]).sum(dim=1).to(x_ND.dtype)


def by_expert(chosen_NE: Tensor, *, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The M = N·E pairs of a token and a choice, sorted by expert and within an expert by token.

    Returns the pair at each sorted place [M], the place of each pair [M], and where each expert's pairs end [X], int32.
    """
    expert_M, order_M = chosen_NE.flatten().sort(stable=True)
    position_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
    experts_X = torch.arange(n_experts, device=expert_M.device)
    return order_M, position_M, torch.searchsorted(expert_M, experts_X, right=True, out_int32=True)


class _ToExperts(torch.autograd.Function):
    """The token of each sorted pair, [M, D]; a token's gradient is the sum over its E pairs, taken in float32 at least and
    rounded once."""

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
    """Rows in another order; `back_M` is the order that undoes it."""

    @staticmethod
    def forward(ctx, y_MD: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
        ctx.save_for_backward(back_M)
        return y_MD.index_select(0, order_M)

    @staticmethod
    def backward(ctx, dy_MD: Tensor) -> tuple[Tensor | None, ...]:
        (back_M,) = ctx.saved_tensors
        return dy_MD.index_select(0, back_M), None, None


def _product(x_MI: Tensor, weight_XOI: Tensor, ends_X: Tensor, bias_XO: Tensor | None = None) -> Tensor:
    """x Wᵀ with each expert's W, and its bias where there are any, for its own rows, [M, O]."""
    product_MO = F.grouped_mm(x_MI, weight_XOI.transpose(1, 2), offs=ends_X)
    if bias_XO is None:
        return product_MO
    # A row's bias is a product with a one, so that its gradient is a grouped product too, not a scattered sum.
    width = _ROW_BYTES // bias_XO.element_size()
    return product_MO + _product(bias_XO.new_ones(len(x_MI), width), F.pad(bias_XO[..., None], (0, width - 1)), ends_X)
