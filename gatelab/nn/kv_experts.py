"""Values, or keys and values, as sigmoid-routed sums of expert maps (arXiv 2312.07987; arXiv 2505.06708, Table 6)."""

import torch
from torch import Tensor, nn

from ..config.kv_experts import KVExperts
from .linear import Linear
from .tap import Tap


class RoutedHeads(nn.Module):
    """[B, T, D] to [B, T, G·K]: head g gives Σ over its `top` best of σ(x r_ge) · x W_ge, e in 1 … `n_experts`.

    All maps are computed and the others multiplied by zero: n_experts times the products of a plain projection.
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, *, n_experts: int, top: int, bias: bool):
        super().__init__()
        self.n_heads, self.head_dim, self.n_experts, self.top = n_heads, head_dim, n_experts, top
        self.proj = Linear(d_model, n_experts * n_heads * head_dim, bias=bias)
        self.router = Linear(d_model, n_experts * n_heads, bias=False)
        self.tap_scores = Tap()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, G·K]; scores in float32, rounded once."""
        maps_BTXGK = self.proj(x_BTD).unflatten(-1, (self.n_experts, self.n_heads, self.head_dim))
        logits_BTXG = self.router(x_BTD).unflatten(-1, (self.n_experts, self.n_heads))
        scores_BTXG = logits_BTXG.to(torch.promote_types(x_BTD.dtype, torch.float32)).sigmoid()
        if self.top < self.n_experts:
            best = scores_BTXG.topk(self.top, dim=2).indices
            scores_BTXG = scores_BTXG * torch.zeros_like(scores_BTXG).scatter(2, best, 1.0)
        scores_BTXG = self.tap_scores(scores_BTXG)
        return (maps_BTXGK.to(scores_BTXG.dtype) * scores_BTXG[..., None]).sum(dim=2).to(x_BTD.dtype).flatten(-2)


def key_and_value_maps(
    d_model: int, n_heads: int, head_dim: int, experts: KVExperts | None, *, bias: bool
) -> tuple[nn.Module, nn.Module]:
    """The maps of x to keys and to values of so many heads, routed where `experts` says so."""
    k_proj, v_proj = (
        RoutedHeads(d_model, n_heads, head_dim, n_experts=experts.n, top=experts.top, bias=bias)
        if experts is not None and name in experts.what
        else Linear(d_model, n_heads * head_dim, bias=bias)
        for name in ("k", "v")
    )
    return k_proj, v_proj
