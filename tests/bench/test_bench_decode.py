"""gatelab bench decode: attention alone beside the layer, peers, and the gate's cost apart from its weights'."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab.bench import decode, decode_attention, decode_layers, timing
from gatelab.bench.benchmark import benchmark
from gatelab.bench.goals import judged
from gatelab.bench.plan import plan
from gatelab.bench.timing import Budget, Timing
from gatelab.nn.attention import GatedAttention
from gatelab.ops import gated_decode

SHAPE = {"batch": "2", "cache": "9", "heads": 4, "kv_heads": 2, "head_dim": 8, "seconds": 120.0}
GATES = ("none", "sdpa-headwise", "sdpa-elementwise")


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_MOST", 3)


def rows_of(**given: Any) -> list[Timing]:
    return benchmark("decode", plan("decode", "cpu", SHAPE | given), lambda _: None).rows


def test_the_layer_and_its_attention_are_timed_over_no_gate_beside_peers() -> None:
    rows = rows_of()
    alone = {(row.gate, row.candidate): row for row in rows if row.work == decode_attention.WORK}
    stock = {"none": "torch SDPA", **dict.fromkeys(GATES[1:], "torch SDPA, eager gate")}
    assert set(alone) == {(gate, name) for gate in GATES for name in ("gatelab reference", stock[gate])}
    assert all(
        row.contract == "holds" and row.against == "ungated" and row.ratio > 0
        for row in rows
        if "over" not in row.candidate
    )
    # The cache of a layer once: 2 sequences of 9 keys and values of 2 heads of 8 in float32.
    floors = {row.floor_ms for row in alone.values()}
    assert len(floors) == 1 and floors.pop() < min(row.floor_ms for row in rows if row.work == decode.WORK)
    assert {row.is_own for (_, name), row in alone.items() if name.startswith("torch")} == {False}


def test_only_what_is_ours_is_judged() -> None:
    verdicts = judged(rows_of(), "NVIDIA H100")
    assert {row.met for row in verdicts if row.is_own and row.gate != "none"} <= {"met", "missed"}
    assert {row.goal for row in verdicts if not row.is_own or row.gate == "none"} == {None}


def test_a_layer_of_equal_weights_has_them_and_the_same_cache() -> None:
    given = plan("decode", "cpu", SHAPE | {"heads": 16, "kv_heads": 16, "head_dim": 128})
    assert decode_layers.matched_width(given, "sdpa-elementwise") == 2560  # 5 matrices of 2048² as 4 of 2560 × 2048
    assert decode_layers.matched_width(given, "sdpa-headwise") == decode_layers.matched_width(given, "none") == 2048
    rows = {
        (row.gate, row.candidate): row
        for row in rows_of(gates="sdpa-elementwise", head_dim=16)
        if row.work == decode.WORK
    }
    plain, gated = rows["none", "eager"], rows["sdpa-elementwise", "eager"]
    equal = rows["none", "eager, equal weights to sdpa-elementwise"]
    again = rows["sdpa-elementwise", "eager, over equal weights"]
    assert (equal.against, again.against, again.median_ms) == ("ungated", "ungated of equal weights", gated.median_ms)
    assert plain.floor_ms < equal.floor_ms == pytest.approx(gated.floor_ms, rel=0.05)


@pytest.mark.parametrize("K", [8, 16])
def test_qwens_layer_decodes_what_ours_decodes_with_its_weights(K: int) -> None:
    pytest.importorskip("transformers.models.qwen3_next")
    given = plan("decode", "cpu", SHAPE | {"head_dim": K})
    torch.manual_seed(1)
    cache = decode._filled(given, 2, 9)
    layer = decode_layers.qwen3_next(given, cache)
    k_BSGK, v_BSGK = cache.k_LBSGK[0, :, :9], cache.v_LBSGK[0, :, :9]
    expected = layer.reference(**layer.arguments, k_BSGK=k_BSGK, v_BSGK=v_BSGK)
    once, twice = layer.step(), layer.step()
    # The cache is as it was before each step.
    assert torch.equal(once, twice)
    torch.testing.assert_close(once, expected, rtol=1e-4, atol=1e-5)


def test_another_layer_than_qwens_fails_and_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers.models.qwen3_next")
    right = decode_layers._turns
    monkeypatch.setattr(decode_layers, "_turns", lambda K, position, like: right(K, position + 1, like))
    rows = [row for row in rows_of(gates="sdpa-elementwise") if decode.QWEN in row.candidate]
    assert rows and all(row.contract.startswith("FAIL output") and row.median_ms is None for row in rows)


def test_a_wrong_peer_of_attention_fails_and_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode_attention._sdpa
    monkeypatch.setattr(decode_attention, "_sdpa", lambda *a, **given: right(*a, **given) * 1.02)
    rows = [row for row in rows_of() if row.candidate.startswith("torch SDPA")]
    assert len(rows) == 3 and all(row.contract.startswith("FAIL output") and row.ratio is None for row in rows)


def test_every_layers_cache_is_read_and_a_layers_time_is_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    given = plan("decode", "cpu", SHAPE | {"gates": "sdpa-headwise"})
    made, cache = decode_attention.candidates(given), decode._filled(given, 2, 9, n_layers=3)
    seen: list[Tensor] = []

    def counted(call: Any, k_BSGK: Tensor, **rest: Tensor) -> Tensor:
        seen.append(k_BSGK)
        return call(k_BSGK=k_BSGK, **rest)

    made = {key: replace(c, call=partial(counted, c.call)) for key, c in made.items()}
    rows = decode_attention.rows_of(given, 2, 9, made)
    rates = decode_attention.Rates(1e9, 1e12, 512)
    found = decode_attention.timed(given, rows, made, cache, rates, Budget.of(1e3), share=1.0)
    assert {t.data_ptr() for t in seen} == {k.data_ptr() for k in cache.k_LBSGK} and seen[0].shape == (2, 9, 2, 8)
    assert all(row.at["layers"] == 3 and row.floor_ms == 1e3 * 2 * 2 * 9 * 2 * 8 * 4 / 1e9 for row in found)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_and_what_is_compiled_attend_as_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are written, uncompiled, since a CPU is given neither."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 1, 4, 16), torch.randn(2, 9, 2, 16), torch.randn(2, 9, 2, 16)
    for word, width in (("none", 0), ("sdpa-headwise", 1), ("sdpa-elementwise", 16)):
        spec, logits = decode_attention._spec(word), torch.randn(2, 1, 4, width) if width else None
        expected = decode_attention._whole(q, k, v, logits, spec=spec)
        for make in (decode_attention._flex, decode_attention._compiled):
            torch.testing.assert_close(make(spec)(q_B1HK=q, k_BSGK=k, v_BSGK=v, logits=logits), expected)


def test_the_layer_that_is_timed_is_packed() -> None:
    cache = decode._filled(plan("decode", "cpu", SHAPE), 2, 9)
    layer = decode_layers.own(plan("decode", "cpu", SHAPE), "sdpa-headwise", cache, width=32)
    assert isinstance(layer.step, partial) and isinstance(layer.step.args[0], GatedAttention)
    assert layer.step.args[0].is_packed and torch.equal(layer.step(), layer.step())


def test_layers_behind_one_cache_keep_the_weights_that_they_joined() -> None:
    """A captured graph reads them at their place, long after another layer's step."""
    given = plan("decode", "cpu", SHAPE)
    cache = decode._filled(given, 2, 9)
    layers = [decode_layers.own(given, gate, cache, width=32) for gate in GATES]
    caches = [layer.step.args[2] for layer in layers]
    for layer in layers:
        layer.step()
    joined = [own.joint[0][1] for own in caches]
    for layer in layers:
        layer.step()
    assert [own.joint[0][1] is weight for own, weight in zip(caches, joined, strict=True)] == [True] * 3
    # The newest key is written to the one cache of all.
    assert {own.k_LBSGK.data_ptr() for own in caches} == {cache.k_LBSGK.data_ptr()} and not cache.joint


@pytest.mark.parametrize("part", ["_layers_timed", "_filled", "attention"])
def test_a_device_that_fails_takes_no_other_shapes_times_along(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    module, name = (decode_attention, "timed") if part == "attention" else (decode, part)
    right, calls = getattr(module, name), []

    def failing(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if 9 not in given and (part == "_filled" or len(calls) > 1):  # not the contract's
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
        return right(*given, **more)

    monkeypatch.setattr(module, name, failing)
    rows = rows_of(batch="2", cache="9,11", gates="none")
    first, second = ([r for r in rows if r.at["cache"] == n] for n in (9, 11))
    assert first and all(r.contract == "holds" and r.median_ms for r in first)
    failed = [r for r in second if r.median_ms is None]
    assert {r.contract for r in failed} == {"not run: CUDA error: an illegal memory access was encountered"}
    works = {"_layers_timed": {decode.WORK}, "attention": {decode_attention.WORK}}
    assert {r.work for r in failed} == works.get(part, {decode.WORK, decode_attention.WORK})


@pytest.mark.parametrize("longer", [300, 12])
def test_every_length_has_a_contract_of_its_own(monkeypatch: pytest.MonkeyPatch, longer: int) -> None:
    """Of what is wrong behind the longer cache alone, the shorter one's times stay."""
    right = gated_decode.IMPLEMENTATIONS["reference"]

    def wrong(q: Tensor, k: Tensor, *rest: Any, **slots: Any) -> Tensor:
        return right(q, k, *rest, **slots) * (1.02 if k.shape[1] >= longer else 1.0)

    monkeypatch.setitem(gated_decode.IMPLEMENTATIONS, "reference", wrong)
    for row in rows_of(cache=f"9,{longer}", gates="sdpa-headwise"):
        if row.at["cache"] == longer and row.candidate == "gatelab reference":
            assert row.contract.startswith("FAIL output: error") and (row.median_ms, row.ratio) == (None, None)
        else:
            assert row.contract == "holds" and row.median_ms > 0


@pytest.mark.parametrize("wrong", [0, 3, 5])
def test_a_wrong_sequence_of_a_batch_fails(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    """The first, one in the middle and the last; of others that they are finite."""
    right = decode_attention._sdpa

    def sdpa(*given: Any, **named: Any) -> Tensor:
        y_B1HK = right(*given, **named).clone()
        y_B1HK[wrong] *= 1.02
        y_B1HK[1] = torch.nan if wrong == 5 else y_B1HK[1]
        return y_B1HK

    monkeypatch.setattr(decode_attention, "_sdpa", sdpa)
    rows = [row for row in rows_of(batch="6", gates="none") if row.candidate == "torch SDPA"]
    assert rows and all(row.contract.startswith("FAIL output") and row.ratio is None for row in rows)


def test_a_layer_whose_width_is_no_multiple_of_a_unit_is_not_set_beside_itself() -> None:
    rows = rows_of(heads=6, kv_heads=3, head_dim=10)
    assert not any(row.gate == "none" and "over" in row.candidate for row in rows)
    assert not any("equal weights to none" in row.candidate for row in rows)
    assert all(row.contract == "holds" for row in rows)
