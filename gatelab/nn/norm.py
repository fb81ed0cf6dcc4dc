"""RMSNorm and LayerNorm, by kind."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """`rms`: x/rms(x) · weight; `rms-no-gain`: without weight; `layer`: (x − mean)/std · weight + bias. Last axis."""

    def __init__(self, width: int, kind: Literal["rms", "rms-no-gain", "layer"], eps: float):
        super().__init__()
        self.kind, self.eps = kind, eps
        if kind != "rms-no-gain":
            self.weight = nn.Parameter(torch.ones(width))
        if kind == "layer":
            self.bias = nn.Parameter(torch.zeros(width))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type; torch's kernels accumulate in float32."""
        if self.kind == "layer":
            return F.layer_norm(x, (self.width,), self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        weight = self.weight.to(x.dtype) if self.kind == "rms" else None
        return F.rms_norm(x, (self.width,), weight, self.eps)
