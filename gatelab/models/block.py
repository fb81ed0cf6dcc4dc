"""One block by kinds: norms before, after or around; attention with its gates; a feed-forward layer."""

from torch import Tensor, nn

from ..config.model import ModelConfig
from ..nn.attention import GatedAttention
from ..nn.cache import KVCache
from ..nn.mlp import MLP
from ..nn.norm import Norm
from ..nn.tap import Tap


class Block(nn.Module):
    """pre: x + f(norm x); post: norm(x + f(x)); sandwich: x + norm'(f(norm x)); f is attention, then the MLP."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        c = config
        before, after = c.norm_position in ("pre", "sandwich"), c.norm_position in ("post", "sandwich")
        self.is_post = c.norm_position == "post"
        self.attention_norm = Norm(c.d_model, c.norm, c.norm_eps) if before else nn.Identity()
        self.attention = GatedAttention(
            d_model=c.d_model,
            n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            gate=c.gate,
            qk_norm=False if c.qk_norm == "none" else c.qk_norm,
            rope_theta=c.rope_theta if c.positions == "rope" else None,
            max_seq_len=c.max_seq_len,
            softmax=c.softmax,
            norm_eps=c.norm_eps,
            bias=c.bias,
            layer=layer,
        )
        self.attention_post_norm = Norm(c.d_model, c.norm, c.norm_eps) if after else nn.Identity()
        self.mlp_norm = Norm(c.d_model, c.norm, c.norm_eps) if before else nn.Identity()
        self.mlp = MLP(c.d_model, c.d_ff, c.mlp, bias=c.bias)
        self.mlp_post_norm = Norm(c.d_model, c.norm, c.norm_eps) if after else nn.Identity()
        self.tap_residual = Tap()

    def forward(self, x_BTD: Tensor, *, segment_ids_BT: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        update_BTD = self.attention(self.attention_norm(x_BTD), segment_ids_BT=segment_ids_BT, cache=cache)
        x_BTD = self._join(x_BTD, update_BTD, self.attention_post_norm)
        x_BTD = self._join(x_BTD, self.mlp(self.mlp_norm(x_BTD)), self.mlp_post_norm)
        return self.tap_residual(x_BTD)

    def _join(self, x_BTD: Tensor, update_BTD: Tensor, norm: nn.Module) -> Tensor:
        return norm(x_BTD + update_BTD) if self.is_post else x_BTD + norm(update_BTD)
