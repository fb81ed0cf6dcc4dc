"""What a benchmark times: defaults that are plans, and mistakes that are told."""

from typing import Any

import pytest

from gatelab.bench.plan import DEFAULTS, PLANS, plan, size
from gatelab.config import ConfigError
from gatelab.models.ladder import SIZES


@pytest.mark.parametrize(("kind", "device"), DEFAULTS)
def test_every_default_is_a_plan(kind: str, device: str) -> None:
    made = plan(kind, device, {"seconds": None})
    assert isinstance(made, PLANS[kind]) and made.device == device and made.seconds == 120


def test_there_are_defaults_for_every_kind_and_device() -> None:
    assert set(DEFAULTS) == {(kind, device) for kind in PLANS for device in ("cpu", "cuda")}


@pytest.mark.parametrize("kind", ["ops", "decode", "train"])
def test_no_gate_is_always_timed_and_first(kind: str) -> None:
    assert plan(kind, "cpu", {"gates": "sdpa-headwise"}).gates == ("none", "sdpa-headwise")
    assert plan(kind, "cpu", {"gates": "sdpa-headwise, none,sdpa-headwise"}).gates == ("none", "sdpa-headwise")


def test_key_value_heads_follow_the_heads_unless_stated() -> None:
    assert plan("ops", "cpu", {"heads": 6}).kv_heads == 6
    assert plan("ops", "cpu", {"heads": 6, "kv_heads": 3}).kv_heads == 3


def test_a_length_alone_gives_whole_sequences() -> None:
    made = plan("ops", "cpu", {"length": 100})
    assert made.tokens == 500 and made.batch == 5
    assert plan("ops", "cpu", {"length": 4096}).batch == 1


def test_a_size_is_a_name_or_its_widths() -> None:
    assert size("30m") == SIZES["30m"].model
    made = size("64x2x4x100")
    assert (made.d_model, made.n_layers, made.n_heads, made.vocab_size) == (64, 2, 4, 100)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("opz", {}, "expected one of ops, train, decode, probe; did you mean 'ops'"),
        ("ops", {"gates": "spda-headwise"}, "no site 'spda'"),
        ("ops", {"gates": "value-headwise"}, "expected none, or a gate at the site sdpa"),
        ("ops", {"gates": "sdpa-headwise-lse"}, "that reads the hidden state"),
        ("decode", {"gates": "sdpa-foo"}, "no word 'foo'"),
        ("train", {"gates": "sdpa-foo"}, "no word 'foo'"),
        ("ops", {"tokens": 0}, "tokens=0"),
        ("ops", {"length": 0}, "length=0"),
        ("ops", {"tokens": 100, "length": 64}, "not a number of whole sequences"),
        ("train", {"tokens": 100, "context": 64}, "not a number of whole sequences"),
        ("ops", {"heads": 4, "kv_heads": 3}, "does not divide heads=4"),
        ("decode", {"head_dim": 7}, "take an even number"),
        ("decode", {"batch": "1,x"}, "'x' is no whole number"),
        ("decode", {"batch": "0"}, "batch"),
        ("decode", {"cache": ","}, "nothing is listed"),
        ("train", {"tokens": 128, "context": 64, "micro_batch": 3}, "does not divide the 2 sequences of a step"),
        ("train", {"tokens": 256, "context": 64, "micro_batch": 3}, "does not divide the 4 sequences of a step"),
        ("train", {"sizes": "33m"}, "size '33m': expected one of 1m"),
        ("train", {"sizes": "10x2x3x5"}, "no even number a head"),
        ("train", {"sizes": "2x1x1x1"}, "a vocabulary of 1 nothing is to be predicted; take 2 at least"),
        ("train", {"sizes": "٦٤x2x4x100"}, "expected one of 1m"),
        ("train", {"sizes": "64x2x4x²"}, "expected one of 1m"),
        ("train", {"group": 0}, "group=0"),
        ("probe", {"length": "1"}, "length"),
        ("probe", {"seconds": float("nan")}, "seconds"),
        ("probe", {"seconds": -1.0}, "seconds"),
    ],
)
def test_mistakes_are_told(kind: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        plan(kind, "cpu", given)
    assert len(error.value.problems) == 1
