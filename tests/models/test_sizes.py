"""The table of shapes is the model's, and widths are matched to the nearest unit."""

import itertools
from math import prod

import pytest
import tiny

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.models.sizes import count_parameters, match_d_ff, parameter_shapes

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


@pytest.mark.parametrize("kinds", [*KINDS, *ATTENTION], ids=str)
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
