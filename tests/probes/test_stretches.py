"""A sequence read in stretches, with a cache, gives the rows of the sequence read whole."""

from collections.abc import Callable

import families
import pytest
import torch
from test_external import CONFIG, build, tokens
from torch import nn

from gatelab.probes.external import carries_over, observe, read_in_stretches
from gatelab.record import Row

pytest.importorskip("transformers")

LOOSE = {"massive_ratio": 1e-3}  # the median is read off counts


def rows(model: nn.Module, at_once: int | None) -> dict[tuple, float]:
    ids = tokens(batch=2, length=70)
    with observe(model, config=CONFIG) as recorder:
        recorder.tokens_BT = ids
        if at_once is None:
            with torch.no_grad():
                model(ids)
        else:
            read_in_stretches(model, ids, recorder, at_once=at_once)
    assert not recorder.unobserved
    return {where(row): row.value for row in recorder.rows()}


def where(row: Row) -> tuple:
    return tuple(getattr(row, name) for name in row.__slots__ if name != "value")


@pytest.mark.parametrize("at_once", [2, 23, 64, 69, 200])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "GptOss", "Gemma2", "Afmoe", "DeepseekV3", "Falcon"])
def test_stretches_add_up_to_the_whole(family: str, at_once: int) -> None:
    model = build(family, None)
    whole, parts = rows(model, None), rows(model, at_once)
    # Eager experts and long sums round differently by length; what it moves is below this.
    assert parts.keys() == whole.keys()
    for at, value in whole.items():
        assert parts[at] == pytest.approx(value, rel=LOOSE.get(at[3], 2e-4), abs=1e-4), at


def test_tokens_that_were_announced_must_come() -> None:
    model = build("Llama")
    message = "5 tokens were read, and 9 announced"
    with observe(model) as recorder, pytest.raises(ValueError, match=message), recorder.in_stretches(9):
        model(tokens(length=5), use_cache=True)


@pytest.mark.parametrize(
    ("family", "at_once", "message"), [("Llama", 1, "at_once=1: attention takes two"), ("T5", 8, "has two stacks")]
)
def test_what_cannot_be_read_in_stretches_is_refused(family: str, at_once: int, message: str) -> None:
    model = build(family)
    with observe(model) as recorder, pytest.raises(ValueError, match=message):
        read_in_stretches(model, tokens(), recorder, at_once=at_once)


def test_an_encoder_in_stretches_is_not_observed() -> None:
    model = build("Bert")
    with observe(model, ["sinks"]) as recorder, recorder.in_stretches(20):
        model(tokens(length=20))
    assert {u.why for u in recorder.unobserved} == {
        "its mask is neither causal nor a window's, which a sequence in stretches needs"
    }


def memory_of(read: Callable[[], None]) -> int:
    """Peak bytes of tensors that were alive at once while it ran, beyond those before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        read()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def test_memory_grows_as_the_sequence_and_not_as_its_square() -> None:
    model = build("Llama", max_position_embeddings=4096)

    def read(n: int) -> int:
        def once() -> None:
            with observe(model, ["sinks", "anywhere", "shape"], config=CONFIG) as recorder:
                read_in_stretches(model, tokens(batch=1, length=n), recorder, at_once=64)

        return memory_of(once)

    short, long = read(512), read(2048)
    assert long < 5 * short


@pytest.mark.parametrize(
    ("name", "carries"), [("llama", True), ("qwen3_next", True), ("bloom", True), ("jamba", False), ("rwkv", False)]
)
def test_models_whose_state_begins_anew_in_every_pass_are_refused(name: str, carries: bool) -> None:
    model, ids_BT = families.build(name), tokens(batch=1, length=40) % 30
    assert carries_over(model, ids_BT) is carries
    with observe(model, ["sinks"]) as recorder:
        if carries:
            read_in_stretches(model, ids_BT, recorder, at_once=16)
            assert {r.length for r in recorder.rows() if r.metric == "first_token_mass"} == {40}
        else:
            with pytest.raises(ValueError, match="run it whole"):
                read_in_stretches(model, ids_BT, recorder, at_once=16)


def test_what_is_generated_is_no_sequence_of_its_own() -> None:
    model = families.build("llama")
    ids_BT = tokens(batch=1, length=20) % 30
    found = []
    for n in (0, 3):
        with observe(model, ["massive"]) as recorder, torch.no_grad():
            cache = model(ids_BT, use_cache=True).past_key_values
            for _ in range(n):
                model(ids_BT[:, :1], past_key_values=cache, use_cache=True)
        found.append({where(row): row.value for row in recorder.rows()})
        assert not recorder.unobserved
    assert found[0] == found[1]
