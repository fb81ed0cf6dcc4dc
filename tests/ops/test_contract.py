"""Every implementation keeps the numeric contract, the contract can be broken, and the specification is right."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import definition
import numpy as np
import pytest
import torch
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.config.normaliser import NORMALISERS, Heads, SinkLogit
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import IMPLEMENTATIONS, attention_weights, choose, gated_attention
from gatelab.ops.gated_attention.cases import CASES, Case, apart, inputs, together

REFERENCE = partial(gated_attention, impl="reference")
by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
SERVED = [(impl, c) for c in CASES for impl in IMPLEMENTATIONS if impl == "reference" or c.is_softmax]


@pytest.mark.parametrize(("impl", "case"), SERVED, ids=lambda x: x if isinstance(x, str) else x.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_implementation_keeps_the_contract(dtype: torch.dtype, impl: str, case: Case) -> None:
    arguments = inputs(case, seed=1, dtype=dtype)
    candidate = partial(gated_attention, impl=impl)
    verdicts = check(together(candidate), together(REFERENCE), apart(arguments))
    differentiable = 3 + (case.gate is not None) + case.bias + (case.scores is not None) + len(arguments["learned"])
    assert len(verdicts) == 1 + differentiable
    broken = [v for v in verdicts if not v.holds]
    assert not broken


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
    return REFERENCE(**(arguments | {"is_causal": False}))


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


def without_forget_gradient(**arguments: Any) -> Tensor:
    return REFERENCE(**{**arguments, "score_logits_BSH": arguments["score_logits_BSH"].detach()})


def forget_gradient_is_not_a_number(**arguments: Any) -> Tensor:
    logits_BSH = arguments["score_logits_BSH"] * 1
    logits_BSH.register_hook(lambda d_BSH: d_BSH.index_fill(1, torch.tensor([3]), math.nan))
    return REFERENCE(**{**arguments, "score_logits_BSH": logits_BSH})


def forget_gradient_is_rounded_before_its_sum(**arguments: Any) -> Tensor:
    """As the gradients of channels of a kernel are."""
    logits_BSH = arguments["score_logits_BSH"]
    sums_BSH = torch.nn.functional.logsigmoid(logits_BSH.float()).cumsum(dim=1).transpose(1, 2)
    rows, columns = (sums_BSH * 1 for _ in range(2))
    for t in (rows, columns):
        t.register_hook(lambda d: d.bfloat16().float())
    bias_BHTS = rows[..., :, None] - columns[..., None, :]
    return REFERENCE(**{**arguments, "score_logits_BSH": None, "score_gate": None, "bias_BHTS": bias_BHTS})


@pytest.mark.parametrize(
    "candidate",
    [without_forget_gradient, forget_gradient_is_not_a_number, forget_gradient_is_rounded_before_its_sum],
)
def test_the_gradient_of_a_forget_gate_is_in_the_contract(candidate: Callable[..., Tensor]) -> None:
    case = next(c for c in CASES if c.name == "scores-forgotten-long")
    arguments = apart(inputs(case, seed=1, dtype=torch.bfloat16))
    broken = [v.tensor for v in check(together(candidate), together(REFERENCE), arguments) if not v.holds]
    assert broken == ["d score_logits_BSH"]


@by_case
def test_the_reference_is_the_definition(case: Case) -> None:
    shrunk = {"B": 1, "T": min(case.T, 6), "S": None if case.S is None else 8, "K": 4, "window": case.window and 3}
    arguments = inputs(Case(**(vars(case) | shrunk)), seed=2, dtype=torch.float64)
    del arguments["grad_BTHK"]
    y_BTHK, weights_BHTS, _ = definition.attention(**arguments)
    with torch.no_grad():
        found_BTHK = REFERENCE(**arguments)
        found_BHTS, _ = attention_weights(
            **{n: v for n, v in arguments.items() if n not in ("v_BSGK", "gate", "gate_logits_BTHK")}
        )
    np.testing.assert_allclose(found_BTHK.numpy(), y_BTHK, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found_BHTS.numpy(), weights_BHTS, rtol=1e-10, atol=1e-12)


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
@pytest.mark.parametrize(
    "name", ["grouped-odd", "sink-logit-gate-packed", "key-bias-everything", "lse-gate-decoded", "lse-gate-bias"]
)
def test_compiled_in_one_graph_equals_eager(impl: str, name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    compiled = torch.compile(partial(gated_attention, impl=impl), fullgraph=True, backend="aot_eager")
    arguments = inputs(case, seed=6, dtype=torch.float32)
    found = check(together(compiled), together(REFERENCE), apart(arguments))
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
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 8\): expected \[B,S,G,K\] of both"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK[:, :2])
    with pytest.raises(ValueError, match="3 causal queries and 2 keys"):
        gated_attention(q_BTHK, q_BTHK[:, :2], q_BTHK[:, :2])
    with pytest.raises(ValueError, match="give both, or neither"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, None, GateSpec.parse("sdpa-headwise"))
    with pytest.raises(ValueError, match="'flush': expected one of auto, reference, sdpa"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, impl="flush")
    with pytest.raises(ValueError, match=r"mask_BTS of shape \(3, 3\): expected \(1, 3, 3\)"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, mask_BTS=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"bias_BHTS of shape \(1, 3, 3, 3\)"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, bias_BHTS=torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match="window=0"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, window=0)
    with pytest.raises(ValueError, match=r"learned of shapes \{\}: sink-logit takes .*sink_logit_H.*\(4,\)"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, normaliser=SinkLogit())
    with pytest.raises(ValueError, match="does not describe q and k, which have 4 and 4 heads"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, heads=Heads(4, 2, 8))
    scores = GateSpec.parse("scores-headwise-forget")
    with pytest.raises(ValueError, match="scores and its logits come together"):
        gated_attention(q_BTHK, q_BTHK, q_BTHK, score_gate=scores)
    with pytest.raises(ValueError, match=r"forget.*needs is_causal=True"):
        logits_BSH = torch.zeros(1, 3, 4)
        gated_attention(q_BTHK, q_BTHK, q_BTHK, score_gate=scores, score_logits_BSH=logits_BSH, is_causal=False)


def test_mistakes_of_kind_and_place_are_told() -> None:
    q_BTHK, k_BSGK = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 2, 8)
    logits_BTH1, own = torch.zeros(2, 3, 4, 1), GateSpec.parse("sdpa-headwise")
    with pytest.raises(ValueError, match=r"expected \[B,T,H,K\], \[B,S,G,K\]$"):
        gated_attention(q_BTHK[0], k_BSGK, k_BSGK)
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 8\): expected"):
        gated_attention(q_BTHK, k_BSGK[:1], k_BSGK[:1])
    with pytest.raises(ValueError, match=r"mask_BTS of type torch.float32: expected torch.bool"):
        gated_attention(q_BTHK, k_BSGK, k_BSGK, mask_BTS=torch.ones(2, 3, 3))
    with pytest.raises(ValueError, match="3 queries and no key"):
        gated_attention(q_BTHK, k_BSGK[:, :0], k_BSGK[:, :0], is_causal=False)
    with pytest.raises(ValueError, match=r"gate_logits_BTHK of shape \(2, 3, 2, 1\): expected \(2, 3, 4, 8\)"):
        gated_attention(q_BTHK, k_BSGK, k_BSGK, logits_BTH1[:, :, :2], own)
    with pytest.raises(ValueError, match="give a GateSpec"):
        gated_attention(q_BTHK, k_BSGK, k_BSGK, logits_BTH1, "sdpa-headwise")
    with pytest.raises(ValueError, match="gate=out-elementwise has its place elsewhere"):
        gated_attention(q_BTHK, k_BSGK, k_BSGK, logits_BTH1, GateSpec.parse("out-elementwise"))
    with pytest.raises(ValueError, match="score_gate=sdpa-headwise has its place elsewhere"):
        gated_attention(q_BTHK, k_BSGK, k_BSGK, score_logits_BSH=logits_BTH1[..., 0], score_gate=own)


def test_auto_says_what_it_chose() -> None:
    assert choose("auto") == "sdpa" and choose("reference") == "reference"
    for kind, normaliser in NORMALISERS.items():
        assert choose("auto", normaliser()) == ("sdpa" if normaliser.is_softmax else "reference"), kind
    with pytest.raises(ValueError, match="softpick is none; take reference, or auto"):
        choose("sdpa", NORMALISERS["softpick"]())
