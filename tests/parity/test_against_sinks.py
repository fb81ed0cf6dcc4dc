"""Attention with a learned sink: gpt-oss (a column of the softmax) and Granite SWA (σ(lse − s) on the output).

Layout: `sinks` [H], one logit a query head; projections as Llama's, gpt-oss with biases. Both have layers with a sliding
window, and gpt-oss turns by YaRN. Its released configuration leaves the ends of YaRN's ramp unrounded (`truncate` False);
the layers here are told to round, and a test of the frequencies has the released numbers.
"""

from typing import Any

import pytest
from peers import (
    Weights,
    assert_another,
    assert_close,
    assert_same,
    attention_of,
    call,
    drawn,
    hidden,
    modeling,
    renamed,
)
from torch import nn

from gatelab.config import SinkLogit
from gatelab.config.rope import RopeScaling, Unscaled, YaRN
from gatelab.nn.attention import GatedAttention

B, T, D, H, G, K, WINDOW = 2, 21, 24, 4, 2, 16, 5
THETA, FACTOR, TRAINED = 150.0, 8.0, 64
# Of the eight pairs of channels two keep their speed, two lie on the ramp, and four are slowed.
TURNS = {"beta_fast": 4.0, "beta_slow": 1.0}
kinds = pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
impls = pytest.mark.parametrize("impl", ["reference", "sdpa"])


def gpt_oss(kind: str, **yarn: Any) -> tuple[nn.Module, nn.Module]:
    """The attention layer and its rotary tables."""
    code = modeling("gpt_oss")
    rope = {"rope_type": "yarn", "rope_theta": THETA, "factor": FACTOR, "truncate": True, **TURNS, **yarn}
    config = code.GptOssConfig(
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=K,
        sliding_window=WINDOW,
        layer_types=[kind],
        max_position_embeddings=int(TRAINED * FACTOR),
        rope_parameters={**rope, "original_max_position_embeddings": TRAINED},
    )
    config._attn_implementation = "eager"
    return drawn(code.GptOssAttention(config, 0)), code.GptOssRotaryEmbedding(config)


def granite(kind: str) -> nn.Module:
    code = modeling("granite_swa")
    config = code.GraniteSWAConfig(
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=H,
        num_key_value_heads=G,
        attention_multiplier=(D // H) ** -0.5,
        attention_bias=False,
        sliding_window=WINDOW,
        layer_types=[kind],
    )
    config._attn_implementation = "eager"
    return drawn(code.GraniteSWAAttention(config, 0))


def mask_of(kind: str):
    """The mask that the whole model of transformers gives to a layer of this kind."""
    from transformers import masking_utils

    is_local = kind == "sliding_attention"
    return masking_utils.create_sliding_window_causal_mask if is_local else masking_utils.create_causal_mask


def ours(kind: str, impl: str, scaling: RopeScaling, **options: Any) -> GatedAttention:
    return GatedAttention(
        d_model=D,
        n_heads=H,
        n_kv_heads=G,
        softmax=SinkLogit(),
        rope_scaling=scaling,
        window=WINDOW if kind == "sliding_attention" else None,
        impl=impl,
        **options,
    )


def converted(weights: Weights) -> Weights:
    return renamed(weights, [("sinks", "sink.sink_logit_H")])


def yarn(**fields: Any) -> YaRN:
    return YaRN(**{"factor": FACTOR, "original_seq_len": TRAINED, **TURNS, **fields})


@kinds
@impls
def test_the_layer_of_gpt_oss_is_ours(kind: str, impl: str) -> None:
    (theirs, rotary), x_BTD = gpt_oss(kind), hidden(B, T, D)
    weights = dict(theirs.named_parameters())
    expected = attention_of(theirs, x_BTD, rotary, mask_of(kind))
    layer = ours(kind, impl, yarn(), head_dim=K, rope_theta=THETA, bias=True)
    assert_same(expected, call(layer, converted(weights), x_BTD), {"x": x_BTD, **weights})


@pytest.mark.parametrize("given", [None, 1.0, 1.3])
def test_the_attention_factor_is_that_of_transformers(given: float | None) -> None:
    stated = {} if given is None else {"attention_factor": given}
    (theirs, rotary), x_BTD = gpt_oss("full_attention", **stated), hidden(B, T, D)
    expected = attention_of(theirs, x_BTD, rotary, mask_of("full_attention"))
    layer = ours("full_attention", "reference", yarn(**stated), head_dim=K, rope_theta=THETA, bias=True)
    found = call(layer, converted(dict(theirs.named_parameters())), x_BTD)
    assert_close(expected, found)


@pytest.mark.parametrize("truncate", [False, True])
def test_the_frequencies_of_the_released_gpt_oss_are_ours(truncate: bool) -> None:
    code = modeling("gpt_oss")
    numbers = {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": truncate}
    config = code.GptOssConfig(
        head_dim=64,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "original_max_position_embeddings": 4096,
            **numbers,
        },
    )
    theirs = code.GptOssRotaryEmbedding(config)
    found = YaRN(original_seq_len=4096, **numbers)
    assert found.frequencies(64, 150000.0) == pytest.approx(theirs.inv_freq.tolist(), rel=1e-6)
    assert found.amplitude == pytest.approx(theirs.attention_scaling, rel=1e-12)
    other = YaRN(original_seq_len=4096, **{**numbers, "truncate": not truncate})
    assert found.frequencies(64, 150000.0) != pytest.approx(other.frequencies(64, 150000.0), rel=1e-3)


@kinds
@impls
def test_the_layer_of_granite_is_ours_without_positions(kind: str, impl: str) -> None:
    theirs, x_BTD = granite(kind), hidden(B, T, D)
    weights = dict(theirs.named_parameters())
    expected = attention_of(theirs, x_BTD, None, mask_of(kind))
    layer = ours(kind, impl, Unscaled(), rope_theta=None)
    assert_same(expected, call(layer, converted(weights), x_BTD), {"x": x_BTD, **weights})


@pytest.mark.parametrize("wrong", ["window", "scaling", "sinks"])
def test_another_window_scaling_or_order_of_sinks_is_another_layer(wrong: str) -> None:
    kind = "sliding_attention"
    (theirs, rotary), x_BTD = gpt_oss(kind), hidden(B, T, D)
    expected = attention_of(theirs, x_BTD, rotary, mask_of(kind))
    layer = ours(
        kind, "reference", Unscaled() if wrong == "scaling" else yarn(), head_dim=K, rope_theta=THETA, bias=True
    )
    made = converted(dict(theirs.named_parameters()))
    if wrong == "window":
        layer.window = WINDOW + 1
    if wrong == "sinks":
        made["sink.sink_logit_H"] = made["sink.sink_logit_H"].flip(0)
    found = call(layer, made, x_BTD)
    assert_another(expected, found, share=0.02)
