"""Gate: one gate of the attention layer, as a projection of its source to logits; `GateSpec` says the rest."""

import torch
from torch import Tensor, nn

from ..config.gate import ACTIVATIONS, GateSpec
from ..ops.gate_apply import apply_gate
from .linear import Linear
from .tap import Tap

__all__ = ["Gate", "GateSpec"]


class Gate(nn.Module):
    """Logits x W_g (+ b), [B, T, H, K] elementwise or [B, T, H, 1] headwise, from the pre-normed hidden state.

    A static gate is a learned constant of shape [H, K] or [H, 1]. Where the spec states a starting value, the gate
    starts there, with zero weights.
    """

    def __init__(self, spec: GateSpec, d_model: int, n_heads: int, head_dim: int):
        super().__init__()
        self.spec, self.n_heads = spec, n_heads
        self.width = head_dim if spec.granularity == "elementwise" else 1
        if spec.source == "static":
            self.constant_HK = nn.Parameter(torch.full((n_heads, self.width), self.start_logit))
        else:
            self.g_proj = Linear(d_model, n_heads * self.width, bias=spec.bias)
            if spec.init != "random":
                nn.init.zeros_(self.g_proj.weight)
                nn.init.constant_(self.g_proj.bias, self.start_logit)
        self.tap_logits = Tap()

    @property
    def start_logit(self) -> float:
        """The logit at which the gate starts when its spec states a value; 0 for a static gate that does not."""
        return 0.0 if self.spec.init == "random" else ACTIVATIONS[self.spec.activation].inverse(float(self.spec.init))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Gate logits for a hidden state, [B, T, H, K or 1]."""
        if self.spec.source == "static":
            logits_BTHK = self.constant_HK.to(x_BTD.dtype).expand(*x_BTD.shape[:2], -1, -1)
        else:
            logits_BTHK = self.g_proj(x_BTD).unflatten(-1, (self.n_heads, self.width))
        return self.tap_logits(logits_BTHK)

    def forward(self, y_BTHK: Tensor, x_BTD: Tensor) -> Tensor:
        """y gated by x, for the sites outside of the attention kernel."""
        return apply_gate(y_BTHK, self.logits(x_BTD), self.spec)
