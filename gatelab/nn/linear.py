"""Linear maps with float32 master weights, computing in the type of their input.

Notable: in a stack of M models (`gatelab.train.stack`) a parameter has one more axis in front, and a batch holds the
models' sequences one after the other, [M·B, …]; what multiplies them model by model is here.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x W ᵀ + b in x's type.

    `paired_side` says which side arms may narrow (heads, FFN width): initial values are drawn along it, so that a
    narrower layer starts as a slice of the wider one.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool, paired_side: Literal["in", "out"] = "out"):
        super().__init__(d_in, d_out, bias=bias)
        self.paired_side = paired_side

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] to [..., d_out]."""
        return linear(x, self.weight, self.bias)


class HeadLinear(nn.Module):
    """One map a head, each from its own slice of the input: [..., H·in] to [..., H, out]; weight [H, out, in]."""

    def __init__(self, n_heads: int, d_in: int, d_out: int, *, bias: bool):
        super().__init__()
        self.in_features = d_in
        self.weight = nn.Parameter(torch.empty(n_heads, d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(n_heads, d_out)) if bias else None
        nn.init.uniform_(self.weight, -(d_in**-0.5), d_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The heads' slices lie side by side on the last axis of x."""
        slices, weight = x.unflatten(-1, (self.weight.shape[-3], self.in_features)), self.weight.to(x.dtype)
        if weight.dim() == 3:
            out = torch.einsum("...hi,hoi->...ho", slices, weight)
            return out if self.bias is None else out + self.bias.to(x.dtype)
        slices_MNHI = of_each(x, len(weight)).unflatten(-1, slices.shape[-2:])
        out = torch.einsum("mnhi,mhoi->mnho", slices_MNHI, weight)
        out = out if self.bias is None else out + self.bias.to(x.dtype)[:, None]
        return out.reshape(*slices.shape[:-1], -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W ᵀ + b in x's type, [..., in] to [..., out]; of M stacked weights [M, out, in] (and biases [M, out]) each
    multiplies its M-th of the first axis of x."""
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type):
        # It casts what enters torch's products, not what a function keeps for its way back.
        low = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
    out_MNO = _StackedLinear.apply(of_each(x, len(weight)), weight, bias)
    return _together(out_MNO, x.shape[:-1])


def of_each(x: Tensor, n_models: int) -> Tensor:
    """A stack's [M·B, …, D] as each model's [M, N, D].

    In two steps, as is the way back: torch's compiler (2.11) knows each as the same memory seen otherwise, and makes a copy of a
    tensor that changes its shape so in one.
    """
    return x.unflatten(0, (n_models, -1)).flatten(1, -2)


def _together(x_MND: Tensor, shape: Sequence[int]) -> Tensor:
    """[M, N, D] as [M·B, …, D], whose axes but the last are given."""
    return x_MND.unflatten(1, (shape[0] // len(x_MND), *shape[1:])).flatten(0, 1)


class _StackedLinear(torch.autograd.Function):
    """x_m W_mᵀ + b_m of each model, [M, N, in] to [M, N, out].

    Its own way back, since torch's of `bmm` gives the weights' gradient as a transposed [M, in, out], which one more pass over
    memory would have to put in the order of the weights. Knows nothing of `torch.func`.
    """

    @staticmethod
    def forward(ctx, x_MNI: Tensor, weight_MOI: Tensor, bias_MO: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_MNI if of_weight else None, weight_MOI if of_x else None)
        weight_MIO = weight_MOI.transpose(1, 2)
        if bias_MO is None:
            return torch.bmm(x_MNI, weight_MIO)
        return torch.baddbmm(bias_MO[:, None], x_MNI, weight_MIO)

    @staticmethod
    def backward(ctx, dout_MNO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_MNI, weight_MOI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(dout_MNO, weight_MOI) if of_x else None,
            torch.bmm(dout_MNO.transpose(1, 2), x_MNI) if of_weight else None,
            dout_MNO.sum(dim=1) if of_bias else None,
        )


def lookup(table: Tensor, ids_BT: Tensor) -> Tensor:
    """Rows of a table [V, D] by their numbers, [B, T, D]; of M stacked tables [M, V, D] each serves its M-th of the first
    axis."""
    if table.dim() == 2:
        return F.embedding(ids_BT, table)
    M, V, _ = table.shape
    first_M = torch.arange(0, M * V, V, device=ids_BT.device)
    return F.embedding(ids_BT + first_M.repeat_interleave(len(ids_BT) // M)[:, None], table.flatten(0, 1))


def spread(values: Tensor, like: Tensor, *, n_dims: int) -> Tensor:
    """A parameter of `n_dims` axes as it multiplies the last axes of a tensor [B, …]: as it is, or of M stacked ones
    [M·B, 1, …], each repeated for its sequences."""
    if values.dim() == n_dims:
        return values
    spread_MB = values[:, None].expand(-1, len(like) // len(values), *values.shape[1:]).flatten(0, 1)
    return spread_MB.view(len(like), *[1] * (like.dim() - 1 - n_dims), *values.shape[1:])
