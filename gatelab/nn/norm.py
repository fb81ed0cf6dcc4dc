"""RMSNorm, LayerNorm and GatedNorm, by kind."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear, spread


class Norm(nn.Module):
    """`rms`: x/rms(x) · weight; `rms-no-gain`: without weight; `layer`: (x − mean)/std · weight + bias; `gated-rms`: n ⊙
    σ(SiLU(n W_down) W_up) of the RMS-normed n, with `rank` channels between (GatedNorm, arXiv 2601.22966). Last axis."""

    def __init__(
        self,
        width: int,
        kind: Literal["rms", "rms-no-gain", "layer", "gated-rms"],
        eps: float,
        *,
        rank: int = 16,
    ):
        super().__init__()
        self.kind, self.eps = kind, eps
        if kind != "rms-no-gain":
            self.weight = nn.Parameter(torch.ones(width))
        if kind == "layer":
            self.bias = nn.Parameter(torch.zeros(width))
        if kind == "gated-rms":
            self.down, self.up = Linear(width, rank, bias=False), Linear(rank, width, bias=False)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type; torch's kernels accumulate in float32."""
        if self.kind != "rms-no-gain" and self.weight.dim() > 1:
            return self._stacked(x)
        if self.kind == "layer":
            return F.layer_norm(x, (self.width,), self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        weight = None if self.kind == "rms-no-gain" else self.weight.to(x.dtype)
        normed = F.rms_norm(x, (self.width,), weight, self.eps)
        if self.kind != "gated-rms":
            return normed
        return normed * self.up(F.silu(self.down(normed))).sigmoid()

    def _stacked(self, x: Tensor) -> Tensor:
        """Of M models, with their own gains: [M·B, …, width]. Rounded once, as torch's kernels do."""
        wide, shape = x.to(torch.promote_types(x.dtype, torch.float32)), (self.width,)
        if self.kind == "layer":
            normed = F.layer_norm(wide, shape, eps=self.eps)
            return (normed * spread(self.weight, x, n_dims=1) + spread(self.bias, x, n_dims=1)).to(x.dtype)
        normed = (F.rms_norm(wide, shape, eps=self.eps) * spread(self.weight, x, n_dims=1)).to(x.dtype)
        if self.kind != "gated-rms":
            return normed
        return normed * self.up(F.silu(self.down(normed))).sigmoid()


def head_norm(qk_norm: bool | str, n_heads: int, head_dim: int, eps: float) -> Norm | None:
    """The norm of queries or keys of so many heads; None without one."""
    if qk_norm == "rms-all-heads":
        return Norm(n_heads * head_dim, "rms", eps)
    return Norm(head_dim, "rms" if qk_norm is True else qk_norm, eps) if qk_norm else None
