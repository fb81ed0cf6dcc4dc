"""The table of shapes is the model's, and widths are matched to the nearest unit."""

import itertools
from math import prod

import pytest
import tiny

from gatelab.config import NORMALISERS, ModelConfig
from gatelab.config.moe import MoE
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.models.sizes import (
    count_active,
    count_parameters,
    gate_parameters,
    match_d_ff,
    match_parameters,
    parameter_shapes,
)

KINDS = [
    {"norm": norm, "norm_position": position, "mlp": mlp, "bias": bias, "tied_embeddings": tied}
    for norm, position, mlp, bias, tied in itertools.product(
        ("rms", "layer"), ("pre", "post", "sandwich"), ("swiglu", "relu"), (False, True), (False, True)
    )
]
ATTENTION = [
    {},
    {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6},
    {"positions": "learned", "mlp": "gelu"},
    {"positions": "none", "qk_norm": "rms"},
    {"qk_norm": "rms-no-gain", "softmax": "sink-logit"},
    {"gate": "sdpa-headwise", "n_heads": 4, "n_kv_heads": 1},
    {"gate": "sdpa-elementwise-shared+value-headwise-bias", "n_heads": 4, "n_kv_heads": 2},
    {"gate": "query-headwise+key-elementwise-static+out-elementwise-bias-init=0.5"},
    {"gate": "out-elementwise-static+sdpa-headwise-static", "softmax": "sink-logit", "head_dim": 10},
]
GROUPED = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
GATES = "sdpa-elementwise-hybrid-rank=3+value-headwise-value+key-elementwise-head_slice-bias+scores-headwise-forget"
OTHERS = "sdpa-headwise-first:1/4+query-elementwise-mlp=5-bias+out-elementwise-static"
EXPERTS = {"d_ff": None, "moe": MoE(n_experts=5, top_k=2, d_expert=8, n_shared=2)}
BIASED = MoE(n_experts=5, top_k=2, d_expert=8, activation="clamped_swiglu", bias=True, router_bias=True)
ARCHITECTURES = [
    {**GROUPED, "gate": GATES},
    {**EXPERTS, **GROUPED},
    {"d_ff": None, "moe": EXPERTS["moe"].model_copy(update={"shared_weight": "sigmoid"})},
    {"d_ff": None, "moe": BIASED},
    {**GROUPED, "qk_norm": "rms-all-heads", "norm_position": "reordered"},
    {"arch": "encoder", "embedding_norm": "layer", "n_token_types": 3, "positions": "learned", "norm_position": "post"},
    {"arch": "encoder-decoder", "embedding_norm": "rms", "norm": "layer", "norm_position": "reordered"},
    {**EXPERTS, "arch": "encoder-decoder", "norm": "gated-rms", "norm_rank": 3},
    {"arch": "encoder", "norm": "layer", "positions": "learned", "registers": 3, "bias": True},
    {"arch": "encoder-decoder", "n_encoder_layers": 3, **GROUPED, "gate": OTHERS, "encoder_gate": "none"},
    {"arch": "encoder-decoder", **GROUPED, "cross_gate": OTHERS, "registers": 2, "norm_position": "sandwich"},
    {"arch": "encoder-decoder", "positions": "relative", "norm_position": "post", "qk_norm": "rms"},
    {**GROUPED, "kv_experts": "v-4top2"},
    {**GROUPED, "kv_experts": "kv-3top3", "bias": True},
    *({**GROUPED, "softmax": kind} for kind in NORMALISERS),
]


@pytest.mark.parametrize("kinds", [*KINDS, *ATTENTION, *ARCHITECTURES], ids=str)
def test_parameter_shapes_are_those_of_the_real_model(kinds: dict[str, object]) -> None:
    config = tiny.model(**kinds)
    real = {name: tuple(p.shape) for name, p in build_model(config).named_parameters()}
    assert parameter_shapes(config) == real
    assert count_parameters(config) == sum(prod(s) for s in real.values())


@pytest.mark.parametrize("mlp", ["swiglu", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_matched_width_is_the_nearest(mlp: str, bias: bool) -> None:
    baseline = tiny.model(mlp=mlp, bias=bias)
    target = count_parameters(baseline)
    for gate in ("sdpa-headwise", "sdpa-elementwise", "value-headwise+out-elementwise"):
        config = tiny.model(mlp=mlp, bias=bias, gate=gate)
        widths = {f: abs(count_parameters(config.model_copy(update={"d_ff": f})) - target) for f in range(1, 30)}
        matched = match_d_ff(config, target)
        assert matched == config.model_copy(update={"d_ff": matched.d_ff})
        assert widths[matched.d_ff] == min(widths.values())


def test_a_matched_width_may_be_kept_to_multiples() -> None:
    target, config = count_parameters(tiny.model(d_ff=32)), tiny.model(gate="sdpa-elementwise", d_ff=32)
    away = {f: abs(count_parameters(config.model_copy(update={"d_ff": f})) - target) for f in range(4, 33, 4)}
    assert match_d_ff(config, target, 4).d_ff == min(away, key=away.__getitem__)


def test_a_model_that_is_matched_already_stays() -> None:
    config = tiny.model()
    assert match_d_ff(config, count_parameters(config)) == config


def test_a_gate_that_is_larger_than_the_ffn_cannot_be_matched() -> None:
    with pytest.raises(ValueError, match=r"with d_ff=1 the model has .* take a wider baseline FFN or a smaller gate"):
        match_d_ff(tiny.model(gate="sdpa-elementwise", d_ff=1), count_parameters(tiny.model(d_ff=1)))


def test_a_model_without_vocabulary_or_context_is_refused() -> None:
    for missing in ({"max_seq_len": 8}, {"vocab_size": 8}):
        with pytest.raises(ValueError, match="needs vocab_size and max_seq_len"):
            build_model(ModelConfig(**missing))


def test_what_is_left_open_is_derived() -> None:
    model = build_model(ModelConfig(vocab_size=11, max_seq_len=8, d_model=24, n_layers=1, n_heads=2))
    assert isinstance(model, Decoder)
    assert (model.config.n_kv_heads, model.config.head_dim, model.config.d_ff) == (2, 12, 64)


def test_active_weights_leave_out_the_experts_that_a_token_did_not_choose() -> None:
    config = tiny.model(arch="encoder-decoder", n_encoder_layers=3, **EXPERTS)
    assert count_parameters(config) - count_active(config) == (3 + 2) * (5 - 2) * 3 * config.d_model * 8
    assert count_active(tiny.model()) == count_parameters(tiny.model())
    config = tiny.model(d_ff=None, moe=BIASED)
    of_one = 3 * config.d_model * 8 + 2 * 8 + config.d_model
    assert count_parameters(config) - count_active(config) == config.n_layers * (5 - 2) * of_one


def test_the_weights_of_gates_are_what_a_model_loses_without_them() -> None:
    for arch in ("decoder", "encoder-decoder"):
        gated, plain = (tiny.model(arch=arch, gate=g, **GROUPED) for g in (OTHERS, "none"))
        assert gate_parameters(gated) == count_parameters(gated) - count_parameters(plain) > 0
        assert gate_parameters(plain) == 0


def test_a_mixture_is_matched_by_the_width_of_its_experts() -> None:
    wide = {"d_ff": None, "moe": MoE(n_experts=5, top_k=2, d_expert=40)}
    base, gated = (tiny.model(gate=g, **GROUPED, **wide) for g in ("none", "sdpa-elementwise"))
    match = match_parameters(base, gated)
    assert match.config.moe.d_expert == match.d_ff < match.d_ff_before == 40
    assert match.config.moe.n_experts == 5
    # One channel more or less of all experts.
    assert abs(match.unmatched) <= 2 * 5 * 3 * base.d_model / 2
    assert build_model(match.config).config == match.config


def test_a_match_says_what_it_did() -> None:
    match = match_parameters(tiny.model(d_ff=32), tiny.model(d_ff=32, gate="sdpa-elementwise"), unit=4)
    assert match.unmatched == match.n_parameters - match.target == count_parameters(match.config) - match.target
    assert str(match).startswith(f"d_ff 32 → {match.d_ff}: {match.n_parameters:,} parameters for {match.target:,}, ")
    assert f"{match.unmatched:+,}" in str(match)
