"""Where gates are: a third of the layers, or numbers; what cannot be is refused in a sentence."""

import pytest

from gatelab.config import BigramBackcopy, ConfigError, ModelConfig, Run, canonical, fingerprint, override, validate
from gatelab.config.gate_layers import gated, parse_layers


@pytest.mark.parametrize(
    ("depth", "first", "last"),
    [
        (2, (0,), (1,)),
        (3, (0,), (2,)),
        (4, (0,), (3,)),
        (5, (0, 1), (3, 4)),
        (24, tuple(range(8)), tuple(range(16, 24))),
    ],
)
def test_thirds_by_hand(depth, first, last):
    assert (gated("first-third", depth), gated("last-third", depth)) == (first, last)
    assert gated("all", depth) == tuple(range(depth))


def test_numbers_are_in_order_and_each_there_once():
    assert parse_layers([2, 0, 2]) == (0, 2) and parse_layers(1) == (1,)
    model = override(ModelConfig(gate="sdpa-headwise"), {"gate_layers": (3, 1)})
    assert model.gate_layers == (1, 3)
    (stack,) = model.architecture.stacks
    assert [bool(model.gates(stack, layer)) for layer in range(4)] == [False, True, False, True]
    assert model.gates(stack) == model.gate
    assert validate(ModelConfig, canonical(model)) == model


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"gate_layers": "first_third"},
            "expected all, first-third, last-third, or numbers .* did you mean 'first-third'",
        ),
        ({"gate_layers": (0, -1)}, "numbers of layers from 0"),
        ({"gate_layers": ()}, "numbers of layers from 0"),
        ({"gate_layers": True}, "numbers of layers from 0"),
        ({"gate_layers": (0, 4)}, r"gate_layers=\(0,4\): there are 4 layers, 0 to 3; name some of these"),
        ({"gate_layers": (0, 1, 2, 3)}, "of 4 layers are all; leave it out"),
        (
            {"gate_layers": "last-third", "n_layers": 1},
            "last-third of 1 layer are all; leave it out, or take more layers",
        ),
        ({"gate_layers": "last-third", "gate": "none"}, "there is none; leave it out, or state a gate"),
        (
            {"gate_layers": 2, "arch": "encoder-decoder", "n_encoder_layers": 2},
            r"gate_layers=\(2\): there are 2 layers of encoder_blocks",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(fields, says):
    with pytest.raises(ConfigError, match=says):
        validate(ModelConfig, {"gate": "sdpa-headwise", **fields})


def test_a_stack_without_gates_has_no_say_in_where_they_are():
    """An encoder of two layers that has none, beside a decoder of four."""
    fields = {"arch": "encoder-decoder", "n_encoder_layers": 2, "gate": "sdpa-headwise", "encoder_gate": "none"}
    for layers in ((2, 3), (0, 1)):
        model = validate(ModelConfig, fields | {"gate_layers": layers})
        encoder, decoder = model.architecture.stacks
        assert [i for i in range(4) if model.gates(decoder, i)] == list(layers)
        assert not any(model.gates(encoder, i) for i in range(2))
    with pytest.raises(ConfigError, match="there are 2 layers of encoder_blocks"):
        validate(ModelConfig, fields | {"gate_layers": (2, 3), "encoder_gate": "sdpa-headwise"})


def test_all_layers_is_the_default_and_changes_no_name():
    run = Run(model=ModelConfig(gate="sdpa-headwise"), data=BigramBackcopy())
    named = fingerprint(run, "")
    assert "gate_layers" not in run.model_dump(exclude_defaults=True)["model"]
    assert fingerprint(override(run, {"model.gate_layers": "all"}), "") == named
    assert fingerprint(override(run, {"model.gate_layers": "first-third"}), "") != named


def test_the_first_key_may_be_hidden_in_a_layer_whose_scores_are_not_gated():
    fields = {"gate": "scores-headwise-forget", "gate_layers": "last-third", "n_layers": 2}
    ModelConfig(**fields, first_hidden_from=((0,), ()))
    with pytest.raises(ValueError, match="a gate on the scores"):
        ModelConfig(**fields, first_hidden_from=((), (0,)))
