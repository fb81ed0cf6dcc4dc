"""Gate: one gate of the attention layer, as a projection of its source to logits; `GateSpec` says the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.gate import GateSpec
from ..config.gate_axes import resolve_share
from ..ops.gate_apply import apply_gate
from .linear import HeadLinear, Linear, spread
from .tap import Tap

__all__ = ["Gate", "GateSpec"]


class Gate(nn.Module):
    """Logits of a gate, [B, T, H, K] elementwise or [B, T, H, 1] headwise: source W_g (+ b), or a learned constant.

    `rank` and `mlp` put `g_down` before `g_proj`. Where the spec states a starting value, `start` sets it.

    Raises:
        ValueError: when the source does not fit the layer's widths.
    """

    def __init__(self, spec: GateSpec, *, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int):
        super().__init__()
        self.spec = spec
        self.shape = spec.shape(d_model, n_heads, n_kv_heads, head_dim)
        heads, width, d_in = self.shape.heads, self.shape.width, self.shape.d_in
        self.g_down: nn.Module | None = None
        if not spec.has_projection:
            self.constant_HK = nn.Parameter(torch.zeros(heads, width))
        else:
            inner = spec.mlp if spec.rank is None else spec.rank
            d_inner = d_in if inner is None else resolve_share(inner, d_in)
            if spec.source == "head_slice":
                if inner is not None:
                    self.g_down = HeadLinear(heads, d_in, d_inner, bias=True)
                self.g_proj = HeadLinear(heads, d_inner, width, bias=spec.bias)
            else:
                if inner is not None:
                    self.g_down = Linear(d_in, d_inner, bias=spec.mlp is not None)
                self.g_proj = Linear(d_inner, heads * width, bias=spec.bias)
        self.start()
        self.tap_logits = Tap()

    @torch.no_grad()
    def start(self) -> None:
        """Set what the spec says about the start; to be called again after all weights were drawn."""
        logit = self.spec.start_logit
        if logit is None:
            return
        if not self.spec.has_projection:
            self.constant_HK.fill_(logit)
            return
        if self.spec.around is None:
            self.g_proj.weight.zero_()
        if self.g_proj.bias is not None:
            self.g_proj.bias.fill_(logit)

    def logits(
        self,
        x_BTD: Tensor,
        *,
        v_BTGK: Tensor | None = None,
        y_BTHK: Tensor | None = None,
        product: Tensor | None = None,
    ) -> Tensor:
        """Gate logits, [B, T, H, K or 1]; a constant has 1 in the place of B and T.

        Args:
            x_BTD: the attention input of the tokens that are gated.
            v_BTGK: their values, which the source `value` reads.
            y_BTHK: the attention output, which the sources `output` and `hybrid` read.
            product: x W_g (+ b) where the layer has computed it already, in one product with its other projections.
        """
        if not self.spec.has_projection:
            constant_HK = spread(self.constant_HK, x_BTD, n_dims=2).to(x_BTD.dtype)
            return self.tap_logits(constant_HK[None, None] if constant_HK.dim() == 2 else constant_HK[:, None])
        logits = self._project(self._source(x_BTD, v_BTGK, y_BTHK)) if product is None else product
        if not isinstance(self.g_proj, HeadLinear):
            logits = logits.unflatten(-1, (self.shape.heads, self.shape.width))
        return self.tap_logits(logits)

    def forward(self, y_BTHK: Tensor, logits_BTHK: Tensor) -> Tensor:
        """y gated by logits, for the sites outside of the attention kernel."""
        return apply_gate(y_BTHK, logits_BTHK, self.spec)

    def _project(self, source: Tensor) -> Tensor:
        if self.g_down is not None:
            source = self.g_down(source)
            source = source if self.spec.mlp is None else F.relu(source)
            source = source.flatten(-2) if isinstance(self.g_down, HeadLinear) else source
        return self.g_proj(source)

    def _source(self, x_BTD: Tensor, v_BTGK: Tensor | None, y_BTHK: Tensor | None) -> Tensor:
        kind = self.spec.source_kind
        if kind == "value":
            return v_BTGK.flatten(-2)
        if kind == "output":
            return y_BTHK.flatten(-2)
        if kind == "hybrid":
            return torch.cat([x_BTD, y_BTHK.flatten(-2)], dim=-1)
        return x_BTD[..., : self.shape.d_in] if kind == "first" else x_BTD
