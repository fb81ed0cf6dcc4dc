"""Qwen3-Next's and Qwen3.5's full attention: queries and gate lie in one projection, head by head.

Layout: `q_proj` [2HK, D] holds, for each query head, K rows of the query and K rows of its gate. Norms of q and k
multiply by 1 + w, and a quarter of a head's channels turn.
"""

import pytest
from peers import Weights, assert_another, assert_same, attention_of, call, drawn, hidden, modeling
from torch import Tensor, nn

from gatelab.nn.attention import GatedAttention

B, T, D, H, G, K = 2, 11, 24, 4, 2, 16
MODELS = {"qwen3_next": "Qwen3Next", "qwen3_5": "Qwen3_5"}
both = pytest.mark.parametrize("model", MODELS)


def peer(model: str, *, bias: bool = False) -> tuple[nn.Module, nn.Module]:
    """The attention layer and the rotary tables."""
    code, word = modeling(model), MODELS[model]
    config = getattr(code, f"{word}TextConfig" if model == "qwen3_5" else f"{word}Config")(
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=K,
        attention_bias=bias,
        layer_types=["full_attention"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
    )
    config._attn_implementation = "sdpa"
    rotary = getattr(code, f"{word}TextRotaryEmbedding" if model == "qwen3_5" else f"{word}RotaryEmbedding")
    return drawn(getattr(code, f"{word}Attention")(config, 0)), rotary(config)


def ours(*, bias: bool = False) -> GatedAttention:
    return GatedAttention(
        d_model=D,
        n_heads=H,
        n_kv_heads=G,
        head_dim=K,
        gate="sdpa-elementwise-bias" if bias else "qwen3-next",
        qk_norm=True,
        rope_theta=100.0,
        rope_fraction=0.25,
        norm_eps=1e-5,
        bias=bias,
    )


def interleaved(both: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and gate of a `q_proj`, weight or bias."""
    query, gate = both.unflatten(0, (H, 2, K)).unbind(1)
    return query.flatten(0, 1), gate.flatten(0, 1)


def flat(both: Tensor) -> tuple[Tensor, Tensor]:
    """The wrong reading: all queries, then all gates."""
    query, gate = both.chunk(2)
    return query, gate


def converted(weights: Weights, split=interleaved) -> Weights:
    made = {n: w + 1 if n in ("q_norm.weight", "k_norm.weight") else w for n, w in weights.items()}
    for kind in [n.removeprefix("q_proj.") for n in weights if n.startswith("q_proj.")]:
        made[f"q_proj.{kind}"], made[f"gates.sdpa.g_proj.{kind}"] = split(weights[f"q_proj.{kind}"])
    return made


@both
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_the_gated_layer_of_qwen_is_ours(model: str, bias: bool) -> None:
    (theirs, rotary), x_BTD = peer(model, bias=bias), hidden(B, T, D)
    weights = dict(theirs.named_parameters())
    expected = attention_of(theirs, x_BTD, rotary, None)
    found = call(ours(bias=bias), converted(weights), x_BTD)
    assert_same(expected, found, {"x": x_BTD, **weights})


@both
def test_a_flat_reading_of_the_projection_is_another_layer(model: str) -> None:
    (theirs, rotary), x_BTD = peer(model), hidden(B, T, D)
    expected = attention_of(theirs, x_BTD, rotary, None)
    found = call(ours(), converted(dict(theirs.named_parameters()), flat), x_BTD)
    assert_another(expected, found)


def test_norms_read_without_the_one_are_another_layer() -> None:
    (theirs, rotary), x_BTD = peer("qwen3_next"), hidden(B, T, D)
    weights = dict(theirs.named_parameters())
    uncentred = converted(weights) | {n: weights[n] for n in ("q_norm.weight", "k_norm.weight")}
    found = call(ours(), uncentred, x_BTD)
    expected = attention_of(theirs, x_BTD, rotary, None)
    assert_another(expected, found)


def test_the_packed_product_is_the_gated_layer_too() -> None:
    (theirs, rotary), x_BTD = peer("qwen3_next", bias=True), hidden(B, T, D)
    weights, layer = dict(theirs.named_parameters()), ours(bias=True)
    layer.is_packed = True
    expected = attention_of(theirs, x_BTD, rotary, None)
    assert_same(expected, call(layer, converted(weights), x_BTD), {"x": x_BTD, **weights})
