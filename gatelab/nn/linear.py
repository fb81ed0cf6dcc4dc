"""Linear maps with float32 master weights, computing in the type of their input."""

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
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


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
        slices = x.unflatten(-1, (self.weight.shape[0], self.in_features))
        out = torch.einsum("...hi,hoi->...ho", slices, self.weight.to(x.dtype))
        return out if self.bias is None else out + self.bias.to(x.dtype)
