"""A layout is found where config and shapes agree, and refused where they do not or where both leave a choice."""

from typing import Any

import pytest
import torch
from test_layouts import geometry, tensors_of

from gatelab.config.base import canonical
from gatelab.config.model import ModelConfig
from gatelab.models import build_model
from gatelab.models.layouts import LAYOUTS, geometry_of, read, recognise, write

WIDTHS = {"hidden_size": 12, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4}
PLAIN = {"d_model": 12, "n_heads": 8, "n_kv_heads": 2, "head_dim": 4}
GROUPS = {"hidden_size": 12, "num_attention_heads": 8, "num_query_groups": 2, "kv_channels": 4}
SLIDING = {"layer_types": ["sliding_attention"]}
NEXT = WIDTHS | {"model_type": "qwen3_next", "partial_rotary_factor": 0.5}
LAGUNA = WIDTHS | {"model_type": "laguna"}
GAMMA = {"layernorm_zero_centered_gamma": False}

# What each code base's config says, and the layout and granularity of the tensors beside it.
SAID: list[tuple[dict[str, Any], str, str | None]] = [
    (WIDTHS | {"elementwise_attn_output_gate": True, "headwise_attn_output_gate": False}, "qwen-gated-elementwise", "elementwise"),
    (WIDTHS | {"headwise_attn_output_gate": True, "model_type": "qwen3"}, "qwen-gated-headwise", "headwise"),
    (WIDTHS | {"headwise_attn_output_gate": True, "elementwise_attn_output_gate": True}, "qwen-gated-headwise", "headwise"),
    (WIDTHS | {"headwise_attn_output_gate": False, "elementwise_attn_output_gate": False}, "gatelab", None),
    (WIDTHS | {"attn_output_gate": True}, "qwen3-next", "elementwise"),
    (NEXT, "qwen3-next", "elementwise"),
    ({"model_type": "qwen3_5", "text_config": WIDTHS | {"model_type": "qwen3_5_text", "partial_rotary_factor": 0.5}},
     "qwen3-next", "elementwise"),
    ({"model_type": "qwen3_5", "text_config": WIDTHS | {"partial_rotary_factor": 0.5}}, "qwen3-next", "elementwise"),
    (GROUPS | GAMMA | {"attention_output_gate": True}, "megatron", "elementwise"),
    (GROUPS | GAMMA | {"attention_output_gate": False}, "megatron", None),
    (GROUPS | GAMMA | {"head_wise_attn_gate": True}, "megatron-headwise", "headwise"),
    (WIDTHS | {"use_head_wise_attn_gate": True}, "step", "headwise"),
    (WIDTHS | {"attention_output_gate": True}, "step", "headwise"),
    (WIDTHS | {"model_type": "step3p5"}, "step", "headwise"),
    (LAGUNA | {"gating": True}, "laguna", "headwise"),
    (WIDTHS | {"gating": True}, "laguna", "elementwise"),
    (WIDTHS | {"gating": "per-element"}, "laguna", "elementwise"),
    (WIDTHS | SLIDING | {"model_type": "afmoe"}, "afmoe", "elementwise"),
    (WIDTHS, "afmoe", "elementwise"),
    (PLAIN | {"gate": {"granularity": "headwise", "full_precision": True}}, "olmo-core", "headwise"),
    (PLAIN | {"gate": {"granularity": "elementwise"}}, "olmo-core", "elementwise"),
    (PLAIN, "olmo-core", None),
    (PLAIN | {"gate": "sdpa-headwise"}, "gatelab", "headwise"),
    (PLAIN | {"gate": "none"}, "gatelab", None),
]  # fmt: skip


def shapes_of(slug: str, grain: str | None, *, biases: bool = False) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in tensors_of(slug, grain, geometry(), biases=biases).items()}


@pytest.mark.parametrize(("config", "slug", "grain"), SAID)
def test_config_and_shapes_that_agree_name_the_layout(config: dict[str, Any], slug: str, grain: str | None):
    for biases in (False, True):
        layout = recognise(config, shapes_of(slug, grain, biases=biases))
        assert layout.slug == slug
    own = read(layout, tensors_of(slug, grain, geometry()), geometry_of(config))
    assert own.granularity == grain


def test_every_layout_is_recognised_somewhere_above():
    assert {slug for _, slug, _ in SAID} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("slug", "grain", "words"),
    [
        ("qwen3-next", "elementwise", ["qwen-gated-elementwise and qwen3-next", "attn_output_gate=true"]),
        ("laguna", "headwise", ["laguna and step", "model_type=laguna", "use_head_wise_attn_gate=true"]),
    ],
)
def test_shapes_of_several_layouts_are_refused_with_what_would_decide(slug: str, grain: str, words: list[str]):
    with pytest.raises(ValueError) as error:
        recognise(WIDTHS, shapes_of(slug, grain))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_even_equal_row_orders_are_ambiguous_since_the_norms_differ():
    even = WIDTHS | {"num_key_value_heads": 8}
    shapes = {n: tuple(t.shape) for n, t in tensors_of("qwen3-next", "elementwise", geometry((8, 8))).items()}
    with pytest.raises(ValueError, match="qwen-gated-elementwise and qwen3-next"):
        recognise(even, shapes)


@pytest.mark.parametrize(
    ("config", "slug", "grain", "sentence"),
    [
        (WIDTHS | {"attn_output_gate": True}, "afmoe", "elementwise", "the config means qwen3-next .*the tensors fit afmoe"),
        (WIDTHS | {"attn_output_gate": True}, "gatelab", None, "the config means qwen3-next .* the tensors fit gatelab"),
        (NEXT | {"attn_output_gate": False}, "qwen3-next", "elementwise", "attn_output_gate=False"),
        (LAGUNA | {"gating": "per-head"}, "laguna", "elementwise", "gating='per-head'.* laguna elementwise"),
        (LAGUNA | {"gating": "heads"}, "laguna", "elementwise", "gating='heads': expected one of"),
        (LAGUNA | {"gating": False}, "laguna", "headwise", "gating=False"),
        (PLAIN | {"gate": {"granularity": "headwise"}}, "olmo-core", "elementwise", "headwise.*olmo-core elementwise"),
        (PLAIN | {"gate": None}, "olmo-core", "elementwise", "gate=None.* olmo-core elementwise"),
        (PLAIN | {"gate": "none"}, "gatelab", "headwise", "gate='none'.* gatelab headwise"),
        (PLAIN | {"gate": "sdpa-headwise"}, "gatelab", None, "gatelab without a gate"),
        (PLAIN, "gatelab", "headwise", "the config has to say gate"),
        (PLAIN | {"gate": "value-elementwise"}, "gatelab", "elementwise", "other gates belong to Gatelab alone"),
        (PLAIN | {"gate": "sdpa-headwise", "qk_norm": "rms-no-gain"}, "gatelab", "headwise", "leaves no tensor"),
        (GROUPS | {"attention_output_gate": True}, "megatron", "elementwise", "has to say layernorm_zero_centered_gamma"),
        (WIDTHS | {"attn_output_gate": True, "gate_attn_act_mode": "silu"}, "qwen3-next", "elementwise", "and would ignore it"),
        (WIDTHS | {"num_key_value_heads": 4}, "afmoe", "elementwise", r"afmoe: k_proj.weight has shape \(8, 12\)"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_tensors_is_refused(
    config: dict[str, Any], slug: str, grain: str | None, sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        recognise(config, shapes_of(slug, grain))


def test_activation_and_gain_are_the_config_s():
    gate = recognise(PLAIN | {"gate": "sdpa-headwise-softplus"}, shapes_of("gatelab", "headwise"))
    assert gate.activations == ("softplus",)
    own = read(gate, tensors_of("gatelab", "headwise", geometry()), geometry())
    assert own.activation == "softplus"
    with pytest.raises(ValueError, match="gatelab: activation='sigmoid': expected one of softplus"):
        read(gate, tensors_of("gatelab", "headwise", geometry()), geometry(), activation="sigmoid")
    said = GROUPS | {"attention_output_gate": True, "apply_layernorm_1p": True}
    assert recognise(said, shapes_of("megatron", "elementwise")).gains == ("1+w",)
    assert recognise(GROUPS | GAMMA, shapes_of("megatron", None)).gains == ("w",)


def test_widths_are_found_under_everybody_s_names():
    for config in (WIDTHS, PLAIN, GROUPS):
        assert geometry_of(config) == geometry(rotary_dim=4)
    alone = {"hidden_size": 12, "num_attention_heads": 3}
    assert (geometry_of(alone).n_kv_heads, geometry_of(alone).head_dim) == (3, 4)
    assert geometry_of(WIDTHS | {"head_dim": 16, "model_type": "qwen3_next"}).rotary_dim == 4
    assert geometry_of(WIDTHS | {"rope_parameters": {"partial_rotary_factor": 0.5}}).rotary_dim == 2
    assert geometry_of(PLAIN | {"positions": "learned"}).rotary_dim == 0


def test_layers_that_differ_have_to_be_named():
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "linear_attention"]
    rope = {"full_attention": {"partial_rotary_factor": 0.5}, "sliding_attention": {"partial_rotary_factor": 1.0}}
    laguna = WIDTHS | {"layer_types": kinds, "rope_parameters": rope, "num_attention_heads_per_layer": [8, 4, 4, 4]}
    assert [(geometry_of(laguna, layer=i).n_heads, geometry_of(laguna, layer=i).rotary_dim) for i in (0, 1)] == [
        (8, 2),
        (4, 4),
    ]
    with pytest.raises(ValueError, match="has a value for each of 4 layers"):
        geometry_of(laguna)
    with pytest.raises(ValueError, match=r"layer 3 is linear_attention and has no softmax; take one of \[0, 1, 2\]"):
        geometry_of(laguna, layer=3)
    with pytest.raises(ValueError, match="layer=-1: expected a number from 0"):
        geometry_of(laguna, layer=-1)
    with pytest.raises(ValueError, match="layer=4: the config has layers 0 to 3"):
        geometry_of(laguna, layer=4)
    afmoe = WIDTHS | {"model_type": "afmoe", "layer_types": kinds}
    assert [geometry_of(afmoe, layer=i).rotary_dim for i in (0, 1)] == [0, 4]
    with pytest.raises(ValueError, match="name the layer"):
        geometry_of(afmoe)
    hub = WIDTHS | {
        "layer_types": kinds,
        "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 2},
    }
    assert [geometry_of(hub, layer=i).n_heads for i in (0, 1)] == [8, 6]
    step = WIDTHS | {"layer_types": kinds, "num_sliding_attention_heads": 4}
    assert [geometry_of(step, layer=i).n_heads for i in (0, 1)] == [8, 4]
    with pytest.raises(ValueError, match="sliding layers have 4 heads and others 8"):
        geometry_of(step)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"hidden_size": 12}, "does not say n_heads; it needs num_attention_heads or n_heads"),
        (WIDTHS | {"n_heads": 4}, "contradicts itself: num_attention_heads=8, n_heads=4"),
        (WIDTHS | {"num_key_value_heads": 3}, "n_kv_heads=3 does not divide n_heads=8"),
        ({"hidden_size": 12, "num_attention_heads": 8}, "the config needs head_dim"),
        (WIDTHS | {"head_dim": "4"}, "head_dim='4': expected a number"),
        (WIDTHS | {"rotary_interleaved": True}, "half-split pairs are expected"),
        (WIDTHS | {"partial_rotary_factor": 0.3}, "rope_fraction=0.3"),
        (WIDTHS | {"num_attention_heads": 0}, "n_heads=0: input should be greater than 0"),
        (WIDTHS | {"layer_types": "full_attention"}, "layer_types='full_attention': expected a list"),
        (WIDTHS | {"rope_parameters": [1]}, r"rope_parameters=\[1\]: expected a dictionary"),
        ([], "a config of type list"),
    ],
)
def test_a_config_that_does_not_say_the_widths_is_refused(config: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        geometry_of(config)


@pytest.mark.parametrize("gate", ["none", "sdpa-headwise-bias", "sdpa-elementwise-softplus"])
def test_a_model_of_ours_is_recognised_from_its_own_config_and_written_back(gate: str):
    config = ModelConfig(
        vocab_size=7, max_seq_len=8, d_model=12, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=8, gate=gate,
        qk_norm="rms", rope_fraction=1 / 3, bias=True,
    )  # fmt: skip
    attention = build_model(config).blocks[0].attention
    tensors = {name: t.detach() for name, t in attention.state_dict().items()}
    layout = recognise(canonical(config), {name: tuple(t.shape) for name, t in tensors.items()})
    g = geometry_of(canonical(config))
    assert (layout.slug, g.rotary_dim) == ("gatelab", attention.rope.rotary_dim)
    written = write("gatelab", read(layout, tensors, g))
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], t) for name, t in tensors.items())
