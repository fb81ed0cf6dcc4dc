"""A Gatelab decoder for transformers: a gate on the attention output, everything else as in a Llama.

    y = attention(q, k, v);   out = W_o (y ⊙ act(x W_g))        x: what the layer reads, after its norm (arXiv 2505.06708)

Shapes: B batch, T query, S key, H heads, G kv heads, K head dim, D model. This file needs torch and transformers alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_gatelab import GatelabConfig

ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "ns_sigmoid": lambda z: 0.5 + 0.5 * z.sigmoid(),
    "two_sigmoid": lambda z: 2 * z.sigmoid(),
    "silu": F.silu,
    "identity": lambda z: z,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


def norm_of(width: int, kind: str, eps: float) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(width, eps=eps)
    return nn.RMSNorm(width, eps=eps, elementwise_affine=kind == "rms")


def rotated(x_BHTK: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor) -> Tensor:
    """The first 2R channels turned, pair (i, i + R) by angle i; the rest as they came."""
    n_turning = 2 * cos_B1TR.shape[-1]
    left, right = x_BHTK[..., :n_turning].float().chunk(2, dim=-1)
    turned = torch.cat([left * cos_B1TR - right * sin_B1TR, right * cos_B1TR + left * sin_B1TR], dim=-1)
    return torch.cat([turned.to(x_BHTK.dtype), x_BHTK[..., n_turning:]], dim=-1)


def eager_attention(
    module: nn.Module,
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask_B1TS: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """What the name `eager` stands for in transformers: the whole matrix, which is returned too."""
    k_BHSK, v_BHSK = (t.repeat_interleave(module.num_key_value_groups, dim=1) for t in (k_BGSK, v_BGSK))
    logits_BHTS = q_BHTK @ k_BHSK.transpose(2, 3) * scaling
    if mask_B1TS is not None:
        logits_BHTS = logits_BHTS + mask_B1TS
    weights_BHTS = logits_BHTS.softmax(dim=-1, dtype=torch.float32).to(q_BHTK.dtype)
    return (weights_BHTS @ v_BHSK).transpose(1, 2).contiguous(), weights_BHTS


class GatelabAttention(nn.Module):
    def __init__(self, config: GatelabConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        c, self.head_dim = config, config.head_dim
        H, G, K = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.num_key_value_groups, self.scaling = H // G, K**-0.5
        self.sliding_window = c.sliding_window if c.layer_types[layer_idx] == "sliding_attention" else None
        self.q_proj = nn.Linear(c.hidden_size, H * K, bias=c.bias)
        self.k_proj = nn.Linear(c.hidden_size, G * K, bias=c.bias)
        self.v_proj = nn.Linear(c.hidden_size, G * K, bias=c.bias)
        self.o_proj = nn.Linear(H * K, c.hidden_size, bias=c.bias)
        self.is_normed_whole = c.qk_norm == "rms-all-heads"
        self.q_norm, self.k_norm = (self._norm(n) for n in (H, G))
        self.hidden_H = c.first_hidden_from[layer_idx] if c.first_hidden_from else []
        if c.gate is not None:
            self.g_proj = nn.Linear(c.hidden_size, H * (K if c.gate == "elementwise" else 1), bias=c.gate_bias)

    def forward(
        self,
        x_BTD: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        mask_B1TS: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        def heads(projection: nn.Module, norm: nn.Module) -> Tensor:
            if self.is_normed_whole:
                return norm(projection(x_BTD)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            return norm(projection(x_BTD).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)

        q_BHTK, k_BGSK = heads(self.q_proj, self.q_norm), heads(self.k_proj, self.k_norm)
        v_BGSK = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if turn is not None:
            q_BHTK, k_BGSK = rotated(q_BHTK, *turn), rotated(k_BGSK, *turn)
        if self.hidden_H:
            q_BHTK, k_BGSK, v_BGSK = self._first_hidden(q_BHTK, k_BGSK, v_BGSK, kwargs["position_ids"])
        if past_key_values is not None:
            k_BGSK, v_BGSK = past_key_values.update(k_BGSK, v_BGSK, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        y_BTHK, _ = attend(
            self, q_BHTK, k_BGSK, v_BGSK, mask_B1TS,
            dropout=0.0, scaling=self.scaling, sliding_window=self.sliding_window, **kwargs,
        )  # fmt: skip
        y_BTHK = y_BTHK.reshape(*x_BTD.shape[:2], self.config.num_attention_heads, -1)[..., : self.head_dim]
        if self.config.gate is not None:
            logits = self.g_proj(x_BTD).unflatten(-1, (self.config.num_attention_heads, -1)).float()
            y_BTHK = (y_BTHK * ACTIVATIONS[self.config.gate_activation](logits)).to(y_BTHK.dtype)
        return self.o_proj(y_BTHK.flatten(-2))

    def _first_hidden(
        self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """With eight channels more, of which one adds −1000 to the logit of the key at position 0 and the named heads: its
        weight is then 0 beside any other key. So every attention function hides it, and a cache keeps what says so."""
        q_BHTK, k_BGTK, v_BGTK = (F.pad(t, (0, 8)) for t in (q_BHTK, k_BGTK, v_BGTK))
        q_BHTK[:, self.hidden_H, :, -1] = 1.0
        k_BGTK[..., -1] = (position_ids == 0)[:, None].to(k_BGTK) * (-1000.0 / self.scaling)
        return q_BHTK, k_BGTK, v_BGTK

    def _norm(self, n_heads: int) -> nn.Module:
        c = self.config
        if c.qk_norm == "none":
            return nn.Identity()
        return (
            norm_of(n_heads * c.head_dim, "rms", c.norm_eps)
            if self.is_normed_whole
            else norm_of(c.head_dim, c.qk_norm, c.norm_eps)
        )


class GatelabMLP(nn.Module):
    """swiglu: w2(SiLU(w1 x) ⊙ w3 x); gelu, relu: w2(act(w1 x))."""

    def __init__(self, config: GatelabConfig):
        super().__init__()
        c = self.config = config
        self.w1 = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.bias)
        self.w2 = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.bias)
        if c.mlp == "swiglu":
            self.w3 = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.config.mlp == "swiglu":
            return self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD))
        return self.w2({"gelu": F.gelu, "relu": F.relu}[self.config.mlp](self.w1(x_BTD)))


class GatelabBlock(nn.Module):
    """pre: x + f(norm x); post: norm(x + f(x)); sandwich: x + norm'(f(norm x)); reordered: x + norm(f(x)); f is attention, then
    the MLP."""

    def __init__(self, config: GatelabConfig, layer_idx: int):
        super().__init__()
        self.is_post = config.norm_position == "post"

        def norm(*positions: str) -> nn.Module:
            has_one = config.norm_position in positions
            return norm_of(config.hidden_size, config.norm, config.norm_eps) if has_one else nn.Identity()

        self.attention_norm, self.attention_post_norm = norm("pre", "sandwich"), norm("post", "sandwich", "reordered")
        self.attention = GatelabAttention(config, layer_idx)
        self.mlp_norm, self.mlp_post_norm = norm("pre", "sandwich"), norm("post", "sandwich", "reordered")
        self.mlp = GatelabMLP(config)

    def forward(self, x_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        update_BTD = self.attention(self.attention_norm(x_BTD), *args, **kwargs)
        x_BTD = self._join(x_BTD, update_BTD, self.attention_post_norm)
        return self._join(x_BTD, self.mlp(self.mlp_norm(x_BTD)), self.mlp_post_norm)

    def _join(self, x_BTD: Tensor, update_BTD: Tensor, norm: nn.Module) -> Tensor:
        return norm(x_BTD + update_BTD) if self.is_post else x_BTD + norm(update_BTD)


class GatelabPreTrainedModel(PreTrainedModel):
    config_class = GatelabConfig
    base_model_prefix = "model"
    _no_split_modules = ("GatelabBlock",)
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True


class GatelabModel(GatelabPreTrainedModel):
    def __init__(self, config: GatelabConfig):
        super().__init__(config)
        c = config
        self.embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        if c.learned_positions:
            self.position_embedding = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.blocks = nn.ModuleList(GatelabBlock(c, i) for i in range(c.num_hidden_layers))
        is_post = c.norm_position == "post"
        self.final_norm = nn.Identity() if is_post else norm_of(c.hidden_size, c.norm, c.norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        c = self.config
        x_BTD = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = c.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=c)
        if position_ids is None:
            start = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)[None]
        given = {
            "config": c, "inputs_embeds": x_BTD, "attention_mask": attention_mask,
            "past_key_values": past_key_values, "position_ids": position_ids,
        }  # fmt: skip
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        masks = {kind: makers[kind](**given) for kind in set(c.layer_types)}
        if c.learned_positions:
            x_BTD = x_BTD + self.position_embedding(position_ids)
        turn = self._turn(position_ids) if c.rope_frequencies else None
        for block, kind in zip(self.blocks, c.layer_types, strict=True):
            x_BTD = block(x_BTD, turn, masks[kind], past_key_values, position_ids=position_ids, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.final_norm(x_BTD), past_key_values=past_key_values)

    def _turn(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = torch.tensor(self.config.rope_frequencies, device=position_ids.device, dtype=torch.float32)
        angles_B1TR = (position_ids[..., None].float() * frequencies)[:, None]
        return self.config.rope_amplitude * angles_B1TR.cos(), self.config.rope_amplitude * angles_B1TR.sin()


class GatelabForCausalLM(GatelabPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012  (transformers reads it of the class)

    def __init__(self, config: GatelabConfig):
        super().__init__(config)
        self.model = GatelabModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=out.past_key_values)
