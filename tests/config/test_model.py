"""ModelConfig: one block by kinds, with what cannot be built refused before anything is."""

import pytest

from gatelab.config import ConfigError, ModelConfig, SinkLogit, canonical, validate


def test_open_fields_are_derived_from_the_rest():
    model = ModelConfig(d_model=96, n_heads=3).resolved(vocab_size=1000, seq_len=128)
    assert (model.vocab_size, model.max_seq_len) == (1000, 128)
    assert (model.n_kv_heads, model.head_dim) == (3, 32)
    assert model.d_ff == 256  # 8/3 · 96, a multiple of 32 already
    assert ModelConfig(d_model=100, n_heads=2).resolved(10, 10).d_ff == 288
    assert ModelConfig(d_model=100, n_heads=2, mlp="relu").resolved(10, 10).d_ff == 400


def test_what_is_stated_is_not_derived():
    stated = ModelConfig(vocab_size=50, max_seq_len=8, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=7)
    assert stated.resolved(vocab_size=40, seq_len=4) == stated


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"n_heads": 6, "n_kv_heads": 4}, "take one of 1, 2, 3, 6"),
        ({"d_model": 100, "n_heads": 3}, "not a multiple of n_heads=3"),
        ({"d_model": 6, "n_heads": 2}, "head_dim=3 is odd"),
        ({"d_model": 0}, "d_model=0"),
        ({"norm": "batch"}, "expected one of 'rms', 'layer'"),
        ({"norm_eps": 0}, "norm_eps=0"),
        ({"rope_theta": float("inf")}, "rope_theta=inf"),
        ({"n_layers": 10**6}, "n_layers=1000000"),
        ({"d_model": 10**12}, "d_model=1000000000000"),
        ({"softmax": "sink"}, "'sink-logit'"),
    ],
)
def test_a_model_that_cannot_be_is_refused(fields: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        validate(ModelConfig, fields)
    (problem,) = caught.value.problems
    assert says in problem


def test_odd_heads_are_fine_without_rope():
    assert ModelConfig(d_model=6, n_heads=2, positions="learned").d_model == 6


def test_a_word_names_a_normaliser():
    assert ModelConfig(softmax="sink-logit").softmax == SinkLogit()


def test_the_stored_form_gives_the_model_back():
    model = ModelConfig(gate="sdpa-headwise-bias-init=0.9", softmax=SinkLogit(init=-1.0), mlp="relu", qk_norm="rms")
    assert validate(ModelConfig, canonical(model)) == model


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        ModelConfig().d_model = 3
