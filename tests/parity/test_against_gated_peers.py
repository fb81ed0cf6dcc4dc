"""Attention of released models with a gate on its output: AFMoE, Laguna, Step-3.7, LFM3, Beam, HRM-Text, Muse, NeoMME.

Layout: the gate has a projection of its own in all of them, [H, D] a head or [HK, D] a channel, heads in plain order.
What differs: sigmoid or softplus, the norms of q and k (w, 1 + w, none, without a gain and times a constant), windows,
and in two of them a map of the output before the gate. The layers are built from a namespace of the fields that they
read, and all turn by Llama's rotary tables.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peers import Weights, assert_another, assert_same, call, drawn, hidden, modeling, renamed
from torch import Tensor, nn

from gatelab.nn.attention import GatedAttention

B, T, D, H, G, K = 2, 11, 24, 4, 2, 8
THETA, EPS, SCALE, WINDOW = 100.0, 1e-5, 1.7, 4


@dataclass(frozen=True)
class Peer:
    """A layer: where it is, what its configuration says besides the widths, ours, and how its weights become ours."""

    model: str
    layer: str
    gate: str
    fields: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[Weights], Weights] = lambda weights: weights
    gate_name: str = "gate_proj"
    has_rope: bool = True


def one_plus(weights: Weights) -> Weights:
    return {n: w + 1 if "norm" in n else w for n, w in weights.items()}


def scaled_query(weights: Weights) -> Weights:
    """A norm without a gain, times a constant, is a norm whose gain is that constant."""
    gain_K = torch.ones(K)
    return weights | {"q_norm.weight": SCALE * gain_K, "k_norm.weight": gain_K}


def bias_of_heads(weights: Weights) -> Weights:
    """Beam has one bias a head for the gates of all its channels."""
    rest = {n: w for n, w in weights.items() if n != "gate_bias"}
    return rest | {"gates.sdpa.g_proj.bias": weights["gate_bias"].repeat_interleave(K)}


def projected(weights: Weights) -> Weights:
    """NeoMME's output projection is a module that holds the gate; `alpha` is not a weight of ours."""
    return renamed({n: w for n, w in weights.items() if "alpha" not in n}, [(r"^output_projection\.", "")])


local = {"layer_types": ["sliding_attention"], "sliding_window": WINDOW}
PEERS = {
    "afmoe": Peer("afmoe", "AfmoeAttention", "afmoe", local, {"window": WINDOW}),
    "afmoe-global": Peer("afmoe", "AfmoeAttention", "afmoe", has_rope=False),
    "laguna": Peer("laguna", "LagunaAttention", "laguna", {"gating": "per-head"}, gate_name="g_proj"),
    "laguna-true": Peer("laguna", "LagunaAttention", "laguna", {"gating": True}, gate_name="g_proj"),
    "laguna-elementwise": Peer(
        "laguna",
        "LagunaAttention",
        "laguna/elementwise",
        {"gating": "per-element", **local},
        {"window": WINDOW},
        gate_name="g_proj",
    ),
    "step-3.7": Peer(
        "step3p7",
        "Step3p7Attention",
        "step-3.5",
        {"gating": "per-head", "query_pre_attn_scalar": K},
        convert=one_plus,
        gate_name="g_proj",
    ),
    "lfm3": Peer(
        "lfm3",
        "Lfm3Attention",
        "sdpa-headwise",
        {"use_attention_gate": True, **local},
        {"window": WINDOW},
        gate_name="g_proj",
    ),
    "beam": Peer("beam", "BeamAttention", "sdpa-elementwise-bias", convert=bias_of_heads),
    "hrm-text": Peer(
        "hrm_text",
        "HrmTextAttention",
        "sdpa-elementwise-bias",
        {"attention_bias": True},
        {"n_kv_heads": H, "qk_norm": False, "bias": True},
    ),
    "muse-glimmer": Peer(
        "muse_glimmer", "MuseGlimmerTextAttention", "sdpa-elementwise", {"qk_scale_factor": SCALE}, convert=scaled_query
    ),
    "muse-spark": Peer(
        "muse_spark",
        "MuseSparkTextAttention",
        "sdpa-elementwise",
        {"qk_scale_factor": SCALE},
        {"output_map": "rms"},
        convert=scaled_query,
    ),
    "neomme": Peer(
        "neomme",
        "NeoMMEAttention",
        "sdpa-elementwise",
        # Ours adds norm_eps to v·v as well, where NeoMME bounds the norm of v by 1e-12.
        {"rms_norm_eps": 1e-12, "norm_eps": 1e-12},
        {"output_map": "xsa", "qk_norm": "rms-no-gain", "norm_eps": 1e-12},
        convert=projected,
    ),
}


def theirs(peer: Peer) -> nn.Module:
    config = SimpleNamespace(
        **{
            "hidden_size": D,
            "num_attention_heads": H,
            "num_key_value_heads": G,
            "head_dim": K,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rms_norm_eps": EPS,
            "norm_eps": EPS,
            "layer_types": ["full_attention"],
            "sliding_window": None,
            "_attn_implementation": "sdpa",
            **peer.fields,
        }
    )
    layer = getattr(modeling(peer.model), peer.layer)
    made = drawn(layer(config, 0, H) if peer.model == "laguna" else layer(config, 0))
    if peer.model == "neomme":
        nn.init.constant_(made.exclusive_self_attention.alpha, 30.0)  # whose tanh is 1: all of the value is taken out
    return made


def ours(peer: Peer) -> GatedAttention:
    options = {"n_kv_heads": G, "qk_norm": True, "norm_eps": EPS, **peer.ours}
    rope_theta = THETA if peer.has_rope else None
    return GatedAttention(d_model=D, n_heads=H, head_dim=K, gate=peer.gate, rope_theta=rope_theta, **options)


def tables(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Llama's cosines and sines, [1, T, K] each."""
    code = modeling("llama")
    config = code.LlamaConfig(head_dim=K, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    return code.LlamaRotaryEmbedding(config)(x_BTD, torch.arange(T)[None])


def window() -> Tensor:
    """What transformers lets a query of a sliding window see, [1, 1, T, T]."""
    from transformers.masking_utils import sliding_window_causal_mask_function

    position = torch.arange(T)
    return sliding_window_causal_mask_function(WINDOW)(0, 0, position[:, None], position)[None, None]


def output(peer: Peer, layer: nn.Module, x_BTD: Tensor) -> Tensor:
    mask_11TT = window() if "window" in peer.ours else None
    # AFMoE's global layers are given the tables too, and have no positions all the same.
    return layer(x_BTD, position_embeddings=tables(x_BTD), attention_mask=mask_11TT)[0]


def converted(peer: Peer, weights: Weights) -> Weights:
    return renamed(peer.convert(weights), [(peer.gate_name, "gates.sdpa.g_proj")])


@pytest.mark.parametrize("name", PEERS)
def test_a_released_gated_layer_is_ours(name: str) -> None:
    peer, x_BTD = PEERS[name], hidden(B, T, D)
    layer = theirs(peer)
    weights = dict(layer.named_parameters())
    expected = output(peer, layer, x_BTD)
    found = call(ours(peer), converted(peer, weights), x_BTD, is_causal=layer.is_causal)
    learned = {n: w for n, w in weights.items() if "alpha" not in n}
    assert_same(expected, found, {"x": x_BTD, **learned})


@pytest.mark.parametrize("name", [n for n, peer in PEERS.items() if peer.gate_name == "g_proj"])
def test_gates_of_other_heads_are_another_layer(name: str) -> None:
    peer, x_BTD = PEERS[name], hidden(B, T, D)
    layer = theirs(peer)
    made = converted(peer, dict(layer.named_parameters()))
    made["gates.sdpa.g_proj.weight"] = made["gates.sdpa.g_proj.weight"].flip(0)
    expected, found = output(peer, layer, x_BTD), call(ours(peer), made, x_BTD)
    assert_another(expected, found)
