"""ModelConfig: one block by kinds, with what cannot be built refused before anything is."""

import pytest

from gatelab.config import ConfigError, ModelConfig, SinkLogit, canonical, override, validate
from gatelab.config.moe import ClampedSwiGLU, MoE


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
        ({"arch": "decodr"}, "did you mean 'decoder'?"),
        ({"output_map": "xsaa"}, "did you mean 'xsa'?"),
        ({"global_every": 2}, "global_every=2 needs a window"),
        ({"window": 0}, "window=0"),
        ({"kv_experts": "v-2top4"}, "4 of 2 experts cannot be active; take 2 at most"),
        ({"kv_experts": "q-2top2"}, "expected v-<experts>top<active> or kv-…"),
        ({"moe": {"n_experts": 4, "top_k": 2, "d_expert": 8}, "mlp": "relu"}, "leave out mlp and d_ff"),
        ({"cross_gate": "sdpa-headwise"}, "cross_gate belongs to arch=encoder-decoder"),
        ({"arch": "encoder", "n_encoder_layers": 2}, "n_encoder_layers belongs to arch=encoder-decoder"),
        ({"gate": "sdpa-headwise-first:300"}, "d_model=256 has no more; take fewer"),
        (
            {"d_model": 10, "n_heads": 4, "head_dim": 2, "gate": "sdpa-headwise-head_slice"},
            "does not divide into 4 slices",
        ),
        ({"arch": "encoder", "gate": "scores-headwise-forget"}, "this attention is not causal"),
        (
            {"gate": "sdpa-headwise-lse", "output_map": "xsa"},
            "belongs to the softmax and comes before output_map='xsa'",
        ),
        ({"arch": "encoder-decoder", "gate": "scores-headwise-forget"}, "this attention is not causal"),
        ({"arch": "encoder-decoder", "gate": "vga/output"}, "cross-attention does not have; state another cross_gate"),
        ({"arch": "encoder-decoder", "encoder_gate": "sdpa-headwise+sdpa-elementwise"}, "two gates at site 'sdpa'"),
    ],
)
def test_a_model_that_cannot_be_is_refused(fields: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        validate(ModelConfig, fields)
    (problem,) = caught.value.problems
    assert says in problem


def test_a_gate_that_one_attention_cannot_have_may_be_another_one_s():
    forgets = ModelConfig(
        arch="encoder-decoder", gate="scores-headwise-forget", cross_gate="none", encoder_gate="sdpa-headwise-value"
    )
    encoder, decoder = forgets.architecture.stacks
    assert [g.slug for g in forgets.gates(decoder)] == ["scores-headwise-forget"]
    assert forgets.gates(decoder, is_cross=True) == ()
    assert [g.slug for g in forgets.gates(encoder)] == ["sdpa-headwise-value"]
    assert validate(ModelConfig, canonical(forgets)) == forgets


def test_an_encoder_decoder_has_one_gate_everywhere_unless_it_says_otherwise():
    model = ModelConfig(arch="encoder-decoder", gate="sdpa-headwise", n_layers=3, n_encoder_layers=2)
    encoder, decoder = model.architecture.stacks
    assert model.gates(encoder) == model.gates(decoder) == model.gates(decoder, is_cross=True) == model.gate
    assert (model.depth(encoder), model.depth(decoder)) == (2, 3)


def test_odd_heads_are_fine_without_rope():
    assert ModelConfig(d_model=6, n_heads=2, positions="learned").d_model == 6


def test_a_word_names_a_normaliser():
    assert ModelConfig(softmax="sink-logit").softmax == SinkLogit()


def test_the_stored_form_gives_the_model_back():
    model = ModelConfig(gate="sdpa-headwise-bias-init=0.9", softmax=SinkLogit(init=-1.0), mlp="relu", qk_norm="rms")
    assert validate(ModelConfig, canonical(model)) == model


def test_an_activation_of_experts_is_a_word_or_a_kind_with_its_limits():
    sizes = {"n_experts": 4, "top_k": 2, "d_expert": 8}
    by_word = validate(ModelConfig, {"moe": {**sizes, "activation": "clamped_swiglu"}})
    assert by_word.moe.activation == ClampedSwiGLU(limit=7.0, alpha=1.702)
    assert validate(ModelConfig, canonical(by_word)) == by_word
    nearer = override(by_word, {"moe.activation.limit": 5.0})
    assert nearer.moe.activation == ClampedSwiGLU(limit=5.0)
    assert override(nearer, {"moe.activation": "swiglu"}).moe == MoE(**sizes)
    stated = override(ModelConfig(), {"moe": {**sizes, "activation": "clamped_swiglu"}, "moe.activation.alpha": 1.0})
    assert stated.moe.activation == ClampedSwiGLU(alpha=1.0)
    with pytest.raises(ConfigError, match=r"moe.activation.*'clamped_swiglu'"):
        validate(ModelConfig, {"moe": {**sizes, "activation": "clamped"}})
    with pytest.raises(ConfigError, match=r"moe\.activation.*limit=0"):
        override(nearer, {"moe.activation.limit": 0})


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        ModelConfig().d_model = 3


def test_every_so_many_layers_one_sees_everything():
    assert [ModelConfig(window=3, global_every=2).is_global(layer) for layer in range(4)] == [False, True] * 2
    assert not any(ModelConfig(window=3).is_global(layer) for layer in range(4))
    assert all(ModelConfig().is_global(layer) for layer in range(4))
