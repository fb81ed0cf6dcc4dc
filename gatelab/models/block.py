"""One block by kinds: norms before, after or around; attention with its gates, cross-attention where the stack has it,
and a feed-forward layer or experts."""

from torch import Tensor, nn

from ..config.architecture import Stack
from ..config.model import ModelConfig
from ..nn.attention import GatedAttention
from ..nn.cache import KVCache
from ..nn.mlp import MLP
from ..nn.moe import ExpertMLP, Routing
from ..nn.norm import Norm
from ..nn.tap import Tap
from ..nn.watch import Watch


class Pass:
    """What one forward pass carries besides the hidden state: document numbers, a cache, the context of cross-attention,
    a bias on self-attention's logits, the list that routers write to, what attention tells of itself, and the kinds of tokens.

    No dataclass, and no list within: where weights are shared out, torch takes such arguments of a block apart and makes new ones.
    """

    def __init__(
        self,
        segment_ids_BT: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        routed: list[Routing] | None = None,
        watch: Watch | None = None,
        token_types_BT: Tensor | None = None,
    ):
        self.segment_ids_BT, self.cache, self.watch, self.token_types_BT = segment_ids_BT, cache, watch, token_types_BT
        self.routed = None if routed is None else _Appends(routed)
        self.context_BSD: Tensor | None = None
        self.bias_BHTS: Tensor | None = None


class _Appends:
    """The end of a list, to write to."""

    def __init__(self, to: list[Routing]):
        self.append = to.append


class Block(nn.Module):
    """pre: x + f(norm x); post: norm(x + f(x)); sandwich: x + norm'(f(norm x)); reordered: x + norm(f(x)); f is attention, then
    cross-attention where there is one, then the MLP. `residual_clip` bounds f before it is added."""

    def __init__(self, config: ModelConfig, stack: Stack, layer: int):
        super().__init__()
        c = config
        self.is_post, self.is_causal, self.clip = c.norm_position == "post", stack.is_causal, c.residual_clip
        self.attention_norm = _norm(c, "before")
        self.attention = _attention(c, stack, layer, is_cross=False)
        self.attention_post_norm = _norm(c, "after")
        self.cross_attention: GatedAttention | None = None
        if stack.has_cross:
            self.cross_norm = _norm(c, "before")
            self.cross_attention = _attention(c, stack, layer, is_cross=True)
            self.cross_post_norm = _norm(c, "after")
        self.mlp_norm = _norm(c, "before")
        self.mlp = MLP(c.d_model, c.d_ff, c.mlp, bias=c.bias) if c.moe is None else ExpertMLP(c.d_model, c.moe)
        self.mlp_post_norm = _norm(c, "after")
        self.tap_residual = Tap()

    @property
    def has_router(self) -> bool:
        """Whether its feed-forward layer is one of experts."""
        return not isinstance(self.mlp, MLP)

    def forward(self, x_BTD: Tensor, given: Pass) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x_BTD, normed_BTD = self.attend(x_BTD, given)
        update_BTD = self.mlp(normed_BTD, given.routed) if self.has_router else self.mlp(normed_BTD)
        return self.tap_residual(self._join(x_BTD, update_BTD, self.mlp_post_norm))

    def attend(self, x_BTD: Tensor, given: Pass) -> tuple[Tensor, Tensor]:
        """All that comes before the feed-forward layer: the hidden state, and what that layer reads of it."""
        update_BTD = self.attention(
            self.attention_norm(x_BTD),
            segment_ids_BT=given.segment_ids_BT,
            cache=given.cache,
            is_causal=self.is_causal,
            bias_BHTS=given.bias_BHTS,
            watch=given.watch,
        )
        x_BTD = self._join(x_BTD, update_BTD, self.attention_post_norm)
        if self.cross_attention is not None:
            update_BTD = self.cross_attention(
                self.cross_norm(x_BTD), context_BSD=given.context_BSD, cache=given.cache, is_cross=True
            )
            x_BTD = self._join(x_BTD, update_BTD, self.cross_post_norm)
        return x_BTD, self.mlp_norm(x_BTD)

    def _join(self, x_BTD: Tensor, update_BTD: Tensor, norm: nn.Module) -> Tensor:
        if self.clip is not None:
            update_BTD = update_BTD.clamp(-self.clip, self.clip)
        return norm(x_BTD + update_BTD) if self.is_post else x_BTD + norm(update_BTD)


def _attention(c: ModelConfig, stack: Stack, layer: int, *, is_cross: bool) -> GatedAttention:
    return GatedAttention(
        d_model=c.d_model,
        n_heads=c.n_heads,
        n_kv_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        gate=c.gates(stack, layer, is_cross=is_cross),
        qk_norm=False if c.qk_norm == "none" else c.qk_norm,
        rope_theta=c.rope_theta if c.positions == "rope" and not is_cross else None,
        rope_fraction=c.rope_fraction,
        rope_scaling=c.rope_scaling,
        max_seq_len=c.max_seq_len + c.registers,
        softmax=c.softmax,
        output_map=c.output_map,
        kv_experts=c.kv_experts,
        window=None if is_cross or c.is_global(layer) else c.window,
        first_hidden_from=c.first_hidden_from[layer] if c.first_hidden_from and not is_cross else (),
        norm_eps=c.norm_eps,
        bias=c.bias,
        layer=layer,
    )


def _norm(c: ModelConfig, place: str) -> nn.Module:
    positions = {"before": ("pre", "sandwich"), "after": ("post", "sandwich", "reordered")}[place]
    return Norm(c.d_model, c.norm, c.norm_eps, rank=c.norm_rank) if c.norm_position in positions else nn.Identity()
