"""Qwen3-Next's layout, for models of full attention: the gate beside the queries, in and out; dense, or with experts in every
layer.

Layout: rows of `q_proj` are, head by head, K of the query and K of the gate σ(x W_g) on the attention output (arXiv
2505.06708, elementwise); all norms multiply by 1 + weight, q/k-norms too; a share of a head's channels turns; experts are
Qwen2-MoE's. DeltaNet layers are not ours.
"""

from typing import Any

import torch
from torch import Tensor

from ...config import GateSpec, ModelConfig, validate
from .experts import apart, moe_fields
from .experts import origin as experts_origin
from .family import Family, refusal
from .llama import llama_name
from .positions import rotary
from .tensors import Origin

GATE = GateSpec.parse("sdpa-elementwise")
_G_PROJ = ".gates.sdpa.g_proj."


def model(config: Any) -> ModelConfig:
    """Our configuration of such a model.

    Raises:
        ValueError: naming the key of the configuration that cannot be expressed.
    """
    c = config
    if set(c.layer_types) != {"full_attention"}:
        raise refusal(c, "layer_types", "has DeltaNet layers (linear_attention), which are not ours")
    moe = moe_fields(c) if c.num_experts else None
    for key, plain in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if moe and getattr(c, key) != plain:
            raise refusal(c, key, f"has layers without experts, and {plain!r} alone can be expressed")
    fields = {
        "vocab_size": c.vocab_size,
        "max_seq_len": c.max_position_embeddings,
        "d_model": c.hidden_size,
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "n_kv_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "d_ff": c.intermediate_size if moe is None else moe["d_expert"],
        "moe": moe,
        "gate": GATE.slug,
        "qk_norm": "rms",
        "norm_eps": c.rms_norm_eps,
        "tied_embeddings": c.tie_word_embeddings,
        **rotary(c, turns_partly=True),
    }
    return validate(ModelConfig, fields)


def origin(name: str, shape: tuple[int, ...], ours: ModelConfig, config: Any) -> Origin:
    """Where one of our parameters comes from."""
    if ours.moe is not None and ".mlp." in name:
        return experts_origin(name, shape, ours, config)
    H, K = ours.n_heads, ours.head_dim
    both = (2 * H * K, ours.d_model)
    if name.endswith("q_proj.weight"):
        return Origin(llama_name(name), both, move=lambda w: w.unflatten(0, (H, 2, K))[:, 0].flatten(0, 1))
    if _G_PROJ in name:
        theirs = llama_name(name.replace(_G_PROJ, ".q_proj."))
        return Origin(theirs, both, move=lambda w: w.unflatten(0, (H, 2, K))[:, 1].flatten(0, 1))
    if "norm" in name:
        return Origin(llama_name(name), shape, lambda gain: gain + 1)
    return Origin(llama_name(name), shape)


def qwen3_next_origin(name: str, shape: tuple[int, ...], head_dim: int) -> Origin:
    """Where the tensor of theirs that takes one of our parameters comes from; the gate's is made with its queries'."""
    if name.endswith("q_proj.weight"):

        def together(q: Tensor, gate: Tensor) -> Tensor:
            heads = (t.unflatten(0, (-1, head_dim)) for t in (q, gate))
            return torch.stack(list(heads), dim=1).flatten(0, 2)

        return Origin(name, shape, move=together, beside=((name.replace(".q_proj.", _G_PROJ), shape),))
    return Origin(name, shape, (lambda gain: gain - 1) if "norm" in name else None)


QWEN3_NEXT = Family(
    model,
    origin,
    exact={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "attn_output_gate": (True,),
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    view=apart,
)
