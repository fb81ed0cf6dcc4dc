"""Whole decoders of transformers, from token ids to logits: Llama, Qwen3, Qwen3-MoE, Qwen2-MoE, Mixtral, Granite,
Qwen3-Next, AFMoE, OLMo 2, OPT.

Layout: `model.layers.0.self_attn…`; in the MLP `gate_proj` is w1, `up_proj` w3, `down_proj` w2; experts hold w1 and w3
one above the other in `gate_up_proj`. Qwen3-Next is all full attention and dense here (no DeltaNet, no gated shared
expert), AFMoE all sliding windows and dense (its router is a sigmoid's), with norms before and after. OPT has learned
positions from row 2 of its table, LayerNorms and biases everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peers import LLAMA, Weights, assert_another, assert_close, assert_same, call, drawn, modeling, renamed
from torch import Tensor, nn

from gatelab.config import ModelConfig
from gatelab.config.moe import MoE
from gatelab.models import model_class

B, T, V, D, L, H, G, K, F = 2, 13, 19, 24, 2, 4, 2, 8, 20
THETA, EPS, WINDOW = 100.0, 1e-5, 4
ROPE = {"rope_type": "default", "rope_theta": THETA}

EXPERTS = [*LLAMA, (r"mlp\.gate\.", "mlp.router."), (r"mlp\.experts\.down_proj", "mlp.w2.weight")]
SANDWICH = [
    ("post_attention_layernorm", "attention_post_norm"),
    ("pre_mlp_layernorm", "mlp_norm"),
    ("post_mlp_layernorm", "mlp_post_norm"),
    (r"self_attn\.gate_proj", "attention.gates.sdpa.g_proj"),
]
REORDERED = [("post_attention_layernorm", "attention_post_norm"), ("post_feedforward_layernorm", "mlp_post_norm")]
WEIGHED = [
    (r"mlp\.shared_expert_gate", "mlp.shared_router"),
    (r"mlp\.shared_expert\.gate_proj", "mlp.shared.w1"),
    (r"mlp\.shared_expert\.up_proj", "mlp.shared.w3"),
    (r"mlp\.shared_expert\.down_proj", "mlp.shared.w2"),
]
OPT = [
    (r"^model\.decoder\.", ""),
    (r"^final_layer_norm", "final_norm"),
    (r"embed_positions", "position_embedding"),
    ("self_attn_layer_norm", "attention_norm"),
    ("final_layer_norm", "mlp_norm"),
    ("out_proj", "o_proj"),
    ("fc1", "mlp.w1"),
    ("fc2", "mlp.w2"),
]


def as_experts(weights: Weights) -> Weights:
    """Experts' w1 and w3 apart."""
    made: Weights = {}
    for name, weight in renamed(weights, EXPERTS).items():
        stem, is_both, _ = name.partition("experts.gate_up_proj")
        if is_both:
            made[f"{stem}w1.weight"], made[f"{stem}w3.weight"] = weight.chunk(2, dim=1)
        else:
            made[name] = weight
    return made


def as_granite(weights: Weights) -> Weights:
    """The shared experts' w1 and w3 apart as well."""
    names = [("block_sparse_moe", "mlp"), ("shared_mlp.output_linear", "mlp.shared.w2")]
    made = as_experts(renamed(weights, names))
    for name in [n for n in made if n.endswith("shared_mlp.input_linear.weight")]:
        stem = name.replace("shared_mlp.input_linear.weight", "mlp.shared")
        made[f"{stem}.w1.weight"], made[f"{stem}.w3.weight"] = made.pop(name).chunk(2)
    return made


def as_qwen3_next(weights: Weights) -> Weights:
    """Queries and gates apart, head by head, and all norms from 1."""
    made: Weights = {}
    for name, weight in renamed(weights, LLAMA).items():
        if name.endswith("q_proj.weight"):
            query, gate = weight.unflatten(0, (H, 2, K)).unbind(1)
            made[name] = query.flatten(0, 1)
            made[name.replace("q_proj", "gates.sdpa.g_proj")] = gate.flatten(0, 1)
        else:
            made[name] = weight + 1 if "norm" in name else weight
    return made


def as_opt(weights: Weights) -> Weights:
    made = renamed(weights, [*OPT, *LLAMA])
    return made | {"position_embedding.weight": made["position_embedding.weight"][2:]}


@dataclass(frozen=True)
class Peer:
    """A model: its classes, what its configuration and ours say besides the widths, how its weights become ours."""

    model: str
    word: str
    fields: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[Weights], Weights] = lambda weights: renamed(weights, LLAMA)


def experts(*, top_k: int, normalise_top_k: bool = True) -> MoE:
    return MoE(n_experts=5, top_k=top_k, d_expert=F, normalise_top_k=normalise_top_k)


QWEN_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": F}
PEERS = {
    "llama": Peer("llama", "Llama", {"head_dim": K}),
    "llama-tied": Peer("llama", "Llama", {"tie_word_embeddings": True}, {"tied_embeddings": True, "head_dim": D // H}),
    "llama-bias": Peer("llama", "Llama", {"head_dim": K, "attention_bias": True, "mlp_bias": True}, {"bias": True}),
    "qwen3": Peer("qwen3", "Qwen3", {"head_dim": K}, {"qk_norm": "rms"}),
    "qwen3-windows": Peer(
        "qwen3",
        "Qwen3",
        {
            "head_dim": K,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"qk_norm": "rms", "window": WINDOW, "global_every": 2},
    ),
    "qwen3-moe": Peer(
        "qwen3_moe",
        "Qwen3Moe",
        {**QWEN_MOE, "head_dim": K, "norm_topk_prob": True},
        {"qk_norm": "rms", "moe": experts(top_k=2)},
        as_experts,
    ),
    "qwen3-moe-tied-unnormalised": Peer(
        "qwen3_moe",
        "Qwen3Moe",
        {**QWEN_MOE, "head_dim": K, "norm_topk_prob": False, "tie_word_embeddings": True},
        {"qk_norm": "rms", "moe": experts(top_k=2, normalise_top_k=False), "tied_embeddings": True},
        as_experts,
    ),
    "qwen2-moe": Peer(
        "qwen2_moe",
        "Qwen2Moe",
        {**QWEN_MOE, "head_dim": K, "shared_expert_intermediate_size": 2 * F, "qkv_bias": False},
        {"moe": MoE(n_experts=5, top_k=2, d_expert=F, n_shared=2, shared_weight="sigmoid", normalise_top_k=False)},
        lambda weights: as_experts(renamed(weights, WEIGHED)),
    ),
    "olmo2": Peer(
        "olmo2",
        "Olmo2",
        {"head_dim": K, "eos_token_id": None},
        {"qk_norm": "rms-all-heads", "norm_position": "reordered"},
        lambda weights: renamed(weights, [*REORDERED, *LLAMA]),
    ),
    "mixtral": Peer(
        "mixtral",
        "Mixtral",
        {"head_dim": K, "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": WINDOW},
        {"moe": experts(top_k=3), "window": WINDOW},
        as_experts,
    ),
    "granite-moe-shared": Peer(
        "granitemoeshared",
        "GraniteMoeShared",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 2 * F,
            "attention_multiplier": (D // H) ** -0.5,
        },
        {"head_dim": D // H, "moe": MoE(n_experts=5, top_k=2, d_expert=F, n_shared=2)},
        as_granite,
    ),
    "qwen3-next": Peer(
        "qwen3_next",
        "Qwen3Next",
        {
            "head_dim": K,
            "layer_types": ["full_attention"] * L,
            "num_experts": 0,
            "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5},
        },
        {"qk_norm": "rms", "gate": "qwen3-next", "rope_fraction": 0.5},
        as_qwen3_next,
    ),
    "afmoe": Peer(
        "afmoe",
        "Afmoe",
        {
            "head_dim": K,
            "layer_types": ["sliding_attention"] * L,
            "sliding_window": WINDOW,
            "num_dense_layers": L,
            "mup_enabled": False,
        },
        {"qk_norm": "rms", "gate": "afmoe", "window": WINDOW, "norm_position": "sandwich"},
        lambda weights: renamed(weights, [*SANDWICH, *LLAMA]),
    ),
    "opt": Peer(
        "opt",
        "OPT",
        {"ffn_dim": F, "word_embed_proj_dim": D, "tie_word_embeddings": True},
        {
            "n_kv_heads": H,
            "head_dim": D // H,
            "positions": "learned",
            "norm": "layer",
            "mlp": "relu",
            "bias": True,
            "tied_embeddings": True,
        },
        as_opt,
    ),
}


def theirs(peer: Peer) -> nn.Module:
    code = modeling(peer.model)
    fields = {
        "vocab_size": V,
        "hidden_size": D,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "intermediate_size": F,
        "max_position_embeddings": 32,
        "rms_norm_eps": EPS,
        "rope_parameters": dict(ROPE),
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "attn_implementation": "sdpa",
        "experts_implementation": "eager",
    }
    if peer.model == "opt":
        fields = {
            n: v for n, v in fields.items() if n not in ("num_key_value_heads", "rms_norm_eps", "rope_parameters")
        }
    config = getattr(code, f"{peer.word}Config")(**{**fields, **peer.fields})
    return drawn(getattr(code, f"{peer.word}ForCausalLM")(config))


def ours(peer: Peer) -> nn.Module:
    widths = {
        "vocab_size": V,
        "max_seq_len": 32,
        "d_model": D,
        "n_layers": L,
        "n_heads": H,
        "n_kv_heads": G,
        "head_dim": K,
    }
    rest = {"norm_eps": EPS, "rope_theta": THETA} | ({} if "moe" in peer.ours else {"d_ff": F})
    config = ModelConfig(**{**widths, **rest, **peer.ours})
    return model_class(config)(config.resolved(V, 32))


def tokens() -> Tensor:
    return torch.randint(V, (B, T))


@pytest.mark.parametrize("name", PEERS)
def test_a_released_decoder_is_ours(name: str) -> None:
    peer, tokens_BT = PEERS[name], tokens()
    model = theirs(peer)
    weights = dict(model.named_parameters())
    expected_BTV = model(tokens_BT).logits
    assert_same(expected_BTV, call(ours(peer), peer.convert(weights), tokens_BT), weights)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
@pytest.mark.parametrize("pair", [("w1", "w3"), ("blocks.0", "blocks.1"), ("attention_norm", "mlp_norm")])
def test_weights_in_one_anothers_place_are_another_decoder(name: str, pair: tuple[str, str]) -> None:
    peer, tokens_BT, (one, other) = PEERS[name], tokens(), pair
    model = theirs(peer)
    made = peer.convert(dict(model.named_parameters()))
    swapped = {n: made[n.replace(one, "?").replace(other, one).replace("?", other)] for n in made}
    expected_BTV, found_BTV = model(tokens_BT).logits, call(ours(peer), swapped, tokens_BT)
    assert_another(expected_BTV, found_BTV)


@pytest.mark.parametrize("name", ["qwen3-windows", "qwen3-next", "olmo2", "opt"])
def test_token_by_token_our_decoder_gives_the_logits_of_theirs(name: str) -> None:
    peer, tokens_BT = PEERS[name], tokens()
    model, mine = theirs(peer), ours(peer)
    mine.load_state_dict(peer.convert(dict(model.named_parameters())), strict=not peer.ours.get("tied_embeddings"))
    with torch.no_grad():
        expected_BTV, cache = model(tokens_BT).logits, mine.new_cache(B)
        found_BTV = torch.cat([mine(tokens_BT[:, t : t + 1], cache=cache) for t in range(T)], dim=1)
    assert_close(expected_BTV, found_BTV)
