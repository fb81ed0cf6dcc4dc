"""A gate is a value: it prints as a slug, parses back to itself, and cannot be an impossible one."""

from itertools import product

import pytest
import torch

from gatelab.config import ACTIVATIONS, SITES, ConfigError, GateSpec, ModelConfig, canonical, validate


def every_gate() -> list[GateSpec]:
    """The paper's axes and a learned constant; `tests/nn/test_gate_space.py` goes through all there are."""
    axes = product(SITES, ("elementwise", "headwise"), ("specific", "shared"), ("mul", "add"), ACTIVATIONS)
    gates = []
    for site, granularity, sharing, form, activation in axes:
        is_shareable = site != "out" and granularity == "elementwise"
        if granularity in SITES[site].granularities and (sharing == "specific" or is_shareable):
            for source, bias in (("hidden", False), ("hidden", True), ("static", False)):
                if (site, source) != ("scores", "static"):
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
    assert len({g.slug for g in gates}) == len(gates) == (4 * 3 + 1) * 2 * 7 * 3 + 2 * 7 * 2


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
        ("sdpa-headwise-init=0.6", "init=0.6 needs a bias"),
        ("sdpa-headwise-around=0.6", "around=0.6 needs a bias"),
        ("sdpa-headwise-around=0.5-bias-init=0.5", "keep one"),
        ("sdpa-headwise-static-around=0.5", "use init=0.5"),
        ("sdpa-headwise-bias-init=soon", "not init=<number>"),
        ("sdpa-headwise-bias-init=nan", "not init=<number>"),
        ("out-headwise", "use out-elementwise"),
        ("out-elementwise-shared", "no heads to average over"),
        ("sdpa-headwise-shared", "use sdpa-elementwise-shared"),
        ("scores-elementwise", "use scores-headwise"),
        ("scores-headwise-static", "it is sdpa-headwise-static"),
        ("sdpa-headwise-forget", "use scores-headwise-forget"),
        ("scores-headwise-forget-silu", "use the activation sigmoid or ns_sigmoid"),
        ("key-headwise-value", "expected one of hidden, static, head_slice, first"),
        ("value-headwise-lse", "expected one of hidden, static, value, head_slice, first"),
        ("sdpa-elementwise-lse", "use sdpa-headwise-lse"),
        ("sdpa-headwise-lse-init=0.5", "leave out init and around"),
        ("sdpa-headwise-static-rank=2", "no projection that rank or mlp could change"),
        ("sdpa-headwise-rank=2-mlp=3", "keep one"),
        ("sdpa-headwise-head_slice-rank=2", "narrow already"),
        ("sdpa-headwise-first", "first:<channels>"),
        ("sdpa-headwise-first:0", "'first:0': expected a number of channels from 1"),
        ("sdpa-headwise-rank=5/4", "'5/4': expected a number of channels from 1, or a share"),
        ("qwen3-nxt", "did you mean 'qwen3-next'?"),
        ("paper/kv8", "use it as model.preset=paper/kv8"),
        ("sdpa-headwise-static-bias", "leave out the word 'bias'"),
        ("sdpa", "say the granularity"),
        ("", "no site ''"),
        ("spda-headwise", "did you mean 'sdpa'?"),
        ("sdpa-headwize", "did you mean 'headwise'?"),
        ("sdpa-headwise-elementwise", "keep one"),
        ("sdpa-headwise-bias-bias", "'bias' came twice; keep one"),
        ("sdpa-headwise-silu-tanh", "'silu' and 'tanh' are both its activation; keep one"),
        (
            "sdpa_headwise",
            "a preset of `gatelab gates`; did you mean 'sdpa-headwise'?",
        ),
        ("SDPA-headwise", "did you mean 'sdpa-headwise'?"),
        ("Value_elementwise_two_sigmoid", "no site 'Value_elementwise_two_sigmoid'"),
        ("Value_elementwise-two_sigmoid", "did you mean 'value-elementwise-two_sigmoid'?"),
    ],
)
def test_an_impossible_gate_is_refused_in_one_sentence(slug: str, says: str):
    with pytest.raises(ValueError) as caught:
        GateSpec.parse(slug)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_start_of_logit_zero_needs_no_bias():
    slugs = ("sdpa-headwise-init=0.5", "sdpa-headwise-two_sigmoid-init=1", "sdpa-headwise-ns_sigmoid-around=0.75")
    assert [GateSpec.parse(slug).start_logit for slug in slugs] == [0.0, 0.0, 0.0]
    assert GateSpec.parse("sdpa-headwise").start_logit is None


@pytest.mark.parametrize(
    "source, d_in",
    [("first:3", 3), ("first:1/16", 6), ("first:1/200", 1), ("hybrid", 96 + 80), ("value", 20), ("output", 80)],
)
def test_the_source_says_how_many_channels_are_read(source: str, d_in: int):
    shapes = GateSpec.parse(f"sdpa-headwise-{source}").parameter_shapes(96, 8, 2, 10)
    assert shapes == {"g_proj.weight": (8, d_in)}


def test_rank_and_mlp_are_channels_or_a_share_of_what_is_read():
    low = GateSpec.parse("key-elementwise-rank=1/8-bias").parameter_shapes(96, 8, 2, 10)
    assert low == {"g_down.weight": (12, 96), "g_proj.weight": (20, 12), "g_proj.bias": (20,)}
    deep = GateSpec.parse("sdpa-headwise-head_slice-mlp=1/4").parameter_shapes(96, 8, 2, 10)
    assert deep == {"g_down.weight": (8, 3, 12), "g_down.bias": (8, 3), "g_proj.weight": (8, 1, 3)}


@pytest.mark.parametrize(
    "slug, widths, says",
    [
        ("sdpa-headwise-first:9", (8, 2, 1, 4), "reads 9 channels, and d_model=8"),
        ("query-headwise-head_slice", (8, 3, 1, 4), "d_model=8 does not divide into 3 slices"),
    ],
)
def test_a_source_that_the_layer_does_not_have_is_refused(slug: str, widths: tuple[int, ...], says: str):
    with pytest.raises(ValueError, match=says):
        GateSpec.parse(slug).shape(*widths)


def test_a_model_holds_the_gates_that_its_slugs_name():
    model = ModelConfig(gate="sdpa-headwise+value-elementwise")
    assert [g.slug for g in model.gate] == ["sdpa-headwise", "value-elementwise"]
    assert canonical(model)["gate"] == "sdpa-headwise+value-elementwise"
    assert ModelConfig(gate="none").gate == ModelConfig(gate=()).gate == ()


def test_one_site_has_one_gate():
    with pytest.raises(ConfigError, match="two gates at site 'sdpa'"):
        validate(ModelConfig, {"gate": "sdpa-headwise+sdpa-elementwise"})
