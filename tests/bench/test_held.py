"""Candidates for attention held to the contract on what they are timed on: by the reference, and by the first that held."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab.bench import held
from gatelab.bench.candidates import Candidate
from gatelab.bench.held import HeldAttention, queries
from gatelab.bench.plan import plan
from gatelab.bench.slices import drawn
from gatelab.bench.timing import OVER, Budget
from gatelab.config.gate import GateSpec
from gatelab.ops.gated_attention import gated_attention

T = 901
HEADWISE = GateSpec.parse("sdpa-headwise")
ASKED, LEFT_OUT = queries(T)[50], [t for t in range(T) if t not in queries(T)][50]
right = partial(gated_attention, gate=HEADWISE, impl="sdpa")


def held_one(dtype: str = "float32", seconds: float = 120.0) -> HeldAttention:
    given = {"tokens": 2 * T, "length": T, "heads": 2, "kv_heads": 1, "head_dim": 8, "dtype": dtype}
    made = plan("ops", "cpu", given)
    return HeldAttention(made, HEADWISE, drawn(made, HEADWISE, batch=2, length=T), Budget.of(seconds))


def verdicts(*calls: Callable[..., Tensor], checked: HeldAttention | None = None) -> list[str]:
    checked = checked or held_one()
    return [checked.verdict(Candidate(f"number {i}", call)) for i, call in enumerate(calls)]


def wrong_at(query: int, factor: float, **given: Tensor) -> Tensor:
    scale_T = torch.ones(T, dtype=given["q_BTHK"].dtype)
    scale_T[query : query + 1] = factor
    return right(**given) * scale_T[:, None, None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_that_is_right_holds(dtype: str) -> None:
    flash, lean = (partial(gated_attention, gate=HEADWISE, impl=impl) for impl in ("flash", "flash-lean"))
    assert verdicts(flash, right, lean, checked=held_one(dtype)) == ["holds"] * 3


def test_a_wrong_query_fails_whoever_is_first() -> None:
    assert verdicts(partial(wrong_at, ASKED, 1.1))[0].startswith("FAIL ")
    assert verdicts(partial(wrong_at, T - 1, 1.1))[0].startswith("FAIL ")


def test_a_query_that_the_reference_is_not_asked_for_is_compared_with_the_first_candidates() -> None:
    first, second, third = verdicts(right, partial(wrong_at, LEFT_OUT, 1.1), right)
    assert (first, third) == ("holds", "holds")
    assert second.startswith("FAIL output: 0.") and "from number 0's" in second


def test_a_lost_gradient_is_found_though_the_output_is_right() -> None:
    lost = torch.tensor([t not in queries(T) for t in range(T)])[:, None, None]

    def of_queries(q_BTHK: Tensor, **rest: Tensor) -> Tensor:
        return right(q_BTHK=torch.where(lost, q_BTHK.detach(), q_BTHK), **rest)

    def of_keys(k_BSGK: Tensor, **rest: Tensor) -> Tensor:
        return right(k_BSGK=torch.where(lost, k_BSGK.detach(), k_BSGK), **rest)

    said = verdicts(right, of_queries, of_keys)
    assert said[1].startswith("FAIL d q_BTHK: ") and "from number 0's" in said[1]
    # Of keys and values the reference's gradients are whole.
    assert said[2].startswith("FAIL d k_BSGK: error")


def test_what_is_not_finite_fails_though_there_is_nobody_to_compare_with() -> None:
    spoilt = (torch.arange(T) == LEFT_OUT)[:, None, None]
    # Its gradient is zero, and so are theirs whom the reference is asked for.
    assert verdicts(lambda **given: right(**given).masked_fill(spoilt, torch.nan)) == ["FAIL output: not finite"]
    assert verdicts(partial(wrong_at, LEFT_OUT, torch.inf))[0].startswith("FAIL d ")


def test_one_that_fails_is_nobodys_measure() -> None:
    assert [said[:5] for said in verdicts(partial(wrong_at, ASKED, 1.1), right, right)] == ["FAIL ", "holds", "holds"]


def test_without_room_to_remember_the_first_the_reference_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = iter(["", "not run: needs 9 GiB of 8", ""])
    monkeypatch.setattr(held, "no_room", lambda *_: next(rooms))
    assert verdicts(right, partial(wrong_at, LEFT_OUT, 1.1), checked=held_one()) == ["holds", "holds"]


def test_without_room_or_time_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts(right, checked=held_one(seconds=1e-9)) == [OVER]
    monkeypatch.setattr(held, "no_room", lambda *_: "not run: needs 9 GiB of 8")
    assert verdicts(right) == ["not run: needs 9 GiB of 8 for the contract"]


def test_what_raises_says_why() -> None:
    def refuses(**_: Any) -> Tensor:
        raise ValueError("takes no such heads\nmore")

    assert verdicts(refuses) == ["not run: takes no such heads"]


def test_queries_of_the_reference_lie_at_the_end_and_in_every_tile() -> None:
    assert queries(1) == [0] and queries(300) == list(range(300))
    for length in (901, 4096, 8191, 16_384):
        found = queries(length)
        assert len(found) <= 2 * 256 + 64 and found[-64:] == list(range(length - 64, length))
        assert {t // 128 for t in found} == set(range(-(-length // 128)))
        assert len({t % 128 for t in found[:-64]}) > 60
