"""Linear maps with float32 master weights, computing in the type of their input."""

from typing import Literal

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
