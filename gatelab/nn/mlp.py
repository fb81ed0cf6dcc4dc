"""Feed-forward layers by kind. The names are w1, w2, w3: `gate` means the attention gate in this project."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear


class MLP(nn.Module):
    """`swiglu`: w2(SiLU(w1 x) ⊙ w3 x); `gelu`, `relu`: w2(act(w1 x))."""

    def __init__(self, d_model: int, d_ff: int, kind: Literal["swiglu", "gelu", "relu"], *, bias: bool):
        super().__init__()
        self.kind = kind
        self.w1 = Linear(d_model, d_ff, bias=bias)
        self.w2 = Linear(d_ff, d_model, bias=bias, paired_side="in")
        if kind == "swiglu":
            self.w3 = Linear(d_model, d_ff, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        hidden_BTF = self.w1(x_BTD)
        if self.kind == "swiglu":
            hidden_BTF = F.silu(hidden_BTF) * self.w3(x_BTD)
        else:
            hidden_BTF = F.gelu(hidden_BTF) if self.kind == "gelu" else F.relu(hidden_BTF)
        return self.w2(hidden_BTF)
