"""Normalisers as configurations: one table, told apart by kind, refusals in sentences."""

import math

import pytest

from gatelab.config import ConfigError, ModelConfig, Run, validate
from gatelab.config.base import members
from gatelab.config.normaliser import NORMALISERS, Differential, Heads, Learned, Normaliser, Normalisers, Softmax
from gatelab.config.run import fingerprint

HEADS = Heads(n_heads=4, n_kv_heads=2, head_dim=8, layer=3, max_seq_len=64)


def test_the_union_holds_what_the_table_holds() -> None:
    assert members(Normalisers) == list(NORMALISERS.values())
    assert [n().kind for n in NORMALISERS.values()] == list(NORMALISERS)


@pytest.mark.parametrize("kind", NORMALISERS)
def test_a_kind_alone_names_a_normaliser_and_comes_back(kind: str) -> None:
    model = validate(ModelConfig, {"softmax": kind})
    assert model.softmax == NORMALISERS[kind]()
    assert validate(ModelConfig, model.model_dump(mode="json")) == model


def test_every_kind_has_a_fingerprint_of_its_own() -> None:
    names = {fingerprint(Run(model=ModelConfig(softmax=n())), "") for n in NORMALISERS.values()}
    assert len(names) == len(NORMALISERS)
    assert fingerprint(Run(model=ModelConfig(softmax=Softmax())), "") == fingerprint(Run(), "")


@pytest.mark.parametrize("normaliser", NORMALISERS.values(), ids=NORMALISERS)
def test_what_is_a_softmax_weighs_as_one(normaliser: type[Normaliser]) -> None:
    assert normaliser.is_softmax == (normaliser.weights is Normaliser.weights)
    assert normaliser.formula and normaliser.source


def test_parameters_have_the_shapes_of_the_layer() -> None:
    found = {kind: n().learned(HEADS) for kind, n in NORMALISERS.items()}
    assert NORMALISERS["sink-logit"](init=-1.5).learned(HEADS) == {"sink_logit_H": Learned((4,), -1.5)}
    assert found["key-bias"] == {"key_bias_GK": Learned((2, 8), 0.0, std=0.02)}
    vectors = {f"lambda_{name}_K": Learned((8,), 0.0, std=0.1) for name in ("q1", "k1", "q2", "k2")}
    assert found["differential"] == vectors | {"gain_2K": Learned((16,), 1.0)}
    assert {kind for kind, learned in found.items() if learned} == {"sink-logit", "key-bias", "differential"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "clip"}, "did you mean 'clipped'"),
        ({"kind": "clipped", "gamma": 0.1}, "softmax.gamma=0.1.*less than or equal to 0"),
        ({"kind": "clipped", "zeta": 0.9}, "softmax.zeta=0.9.*greater than or equal to 1"),
        ({"kind": "clipped", "alpha": 0}, "softmax.alpha=0.*greater than 0"),
        ({"kind": "sigmoid", "bias": math.inf}, "softmax.bias"),
        ({"kind": "softpick", "init": 1.0}, "softmax.init: no such key; allowed here: kind"),
    ],
)
def test_mistakes_are_told(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        validate(ModelConfig, {"softmax": given})


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(3, 1), (6, 3)])
def test_differential_takes_pairs_of_heads(n_heads: int, n_kv_heads: int) -> None:
    Differential().check(4, 2)
    with pytest.raises(ValueError, match=f"n_heads={n_heads} and n_kv_heads={n_kv_heads}.*even"):
        Differential().check(n_heads, n_kv_heads)
