"""The families with Llama's layout: Llama (SmolLM and SmolLM2 too), Mistral, Qwen2, Qwen3, OLMo, OLMo 2, EuroBERT.

Layout: `model.layers.0.self_attn…`; in the MLP `gate_proj` is w1, `up_proj` w3, `down_proj` w2; rotary positions in halves,
as ours. They differ in biases, q/k-norm, windows and norms. Ours has biases everywhere or nowhere: where they have some, the
others of ours are zero, and the function is the same. OLMo's norms have no gain: ours is 1, and its shift 0. OLMo 2 norms what
attention and MLP give.
"""

import re
from typing import Any

from ...config import ModelConfig, validate
from .family import Family
from .positions import dynamic_note, rotary, windows
from .tensors import Origin

# Ours, and theirs.
# OLMo 2 alone norms after both parts, and then not before them.
_NAMES = (
    (r"^embedding\.", "model.embed_tokens."),
    (r"^final_norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"^blocks\.", "model.layers."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.mlp_norm\.", ".post_attention_layernorm."),
    (r"\.attention_post_norm\.", ".post_attention_layernorm."),
    (r"\.mlp_post_norm\.", ".post_feedforward_layernorm."),
    (r"\.attention\.", ".self_attn."),
    (r"\.mlp\.w1\.", ".mlp.gate_proj."),
    (r"\.mlp\.w3\.", ".mlp.up_proj."),
    (r"\.mlp\.w2\.", ".mlp.down_proj."),
)


_QK_NORMS = {"qwen3": "rms", "qwen3_moe": "rms", "olmo2": "rms-all-heads"}
# Their configuration has no layer types: all layers have the window, or none.
_ONE_WINDOW = ("mistral", "mixtral", "qwen3_moe")


def llama_name(ours: str) -> str:
    """Llama's name of one of our parameters."""
    for pattern, theirs in _NAMES:
        ours = re.sub(pattern, theirs, ours)
    return ours


def model(config: Any) -> ModelConfig:
    """Our configuration of a model with Llama's layout.

    Raises:
        ValueError: naming the key of the configuration that cannot be expressed.
    """
    return validate(ModelConfig, fields(config))


def fields(config: Any) -> dict[str, Any]:
    """The fields of our configuration, for families that change some.

    Raises:
        ValueError: naming the key of the configuration that cannot be expressed.
    """
    c, family = config, config.model_type
    return dict(
        arch="encoder" if family == "eurobert" else "decoder",
        vocab_size=c.vocab_size,
        max_seq_len=c.max_position_embeddings,
        d_model=c.hidden_size,
        n_layers=c.num_hidden_layers,
        n_heads=c.num_attention_heads,
        n_kv_heads=c.num_key_value_heads,
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        d_ff=c.intermediate_size,
        norm="layer" if family == "olmo" else "rms",
        norm_eps=1e-5 if family == "olmo" else c.rms_norm_eps,
        norm_position="reordered" if family == "olmo2" else "pre",
        qk_norm=_QK_NORMS.get(family, "none"),
        bias=bool(biased(c)),
        tied_embeddings=c.tie_word_embeddings,
        **_window(c),
        **rotary(c),
    )


def biased(config: Any) -> set[str]:
    """The projections of ours, by their last name, that have biases in theirs."""
    attention, mlp = {"q_proj", "k_proj", "v_proj"}, {"w1", "w2", "w3"}
    if config.model_type == "qwen2" or (config.model_type == "qwen2_moe" and config.qkv_bias):
        return attention
    has_both = {"o_proj"} | attention if getattr(config, "attention_bias", False) else set()
    return has_both | (mlp if getattr(config, "mlp_bias", False) else set())


def _window(c: Any) -> dict[str, Any]:
    if c.model_type in _ONE_WINDOW:
        return {} if c.sliding_window is None else {"window": c.sliding_window}
    return windows(c)


def origin(name: str, shape: tuple[int, ...], ours: ModelConfig, config: Any) -> Origin:
    """Where one of our parameters comes from."""
    module, _, last = name.rpartition(".")
    if config.model_type == "olmo" and module.endswith("norm"):
        return Origin(None, shape, fill=1.0 if last == "weight" else 0.0)
    if last == "bias" and module.rpartition(".")[2] not in biased(config):
        return Origin(None, shape)
    return Origin(llama_name(name), shape)


LLAMA = Family(
    model,
    origin,
    # OLMo 1 alone has clip_qkv.
    exact={"hidden_act": ("silu", "swish"), "clip_qkv": (None,)},
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    notes=dynamic_note,
)
