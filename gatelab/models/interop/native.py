"""A decoder of ours as an architecture that transformers has, where one computes exactly the same: Llama, Mistral, Qwen2,
Qwen3, OLMo 2, with the elementwise gate Qwen3-Next, with experts Mixtral and Qwen's, with sink logits too gpt-oss. What they
are called there, and their configurations.

Notable: a bias that is zero everywhere is none, so that an imported Qwen2 leaves as one; every key that decides what is
computed is written, since a key left out takes that family's default.
"""

from typing import Any

import torch

from ...config import ModelConfig, Softmax
from .experts import experts_plan
from .folder import Stored
from .gpt_oss import gpt_oss_plan
from .llama import llama_name
from .positions import layer_types, rope_parameters
from .qwen3_next import GATE, qwen3_next_origin
from .tensors import Origin, Plan

CLASSES = {
    "gpt_oss": "GptOssForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
}
# What they all have in common, as fields of ours.
_COMMON: dict[str, Any] = {
    "arch": "decoder", "output_map": "none", "kv_experts": None, "softmax": Softmax(), "registers": 0,
    "first_hidden_from": (), "gate_layers": "all", "residual_clip": None, "norm": "rms", "embedding_norm": "none",
    "positions": "rope", "mlp": "swiglu",
}  # fmt: skip
_QKV = {"q_proj", "k_proj", "v_proj"}


def native_family(found: Stored) -> str | None:
    """The family of transformers that computes exactly what this model does; None where none does."""
    c = found.config
    others = {name for name, value in _COMMON.items() if getattr(c, name) != value}
    if c.moe is not None and (c.moe.bias or c.moe.router_bias or c.moe.activation.kind != "swiglu"):
        return "gpt_oss" if others == {"softmax"} and _is_gpt_oss(c) else None
    if others:
        return None
    biases = used_biases(found)
    if c.norm_position != "pre" or c.qk_norm == "rms-all-heads":
        return "olmo2" if _is_olmo2(c, biases) else None
    if c.gate == (GATE,):
        has_theirs = c.window is None and not biases and (c.moe is None or c.moe.shared_weight == "sigmoid")
        return "qwen3_next" if c.qk_norm == "rms" and has_theirs else None
    if c.gate or c.rope_fraction != 1:
        return None
    if c.moe is not None:
        return _of_experts(c, biases)
    if c.qk_norm != "none":
        return "qwen3" if c.qk_norm == "rms" and biases <= {*_QKV, "o_proj"} else None
    if biases <= _QKV and (biases or c.global_every):
        return "qwen2"
    if c.window is not None:
        return "mistral" if not (biases or c.global_every) else None
    return "llama" if c.d_model % c.n_heads == 0 else "mistral" if not biases else None


def _is_olmo2(c: ModelConfig, biases: set[str]) -> bool:
    kinds = (c.norm_position, c.qk_norm, c.gate, c.window, c.rope_fraction, c.moe)
    return kinds == ("reordered", "rms-all-heads", (), None, 1, None) and biases <= {*_QKV, "o_proj"}


def _is_gpt_oss(c: ModelConfig) -> bool:
    kinds = (c.softmax.kind, c.moe.activation.kind, c.moe.n_shared, c.moe.normalise_top_k)
    block = (c.norm_position, c.qk_norm, c.gate, c.rope_fraction)
    return kinds == ("sink-logit", "clamped_swiglu", 0, True) and block == ("pre", "none", (), 1)


def _of_experts(c: ModelConfig, biases: set[str]) -> str | None:
    """The family with these experts; one without layer types has one window in all layers, or none."""
    has_one_window = not c.global_every
    if c.qk_norm == "rms" and not c.moe.n_shared:
        return "qwen3_moe" if has_one_window and biases <= {*_QKV, "o_proj"} else None
    if c.qk_norm != "none":
        return None
    if c.moe.shared_weight == "sigmoid":
        return "qwen2_moe" if biases <= _QKV else None
    is_mixtral = not c.moe.n_shared and c.moe.normalise_top_k and not biases and has_one_window
    return "mixtral" if is_mixtral else None


def used_biases(found: Stored) -> set[str]:
    """The projections, by their last name, of which some bias is not zero."""
    names = [name for name in found.tensors.shapes if name.endswith("_proj.bias") or ".mlp." in name]
    return {n.split(".")[-2] for n in names if n.endswith(".bias") and bool(torch.any(found.tensors.read(n) != 0))}


def native_config(family: str, found: Stored) -> dict[str, Any]:
    """The config.json of a model in a family."""
    c, biases = found.config, used_biases(found)
    local = {"use_sliding_window": c.window is not None, "sliding_window": c.window, "layer_types": layer_types(c)}
    attention_bias = bool(biases & {*_QKV, "o_proj"})
    own = {
        # Its code makes a mask of a window even where no layer takes it.
        "gpt_oss": {
            "sliding_window": c.window or c.max_seq_len,
            "layer_types": layer_types(c),
            "attention_bias": attention_bias,
        },
        "llama": {"attention_bias": attention_bias, "mlp_bias": bool(biases & {"w1", "w2", "w3"})},
        "mistral": {"sliding_window": c.window},
        "mixtral": {"sliding_window": c.window},
        "olmo2": {"attention_bias": attention_bias},
        "qwen2": local,
        "qwen2_moe": {**local, "qkv_bias": attention_bias},
        "qwen3": {**local, "attention_bias": attention_bias},
        "qwen3_moe": {
            "use_sliding_window": c.window is not None,
            "sliding_window": c.window,
            "attention_bias": attention_bias,
        },
        "qwen3_next": {"layer_types": layer_types(c), "attention_bias": False, "num_experts": 0},
    }
    # A quarter, where Qwen3-Next is not told.
    rope = rope_parameters(c) | ({"partial_rotary_factor": c.rope_fraction} if family == "qwen3_next" else {})
    return {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": rope,
        # As releases before 5, and servers that read config.json themselves, know it.
        "rope_theta": rope["rope_theta"],
        **({"rope_scaling": rope} if rope["rope_type"] != "default" else {}),
        "tie_word_embeddings": c.tied_embeddings,
        "initializer_range": c.init_std,
        "use_cache": True,
        **own[family],
        **_experts(family, c),
    }


def _experts(family: str, c: ModelConfig) -> dict[str, Any]:
    if c.moe is None:
        return {}
    if family in ("mixtral", "gpt_oss"):
        kind = c.moe.activation
        clamped = {"swiglu_limit": kind.limit, "swiglu_alpha": kind.alpha} if family == "gpt_oss" else {}
        return {"num_local_experts": c.moe.n_experts, "num_experts_per_tok": c.moe.top_k, **clamped}
    shared = {"shared_expert_intermediate_size": c.moe.n_shared * c.moe.d_expert} if c.moe.n_shared else {}
    return {
        "num_experts": c.moe.n_experts,
        "num_experts_per_tok": c.moe.top_k,
        "moe_intermediate_size": c.moe.d_expert,
        "norm_topk_prob": c.moe.normalise_top_k,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **shared,
    }


def native_plan(family: str, found: Stored) -> Plan:
    """Where each of their tensors comes from."""
    biases = used_biases(found)
    plan = _own_plan(family, found)
    if family == "qwen3_next":
        for name, shape in found.tensors.shapes.items():
            if not name.endswith((".bias", ".g_proj.weight")) and (found.config.moe is None or ".mlp." not in name):
                plan[llama_name(name)] = qwen3_next_origin(name, shape, found.config.head_dim)
        return plan
    if family == "qwen2" or (family == "qwen2_moe" and biases):
        kept = _QKV
    elif family == "llama" and biases & {"w1", "w2", "w3"}:
        kept = {"w1", "w2", "w3"} | ({*_QKV, "o_proj"} if biases & {*_QKV, "o_proj"} else set())
    else:
        kept = {*_QKV, "o_proj"} if biases & {*_QKV, "o_proj"} else set()
    for name, shape in found.tensors.shapes.items():
        if (found.config.moe is not None and ".mlp." in name) or ".attention.sink." in name:
            continue
        module, _, last = name.rpartition(".")
        if last != "bias" or module.rpartition(".")[2] in kept:
            plan[llama_name(name)] = Origin(name, shape)
        if last == "weight" and module.rpartition(".")[2] in kept and f"{module}.bias" not in found.tensors.shapes:
            plan[llama_name(f"{module}.bias")] = Origin(None, shape[:1])
    return plan


def _own_plan(family: str, found: Stored) -> Plan:
    """What does not have Llama's names."""
    if family == "gpt_oss":
        return gpt_oss_plan(found.tensors.shapes, found.config)
    return {} if found.config.moe is None else experts_plan(family, found.tensors.shapes)
