"""A gate is a value: it prints as a slug, parses back to itself, and cannot be an impossible one."""

from itertools import product

import pytest
import torch

from gatelab.config import ACTIVATIONS, SITES, ConfigError, GateSpec, ModelConfig, canonical, validate


def every_gate() -> list[GateSpec]:
    axes = product(SITES, ("elementwise", "headwise"), ("specific", "shared"), ("mul", "add"), ACTIVATIONS)
    gates = []
    for site, granularity, sharing, form, activation in axes:
        if granularity in SITES[site][2] and not (site == "out" and sharing == "shared"):
            for source, bias in (("hidden", False), ("hidden", True), ("static", False)):
                gates.append(
                    GateSpec(
                        site=site, granularity=granularity, sharing=sharing, form=form, activation=activation,
                        source=source, bias=bias,
                    )
                )  # fmt: skip
    return gates


def test_every_gate_parses_back_from_its_slug_and_no_two_share_one():
    gates = every_gate()
    assert [GateSpec.parse(g.slug) for g in gates] == gates
    assert len({g.slug for g in gates}) == len(gates) > 700


def test_the_slug_leaves_out_what_is_the_default():
    assert GateSpec.parse("sdpa-headwise").slug == "sdpa-headwise"
    assert GateSpec.parse("sdpa-headwise-specific-mul-sigmoid-hidden").slug == "sdpa-headwise"


def test_words_may_come_in_any_order():
    assert GateSpec.parse("value-silu-shared-add-elementwise") == GateSpec.parse("value-elementwise-shared-silu-add")


@pytest.mark.parametrize("init", [0.9, 0.123456789012345, 1e-05, 2.5e-310, -0.5, 1e17, 100000.0])
def test_the_starting_value_is_kept_to_the_last_digit(init: float):
    activation = "tanh" if init < 0 else "identity"
    gate = GateSpec(site="sdpa", granularity="headwise", bias=True, activation=activation, init=init)
    assert GateSpec.parse(gate.slug) == gate
    beside_another = ModelConfig(gate=(gate, "value-headwise"))
    assert validate(ModelConfig, canonical(beside_another)) == beside_another


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_inverse_gives_the_logit_at_which_a_gate_has_its_starting_value(name: str):
    activation = ACTIVATIONS[name]
    logit = torch.tensor(activation.inverse(0.75), dtype=torch.float64)
    assert activation.apply(logit).item() == pytest.approx(0.75, abs=1e-12)


@pytest.mark.parametrize(
    "slug, says",
    [
        ("sdpa-headwise-bias-init=1.5", "(0, 1)"),
        ("sdpa-headwise-bias-init=0", "(0, 1)"),
        ("sdpa-headwise-bias-ns_sigmoid-init=0.5", "(½, 1)"),
        ("sdpa-headwise-bias-silu-init=-0.4", "(−0.28, ∞)"),
        ("sdpa-headwise-bias-softplus-init=-1", "(0, ∞)"),
        ("sdpa-headwise-bias-tanh-init=1", "(−1, 1)"),
        ("sdpa-headwise-init=0.5", "needs a bias"),
        ("sdpa-headwise-bias-init=soon", "not init=<number>"),
        ("sdpa-headwise-bias-init=nan", "not init=<number>"),
        ("out-headwise", "use out-elementwise"),
        ("out-elementwise-shared", "no heads to average over"),
        ("sdpa-headwise-static-bias", "leave out the word 'bias'"),
        ("sdpa", "say the granularity"),
        ("", "no site ''"),
        ("spda-headwise", "did you mean 'sdpa'?"),
        ("sdpa-headwize", "did you mean 'headwise'?"),
        ("sdpa-headwise-elementwise", "keep one"),
        ("sdpa-headwise-bias-bias", "keep one"),
    ],
)
def test_an_impossible_gate_is_refused_in_one_sentence(slug: str, says: str):
    with pytest.raises(ValueError) as caught:
        GateSpec.parse(slug)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_holds_the_gates_that_its_slugs_name():
    model = ModelConfig(gate="sdpa-headwise+value-elementwise")
    assert [g.slug for g in model.gate] == ["sdpa-headwise", "value-elementwise"]
    assert canonical(model)["gate"] == "sdpa-headwise+value-elementwise"
    assert ModelConfig(gate="none").gate == ModelConfig(gate=()).gate == ()


def test_one_site_has_one_gate():
    with pytest.raises(ConfigError, match="two gates at site 'sdpa'"):
        validate(ModelConfig, {"gate": "sdpa-headwise+sdpa-elementwise"})
