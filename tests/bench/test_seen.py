"""Windows and documents of the op's benchmark: every candidate sees the same keys, and no others."""

from functools import partial
from typing import Any

import pytest
import torch

from gatelab.bench import candidates, timing
from gatelab.bench.benchmark import benchmark
from gatelab.bench.goals import judged
from gatelab.bench.held import HeldAttention
from gatelab.bench.plan import OpsPlan, plan
from gatelab.bench.seen import Seen
from gatelab.bench.slices import drawn
from gatelab.bench.timing import Budget, Timing
from gatelab.config import ConfigError
from gatelab.config.gate import GateSpec
from gatelab.ops import gated_attention as op

ELEMENTWISE = GateSpec.parse("sdpa-elementwise")
KINDS = [{}, {"window": 1}, {"window": 7}, {"window": 99}, {"documents": 3}, {"documents": 23, "window": 2}]
MASKED = [{"window": 7}, {"documents": 3}, {"documents": 3, "window": 4}]


def planned(**given: Any) -> OpsPlan:
    shape = {"tokens": 46, "length": 23, "heads": 4, "kv_heads": 2, "head_dim": 16, "seconds": 120.0}
    return plan("ops", "cpu", {**shape, **given})


def rows_of(monkeypatch: pytest.MonkeyPatch, **given: Any) -> list[Timing]:
    monkeypatch.setattr(timing, "_MOST", 3)
    return benchmark("ops", planned(gates="sdpa-elementwise", **given), lambda _: None).rows


@pytest.mark.parametrize("given", KINDS)
def test_a_query_sees_earlier_keys_of_its_window_and_its_document(given: dict[str, int]) -> None:
    seen, T = Seen.of(planned(**given)), 23
    n, window = given.get("documents", 1), given.get("window", T)
    ids = [t * n // T for t in range(T)]
    wanted = [[ids[t] == ids[s] and 0 <= t - s < window for s in range(T)] for t in range(T)]
    assert ids == sorted(ids) and set(ids) == set(range(n))
    every_T = torch.arange(T)
    assert seen.among(every_T[:, None], every_T).tolist() == wanted
    assert seen.is_plain == (seen.mask_TS is None) == (not given) == (not seen.given)
    if given:
        assert seen.mask_TS.tolist() == wanted and seen.pairs == sum(map(sum, wanted))
    else:
        assert seen.pairs == T * T / 2


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("given", [{}, *MASKED])
def test_candidates_attend_as_the_reference(monkeypatch: pytest.MonkeyPatch, given: dict[str, int]) -> None:
    """What is compiled as it is written, uncompiled, since a CPU is not given it."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    made = planned(**given)
    seen = Seen.of(made)
    checked = HeldAttention(made, ELEMENTWISE, drawn(made, ELEMENTWISE, batch=2, length=23), Budget.of(120.0))
    found = {c.name: checked.verdict(c) for c in candidates.attention_candidates(ELEMENTWISE, seen)}
    assert found.pop("gatelab reference") == found.pop("gatelab sdpa") == "holds"
    served = "not run: impl='flash" if given else "holds"
    assert all(found.pop(f"gatelab {name}").startswith(served) for name in ("flash", "flash-lean"))
    assert set(found.values()) == {"holds"}
    compiled = candidates.Candidate("compiled", candidates._compiled(ELEMENTWISE, seen))
    assert checked.verdict(compiled) == "holds"
    arguments = drawn(made, ELEMENTWISE, batch=2, length=23)
    arguments = {name: t.detach() for name, t in arguments.items() if name != "grad_BTHK"}
    expected = op.gated_attention(**arguments, gate=ELEMENTWISE, impl="reference", **seen.given)
    torch.testing.assert_close(candidates._flex(ELEMENTWISE, seen)(**arguments), expected)


@pytest.mark.parametrize("given", MASKED)
def test_who_sees_too_much_fails(given: dict[str, int]) -> None:
    made = planned(**given)
    checked = HeldAttention(made, None, drawn(made, None, batch=2, length=23), Budget.of(120.0))
    plainly = partial(op.gated_attention, impl="sdpa")
    assert checked.verdict(candidates.Candidate("plain", plainly)).startswith("FAIL ")


@pytest.mark.parametrize(("given", "said"), [({"window": 7}, ", window 7"), ({"documents": 3}, ", 3 documents")])
def test_a_benchmark_with_a_mask_times_attention_alone_and_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, int], said: str
) -> None:
    rows = rows_of(monkeypatch, **given)
    assert {row.what for row in rows} == {"layer", "ops"} and all(row.shape.endswith(f"float32{said}") for row in rows)
    for row in rows:
        if row.is_own and "flash" in row.candidate:
            assert row.contract.startswith("not run: impl='flash") and row.median_ms is None
        else:
            assert row.contract == ("" if row.what == "layer" else "holds") and row.median_ms > 0
    at = {"length": 8192, "head_dim": 128, "fastest_own": True}
    wide = [timing.replace(row, at=row.at | at, ratio=1.0) for row in rows if row.median_ms and row.what == "ops"]
    assert {row.goal for row in judged(wide, "NVIDIA H100")} == {None}


def test_a_floor_counts_the_pairs_that_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatelab.bench.floors import Rates
    from gatelab.bench.op_costs import ungated_ms

    computing = Rates(1e30, 1e9, 1)
    plain, window = (ungated_ms(planned(**given), computing, "forward") for given in ({}, {"window": 1}))
    assert plain == pytest.approx(1e-6 * 2 * 2 * 4 * 23 * 23 * 16)
    assert window == pytest.approx(1e-6 * 4 * 2 * 4 * 23 * 16)


def test_documents_are_as_many_as_tokens_at_most() -> None:
    with pytest.raises(ConfigError, match="documents=24 are more than the 23 tokens of a sequence"):
        planned(documents=24)
    for name in ("window", "documents"):
        with pytest.raises(ConfigError, match=f"{name}=0"):
            planned(**{name: 0})
