"""Stretched rotary frequencies: those of transformers, at their limits, and refused where they cannot be."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gatelab.config import ConfigError
from gatelab.config.base import Config, canonical, keys, validate
from gatelab.config.grid import override
from gatelab.config.rope import LinearScaling, Llama3Scaling, NTKScaling, RopeScaling, Unscaled, YaRN, rotary_dim


class Positions(Config):
    """Stands for a configuration with a scaling among its fields."""

    rope_scaling: RopeScaling = Unscaled()


YARN = YaRN(factor=4, original_seq_len=4096)
LLAMA3 = Llama3Scaling(factor=8, original_seq_len=4096)
KINDS = [Unscaled(), LinearScaling(factor=4), NTKScaling(factor=4), YARN, LLAMA3]


def released(
    rope_type: str, *, theta: float, seq_len: int | None = None, **parameters: Any
) -> tuple[np.ndarray, float]:
    """Frequencies and attention factor of transformers, for heads of 64 channels."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": rope_type, "rope_theta": theta, **parameters}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=16384, rope_parameters=parameters
    )
    frequency, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=seq_len)
    return frequency.double().numpy(), attention_factor


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_linear_frequencies_are_those_of_transformers(theta: float, fraction: float):
    expected, amplitude = released("linear", theta=theta, factor=4.0, partial_rotary_factor=fraction)
    scaling = LinearScaling(factor=4)
    np.testing.assert_allclose(scaling.frequencies(rotary_dim(64, fraction), theta), expected, rtol=1e-6)
    assert scaling.amplitude == amplitude == 1


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_ntk_is_the_dynamic_form_of_transformers_at_the_length_of_its_factor(fraction: float):
    # At twice the trained length, the dynamic form with factor 2 stretches its base as 2 · 2 − (2 − 1) = 3 does.
    expected, _ = released("dynamic", theta=10_000.0, factor=2.0, seq_len=2 * 16384, partial_rotary_factor=fraction)
    np.testing.assert_allclose(NTKScaling(factor=3).frequencies(int(64 * fraction), 10_000.0), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "scaling",
    [
        YARN,
        YaRN(factor=1, original_seq_len=4096),
        YaRN(factor=32, original_seq_len=2048, beta_fast=16, beta_slow=2),
        YaRN(factor=4, original_seq_len=4096, attention_factor=1.5),
        YaRN(factor=8, original_seq_len=8, beta_fast=4, beta_slow=0.5),
        YaRN(factor=4, original_seq_len=10**7),
    ],
)
@pytest.mark.parametrize("theta", [500.0, 10_000.0, 1_000_000.0])
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_yarn_is_that_of_transformers(scaling: YaRN, theta: float, fraction: float):
    expected, amplitude = released(
        "yarn",
        theta=theta,
        factor=scaling.factor,
        original_max_position_embeddings=scaling.original_seq_len,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        attention_factor=scaling.attention_factor,
        partial_rotary_factor=fraction,
    )
    np.testing.assert_allclose(scaling.frequencies(rotary_dim(64, fraction), theta), expected, rtol=2e-6)
    assert scaling.amplitude == pytest.approx(amplitude, rel=1e-12)


def test_ntk_raises_the_base_and_divides_the_slowest_frequency_alone_by_the_factor():
    plain, stretched = Unscaled().frequencies(64, 500.0), NTKScaling(factor=8).frequencies(64, 500.0)
    base = 500.0 * 8 ** (64 / 62)
    np.testing.assert_allclose(stretched, base ** (-np.arange(0, 64, 2) / 64), rtol=1e-12)
    assert stretched[0] == plain[0] == 1
    assert stretched[-1] == pytest.approx(plain[-1] / 8, rel=1e-12)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones_by_the_factor():
    plain, stretched = (np.array(s.frequencies(128, 10_000.0)) for s in (Unscaled(), YARN))
    turns = YARN.original_seq_len * plain / (2 * math.pi)
    # The ends of the ramp are rounded outwards, so the pairs next to an end are on the ramp already or still.
    speed = plain[0] / plain[1]
    fast, slow = turns > 32 * speed, turns < 1 / speed
    assert fast.sum() > 10 and slow.sum() > 10
    np.testing.assert_array_equal(stretched[fast], plain[fast])
    np.testing.assert_allclose(stretched[slow], plain[slow] / 4, rtol=1e-12)
    between = (stretched / plain)[~fast & ~slow]
    assert (np.diff(between) <= 0).all() and len(set(between)) > 10


def test_yarn_keeps_all_pairs_where_even_the_slowest_is_fast():
    """The released code slows them all here, since its ramp then ends before it begins."""
    assert YARN.kept_shares(16, 2.0) == [1.0] * 8


def test_a_context_of_less_than_one_turn_is_slowed_in_all_pairs_but_the_first():
    np.testing.assert_allclose(YaRN(factor=4, original_seq_len=2).kept_shares(8, 10_000.0), [1, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3,
        Llama3Scaling(factor=1, original_seq_len=4096),
        Llama3Scaling(factor=32, original_seq_len=8192),
        Llama3Scaling(factor=4, original_seq_len=2048, low_freq_factor=0.5, high_freq_factor=20),
        Llama3Scaling(factor=8, original_seq_len=4),
    ],
)
@pytest.mark.parametrize("theta", [500.0, 500_000.0])
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_llama3_is_that_of_transformers(scaling: Llama3Scaling, theta: float, fraction: float):
    expected, amplitude = released(
        "llama3",
        theta=theta,
        factor=scaling.factor,
        original_max_position_embeddings=scaling.original_seq_len,
        low_freq_factor=scaling.low_freq_factor,
        high_freq_factor=scaling.high_freq_factor,
        partial_rotary_factor=fraction,
    )
    np.testing.assert_allclose(scaling.frequencies(rotary_dim(64, fraction), theta), expected, rtol=2e-6)
    assert scaling.amplitude == amplitude == 1


def test_llama3_keeps_fast_pairs_and_divides_slow_ones_by_the_factor():
    plain, stretched = (np.array(s.frequencies(128, 500_000.0)) for s in (Unscaled(), LLAMA3))
    turns = LLAMA3.original_seq_len * plain / (2 * math.pi)
    fast, slow = turns > 4, turns < 1
    assert fast.sum() > 10 and slow.sum() > 10 and (~fast & ~slow).sum() > 3
    np.testing.assert_array_equal(stretched[fast], plain[fast])
    np.testing.assert_allclose(stretched[slow], plain[slow] / 8, rtol=1e-12)
    assert (np.diff((stretched / plain)[~fast & ~slow]) < 0).all()


@pytest.mark.parametrize("kind", [LinearScaling, NTKScaling, YaRN, Llama3Scaling])
def test_a_factor_of_one_changes_nothing(kind: type):
    trained = {"original_seq_len": 512} if kind in (YaRN, Llama3Scaling) else {}
    scaling = kind(factor=1, **trained)
    assert scaling.frequencies(48, 10_000.0) == Unscaled().frequencies(48, 10_000.0)
    assert scaling.amplitude == 1


@pytest.mark.parametrize("scaling", KINDS, ids=lambda s: s.kind)
def test_no_factor_overflows(scaling: Any):
    huge = scaling if scaling.kind == "none" else scaling.model_copy(update={"factor": 1e308})
    for theta in (1e-300, 1e300)[scaling.kind == "yarn" :]:
        assert all(math.isfinite(f) and f >= 0 for f in huge.frequencies(4, theta))


def test_a_word_names_the_kind_that_needs_nothing_else():
    assert Positions(rope_scaling="none") == Positions()
    assert Unscaled.model_validate("none") == Unscaled()


def test_a_scaling_is_written_in_the_dotted_grammar_and_comes_back_from_its_stored_form():
    change = {"rope_scaling": "yarn", "rope_scaling.factor": 4, "rope_scaling.original_seq_len": 4096}
    assert override(Positions(), change).rope_scaling == YARN
    assert {"rope_scaling.kind", "rope_scaling.factor", "rope_scaling.beta_fast"} < set(keys(Positions))
    for scaling in KINDS:
        assert validate(Positions, canonical(Positions(rope_scaling=scaling))).rope_scaling == scaling


@pytest.mark.parametrize(
    "value, says",
    [
        ("yarm", "rope_scaling='yarm': expected one of 'none', 'linear', 'ntk', 'yarn', 'llama3'; did you mean 'yarn'?"),
        ({"factor": 4}, "say its kind, one of 'none', 'linear', 'ntk', 'yarn', 'llama3'"),
        ("linear", "rope_scaling: linear without factor (the stretched context over the trained one): state it"),
        ({"kind": "yarn", "factor": 4}, "yarn without original_seq_len (the context in tokens that the weights were"),
        ("yarn", "yarn without factor (the stretched context over the trained one) and original_seq_len"),
        ({"kind": "ntk", "factor": 0.5}, "rope_scaling.factor=0.5: input should be greater than or equal to 1"),
        ({"kind": "ntk", "factor": math.inf}, "rope_scaling.factor=inf"),
        ({"kind": "none", "factor": 4}, "rope_scaling.factor: no such key; allowed here: kind"),
        ({"kind": "yarn", "factor": 4, "original_seq_len": 0}, "rope_scaling.original_seq_len=0"),
        ({"kind": "yarn", "factor": 4, "original_seq_len": 64, "attention_factor": 0}, "attention_factor=0"),
        ({"kind": "yarn", "factor": 4, "original_seq_len": 64, "beta_slow": 32}, "beta_fast=32 is not above beta_slow=32"),
        (
            {"kind": "llama3", "factor": 4, "original_seq_len": 64, "low_freq_factor": 4},
            "high_freq_factor=4 is not above low_freq_factor=4",
        ),
    ],
)  # fmt: skip
def test_a_scaling_that_cannot_be_is_refused(value: Any, says: str):
    with pytest.raises(ConfigError) as caught:
        validate(Positions, {"rope_scaling": value})
    (problem,) = caught.value.problems
    assert says in problem and problem.startswith("rope_scaling")


def test_a_scaling_built_in_python_says_what_is_missing():
    with pytest.raises(ConfigError, match="linear without factor"):
        LinearScaling()
    with pytest.raises(ValidationError, match="required"):
        YaRN.model_validate("yarn")


def test_what_a_scaling_cannot_stretch_is_refused():
    with pytest.raises(ValueError, match=r"rotary_dim=2 is one pair.*'linear'"):
        NTKScaling(factor=2).frequencies(2, 10_000.0)
    with pytest.raises(ValueError, match=r"theta=1: yarn needs .* a base above 1"):
        YARN.frequencies(8, 1.0)
    for dim in (5, 0, -2):
        with pytest.raises(ValueError, match=f"rotary_dim={dim}: .* take an even number above 0"):
            Unscaled().frequencies(dim, 10_000.0)
    for theta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"theta=.* a number above 0"):
            Unscaled().frequencies(8, theta)


@pytest.mark.parametrize(
    "head_dim, fraction, turning",
    [(64, 1.0, 64), (256, 0.25, 64), (96, 1 / 3, 32), (80, 0.1, 8), (5, 0.8, 4), (96, 0.354167, 34), (2, 1.0, 2)],
)
def test_the_first_channels_turn_in_pairs(head_dim: int, fraction: float, turning: int):
    assert rotary_dim(head_dim, fraction) == turning


@pytest.mark.parametrize(
    "head_dim, fraction, says",
    [
        (5, 1.0, "head_dim=5 is odd, and rope turns pairs of channels; take an even one"),
        (64, 0.3, "rope_fraction=0.3 of head_dim=64 is 19.2 channels, .* take rope_fraction=0.3125 for 20"),
        (10, 0.1, "is 1 channels, .* even number from 2 to 10; take rope_fraction=0.2 for 2"),
        (64, 0.0, "is 0 channels, .* take rope_fraction=0.03125 for 2"),
        (64, 1.5, "is 96 channels, .* take rope_fraction=1 for 64"),
        (64, -1.0, "take rope_fraction=0.03125 for 2"),
        (64, math.nan, "take rope_fraction=0.03125 for 2"),
        (1, 0.5, "take a head_dim of 2 or more"),
    ],
)
def test_a_fraction_that_is_no_pairs_is_refused_with_one_that_is(head_dim: int, fraction: float, says: str):
    with pytest.raises(ValueError, match=says):
        rotary_dim(head_dim, fraction)


def test_the_fraction_that_an_error_names_works():
    for head_dim in range(2, 300):
        for fraction in (0.0, 0.013, 0.1111, 0.377, 0.777, 1.7):
            try:
                rotary_dim(head_dim, fraction)
            except ValueError as error:
                _, _, advice = str(error).partition("take rope_fraction=")
                named, _, turning = advice.partition(" for ")
                assert rotary_dim(head_dim, float(named)) == int(turning)
