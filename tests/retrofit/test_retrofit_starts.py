"""Gates that start as the identity leave every bit; what cannot is refused, and says which can."""

import pytest
import tiny
import torch
from planted import texts

from gatelab.config import ACTIVATIONS, ConfigError, GateSpec, validate
from gatelab.config.retrofit import Retrofit
from gatelab.models import build_model
from gatelab.retrofit.starts import as_identity, attention_layers, check_sinks, check_ungated, gated, identity

EXACT = (
    "sdpa-headwise", "sdpa-elementwise", "sdpa-elementwise-two_sigmoid", "sdpa-headwise-identity-bias",
    "sdpa-elementwise-shared", "sdpa-headwise-head_slice", "sdpa-headwise-value", "sdpa-headwise-static",
    "sdpa-elementwise-rank=4", "sdpa-headwise-mlp=4", "sdpa-elementwise-tanh-add", "sdpa-headwise-output",
)  # fmt: skip


def plain(**changes: object):
    return build_model(tiny.model(vocab_size=23, n_heads=4, n_kv_heads=2, init_std=0.3, **changes), seed=5).eval()


@pytest.mark.parametrize("slug", EXACT)
def test_the_identity_keeps_every_bit_of_the_logits(slug: str):
    model, ids = plain(), texts(3, 12)
    started = as_identity(model, GateSpec.parse(slug), seed=1)
    assert len(started.config.gate) == 1 and torch.equal(started(ids), model(ids))


@pytest.mark.parametrize("slug", ["sdpa-headwise", "sdpa-elementwise-two_sigmoid"])
def test_in_bfloat16_too(slug: str):
    model, ids = plain(), texts(3, 12)
    model.compute_dtype = torch.bfloat16
    assert torch.equal(as_identity(model, GateSpec.parse(slug), seed=1)(ids), model(ids))


@pytest.mark.parametrize("slug", EXACT)
def test_its_gate_has_a_gradient(slug: str):
    started = as_identity(plain(), GateSpec.parse(slug), seed=1)
    started(texts(3, 12)).square().mean().backward()
    gate = attention_layers(started)[0].gates["sdpa"]
    assert max(float(p.grad.abs().max()) for p in gate.parameters()) > 0


def test_a_stated_value_is_where_the_gate_starts_and_what_w_o_is_divided_by():
    """The scaled gate of arXiv 2306.12929: σ starts at π, and its output is read 1/π times."""
    model, ids = plain(), texts(3, 12)
    started = as_identity(model, GateSpec.parse("sdpa-headwise-bias-init=0.3"), seed=1)
    layer = attention_layers(started)[0]
    torch.testing.assert_close(layer.gates["sdpa"].g_proj.bias.sigmoid(), torch.full((4,), 0.3))
    torch.testing.assert_close(layer.o_proj.weight, attention_layers(model)[0].o_proj.weight / 0.3)
    torch.testing.assert_close(started(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["mul", "add"])
def test_an_activation_is_exact_or_refused(activation: str, form: str):
    spec = GateSpec(site="sdpa", granularity="headwise", activation=activation, form=form, bias=True)
    model, ids = plain(), texts(2, 9)
    try:
        started = as_identity(model, spec, seed=0)
    except ValueError as error:
        assert f"{activation} cannot" in str(error)
        assert ("sigmoid, two_sigmoid, identity" if form == "mul" else "identity, tanh") in str(error)
    else:
        assert torch.equal(started(ids), model(ids))


@pytest.mark.parametrize(
    ("slug", "said"),
    [
        ("sdpa-headwise-bias-around=0.5", "leave out 'around'"),
        ("sdpa-headwise-lse", "varies from the start"),
        ("sdpa-headwise-identity-init=0", "starts shut"),
        ("sdpa-headwise-identity-add-bias-init=0.5", "takes init=0"),
        ("sdpa-headwise-identity", "needs a bias"),
    ],
)
def test_what_does_not_stand_still_is_refused(slug: str, said: str):
    with pytest.raises(ValueError, match=said):
        identity(GateSpec.parse(slug))


def test_a_random_start_changes_the_function():
    model, ids = plain(), texts(3, 12)
    started = gated(model, GateSpec.parse("sdpa-headwise"), seed=1)
    assert (started(ids) - model(ids)).abs().max() > 0.01
    assert torch.equal(started.blocks[0].attention.q_proj.weight, model.blocks[0].attention.q_proj.weight)


def test_biases_that_were_not_there_are_zero_and_those_that_were_stay():
    for has_bias in (False, True):
        model, ids = plain(bias=has_bias, init="fan-in"), texts(3, 12)
        started = gated(model, GateSpec.parse("sdpa-headwise-two_sigmoid-init=1"), seed=1, bias=True)
        assert started.config.bias and torch.equal(started(ids), model(ids))


def test_a_model_stays_as_it_was():
    model, ids = plain(), texts(3, 12)
    before = model(ids)
    as_identity(model, GateSpec.parse("sdpa-headwise"), seed=1)
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gate": "sdpa-headwise"}, "is gated already"),
        ({"arch": "encoder"}, "arch=encoder"),
        ({"output_map": "xsa"}, "output_map=xsa"),
        ({"registers": 2}, "registers=2"),
    ],
)
def test_a_model_that_cannot_be_gated_is_refused(changes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        check_ungated("it", tiny.model(**changes))


@pytest.mark.parametrize("changes", [{"softmax": "off-by-one"}, {"window": 4}, {"kv_experts": "v-4top2"}])
def test_surgery_takes_a_plain_softmax_over_all_earlier_keys(changes: dict):
    check_sinks("it", tiny.model())
    with pytest.raises(ValueError, match="plain softmax"):
        check_sinks("it", tiny.model(**changes))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gate": "value-headwise"}, "stands at the site 'value'"),
        ({"gate": "sdpa-headwize"}, "did you mean 'headwise'"),
        ({"gate": "sdpa-headwise", "start": "surgery"}, "take sdpa-headwise-bias or sdpa-elementwise-bias"),
        ({"gate": "sdpa-headwise-bias-silu", "start": "surgery"}, r"σ\(w·x \+ b\)"),
        ({"gate": "sdpa-headwise", "start": "surgerie"}, "did you mean 'surgery'"),
        ({"gate": "sdpa-headwise", "gate_optim": {"qk_clip": 100}}, "gate_optim.qk_clip"),
    ],
)
def test_a_configuration_is_refused_in_a_sentence(given: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        validate(Retrofit, given)
