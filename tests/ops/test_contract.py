"""Every implementation keeps the numeric contract, the contract can be broken, and the specification is right."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import IMPLEMENTATIONS, choose, gated_attention
from gatelab.ops.gated_attention.cases import CASES, Case, inputs

REFERENCE = IMPLEMENTATIONS["reference"]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@by_case
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_implementation_keeps_the_contract(impl: str, dtype: torch.dtype, case: Case) -> None:
    verdicts = check(IMPLEMENTATIONS[impl], REFERENCE, inputs(case, seed=1, dtype=dtype))
    assert len(verdicts) == 4 + (case.gate is not None) + case.sink
    assert all(v.holds for v in verdicts), [v for v in verdicts if not v.holds]


def wrong_scale(**arguments: Any) -> Tensor:
    return REFERENCE(**arguments) * 1.02


def not_a_number(**arguments: Any) -> Tensor:
    out = REFERENCE(**arguments)
    return out + torch.zeros_like(out).index_fill_(1, torch.tensor([0]), math.nan)


def lost_gradient(**arguments: Any) -> Tensor:
    return REFERENCE(**{**arguments, "k_BSGK": arguments["k_BSGK"].detach()})


def all_gradients_lost(**arguments: Any) -> Tensor:
    return REFERENCE(**arguments).detach()


def sees_the_future(**arguments: Any) -> Tensor:
    return REFERENCE(**{**arguments, "is_causal": False})


def another_type(**arguments: Any) -> Tensor:
    return REFERENCE(**arguments).float()


def another_shape(**arguments: Any) -> Tensor:
    return REFERENCE(**arguments)[:, :, :1]


@pytest.mark.parametrize(
    ("candidate", "broken"),
    [
        (wrong_scale, {"output", "d q_BTHK", "d k_BSGK", "d v_BSGK", "d gate_logits_BTHK"}),
        (not_a_number, {"output"}),
        (lost_gradient, {"d k_BSGK"}),
        (all_gradients_lost, {"d q_BTHK", "d k_BSGK", "d v_BSGK", "d gate_logits_BTHK"}),
        (sees_the_future, {"output", "d q_BTHK", "d k_BSGK", "d v_BSGK", "d gate_logits_BTHK"}),
        (another_type, {"output"}),
        (another_shape, {"output", "d q_BTHK", "d k_BSGK", "d v_BSGK", "d gate_logits_BTHK"}),
    ],
)
def test_the_contract_is_broken_by(candidate: Callable[..., Tensor], broken: set[str]) -> None:
    arguments = inputs(Case("headwise", T=16, gate="sdpa-headwise"), seed=1, dtype=torch.bfloat16)
    assert {v.tensor for v in check(candidate, REFERENCE, arguments) if not v.holds} >= broken


def by_loops(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    *,
    is_causal: bool,
    mask_BTS: Tensor | None,
    sink_logit_H: Tensor | None,
) -> Tensor:
    """The definition, one query of one head at a time."""
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    activate = {"sigmoid": lambda z: 1 / (1 + (-z).exp()), "silu": lambda z: z / (1 + (-z).exp())}
    out_BTHK = torch.zeros_like(q_BTHK)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                g = h // (H // G)
                keys = [s for s in range(S) if not is_causal or s <= t + S - T]
                keys = [s for s in keys if mask_BTS is None or mask_BTS[b, t, s]]
                weights = [math.exp(float(q_BTHK[b, t, h] @ k_BSGK[b, s, g]) / math.sqrt(K)) for s in keys]
                total = sum(weights) + (0.0 if sink_logit_H is None else math.exp(float(sink_logit_H[h])))
                y_K = sum(w / total * v_BSGK[b, s, g] for w, s in zip(weights, keys, strict=True))
                if gate is not None:
                    heads = range(H) if gate.sharing == "shared" else [h]
                    scores = [activate[gate.activation](gate_logits_BTHK[b, t, i]) for i in heads]
                    score = sum(scores) / len(scores)
                    y_K = y_K * score if gate.form == "mul" else y_K + score
                out_BTHK[b, t, h] = y_K
    return out_BTHK


@by_case
def test_the_reference_is_the_definition(case: Case) -> None:
    small = Case(**{**vars(case), "B": 1, "T": min(case.T, 6), "K": 4})
    arguments = inputs(small, seed=2, dtype=torch.float64)
    del arguments["grad_BTHK"]
    with torch.no_grad():
        torch.testing.assert_close(REFERENCE(**arguments), by_loops(**arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_last_query_sees_the_last_key(impl: str) -> None:
    arguments = inputs(Case("cached", T=9, G=2), seed=3, dtype=torch.float64)
    q_BTHK, k_BSGK, v_BSGK = (arguments[n].detach() for n in ("q_BTHK", "k_BSGK", "v_BSGK"))
    whole = gated_attention(q_BTHK, k_BSGK, v_BSGK, impl=impl)
    for n in (1, 4):
        last = gated_attention(q_BTHK[:, -n:], k_BSGK, v_BSGK, impl=impl)
        torch.testing.assert_close(last, whole[:, -n:])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_keys_behind_the_causal_mask_may_be_anything(impl: str) -> None:
    arguments = inputs(Case("future", T=8), seed=4, dtype=torch.float32)
    q_BTHK, k_BSGK, v_BSGK = (arguments[n].detach() for n in ("q_BTHK", "k_BSGK", "v_BSGK"))
    before = gated_attention(q_BTHK, k_BSGK, v_BSGK, impl=impl)[:, :5]
    k_BSGK[:, 5:], v_BSGK[:, 5:] = math.nan, 1e30
    assert torch.equal(gated_attention(q_BTHK, k_BSGK, v_BSGK, impl=impl)[:, :5], before)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_large_logits_stay_finite(impl: str) -> None:
    arguments = inputs(Case("large", T=8), seed=5, dtype=torch.bfloat16)
    q_BTHK, k_BSGK, v_BSGK = (arguments[n].detach() for n in ("q_BTHK", "k_BSGK", "v_BSGK"))
    assert gated_attention(q_BTHK * 1e3, k_BSGK * 1e3, v_BSGK, impl=impl).isfinite().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty_inputs_give_empty_outputs(impl: str, empty: str) -> None:
    B, T = (0, 3) if empty == "batch" else (2, 0)
    q_BTHK, k_BSGK = torch.zeros(B, T, 4, 8), torch.zeros(B, 3, 2, 8)
    assert gated_attention(q_BTHK, k_BSGK, k_BSGK, impl=impl).shape == q_BTHK.shape


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["grouped-odd", "sink-gate-packed"])
def test_compiled_in_one_graph_equals_eager(impl: str, name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    compiled = torch.compile(gated_attention, fullgraph=True, backend="aot_eager")
    found = check(lambda **a: compiled(**a, impl=impl), REFERENCE, inputs(case, seed=6, dtype=torch.float32))
    assert all(v.holds for v in found), found
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_compiled_by_inductor_equals_eager() -> None:
    case = next(c for c in CASES if c.name == "grouped-odd")
    arguments = inputs(case, seed=6, dtype=torch.float32)
    del arguments["grad_BTHK"]
    compiled = torch.compile(gated_attention, fullgraph=True)
    torch.testing.assert_close(compiled(**arguments), gated_attention(**arguments))


def test_mistakes_are_told() -> None:
    q_BTHK, k_BSGK = torch.zeros(1, 3, 4, 8), torch.zeros(1, 3, 3, 8)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 8\).*G dividing H"):
        gated_attention(q_BTHK, k_BSGK, k_BSGK)
    with pytest.raises(ValueError, match="3 causal queries and 2 keys"):
        gated_attention(q_BTHK, q_BTHK[:, :2], q_BTHK[:, :2])
    with pytest.raises(ValueError, match="give both, or neither"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, None, GateSpec.parse("sdpa-headwise"))
    with pytest.raises(ValueError, match="'flash': expected one of auto, reference, sdpa"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, impl="flash")


def test_auto_says_what_it_chose() -> None:
    assert choose("auto") in IMPLEMENTATIONS and choose("reference") == "reference"
