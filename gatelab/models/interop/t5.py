"""T5 as an encoder-decoder of ours: relative biases, cross-attention, RMSNorm before each part.

Layout: `encoder.block.0.layer.0.SelfAttention.q`; the decoder's layer 1 is cross-attention and its last one the MLP, `wi`
w1 and `wo` w2 (gated: `wi_0` w1, `wi_1` w3). The first block of a stack holds the bias table of all. T5 does not divide
logits by √K (arXiv 1910.10683), so its q is multiplied by √K here; where embeddings are tied it divides the decoder's output
by √D, which becomes a part of our final norm.
"""

import re
from typing import Any

from ...config import ModelConfig, validate
from .family import Family
from .tensors import Origin

_MLPS = {"relu": "relu", "gelu": "gelu", "gated-silu": "swiglu"}
_NAMES = (
    (r"^embedding\.", "shared."),
    (r"^head\.", "lm_head."),
    (r"^encoder_relative\.table\.", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias."),
    (r"^relative\.table\.", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias."),
    (r"^encoder_final_norm\.", "encoder.final_layer_norm."),
    (r"^final_norm\.", "decoder.final_layer_norm."),
    (r"^encoder_blocks\.", "encoder.block."),
    (r"^blocks\.", "decoder.block."),
    (r"\.cross_attention\.([qkvo])_proj\.", r".layer.1.EncDecAttention.\1."),
    (r"\.attention\.([qkvo])_proj\.", r".layer.0.SelfAttention.\1."),
    (r"\.attention_norm\.", ".layer.0.layer_norm."),
    (r"\.cross_norm\.", ".layer.1.layer_norm."),
    (r"^(encoder\.block\.\d+)\.mlp", r"\1.layer.1.mlp"),
    (r"^(decoder\.block\.\d+)\.mlp", r"\1.layer.2.mlp"),
    (r"\.mlp_norm\.", ".layer_norm."),
    (r"\.mlp\.w2\.", ".DenseReluDense.wo."),
    (r"\.mlp\.w3\.", ".DenseReluDense.wi_1."),
)


def model(config: Any) -> ModelConfig:
    """Our configuration of a T5."""
    c = config
    fields = {
        "arch": "encoder-decoder",
        "vocab_size": c.vocab_size,
        "max_seq_len": getattr(c, "n_positions", 512),
        "d_model": c.d_model,
        "n_layers": c.num_decoder_layers,
        "n_encoder_layers": c.num_layers,
        "n_heads": c.num_heads,
        "n_kv_heads": c.num_heads,
        "head_dim": c.d_kv,
        "d_ff": c.d_ff,
        "norm_eps": c.layer_norm_epsilon,
        "positions": "relative",
        "mlp": _MLPS[c.feed_forward_proj],
        "tied_embeddings": c.scale_decoder_outputs,
    }
    return validate(ModelConfig, fields)


def origin(name: str, shape: tuple[int, ...], ours: ModelConfig, config: Any) -> Origin:
    """Where one of our parameters comes from."""
    theirs = name
    for pattern, replacement in _NAMES:
        theirs = re.sub(pattern, replacement, theirs)
    theirs = theirs.replace(".mlp.w1.", ".DenseReluDense.wi_0." if ours.mlp == "swiglu" else ".DenseReluDense.wi.")
    if name.endswith("q_proj.weight"):
        return Origin(theirs, shape, lambda q: q * config.d_kv**0.5)
    if name == "final_norm.weight" and config.scale_decoder_outputs:
        return Origin(theirs, shape, lambda gain: gain * config.d_model**-0.5)
    return Origin(theirs, shape)


T5 = Family(
    model,
    origin,
    exact={
        "feed_forward_proj": tuple(_MLPS),
        "relative_attention_num_buckets": (32,),
        "relative_attention_max_distance": (128,),
    },
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
)
