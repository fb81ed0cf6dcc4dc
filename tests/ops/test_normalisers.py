"""What each normaliser must be: its paper's formula, differentiable, finite, and in the end a gate or a softmax."""

import math
from functools import partial
from typing import Any

import definition
import numpy as np
import pytest
import torch
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.config.normaliser import NORMALISERS, Clipped, Heads, KeyBias, Normaliser, OffByOne, Sigmoid, SinkLogit
from gatelab.ops.gated_attention import attention_weights, gated_attention
from gatelab.ops.gated_attention.cases import Case, inputs

B, T, H, G, K = 2, 7, 4, 2, 8
HEADS = Heads(H, G, K, layer=2, max_seq_len=12)
each_kind = pytest.mark.parametrize("kind", NORMALISERS)


def drawn(normaliser: Normaliser, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    q_BTHK = torch.randn(B, T, H, K, dtype=dtype, requires_grad=True)
    k_BSGK, v_BSGK = (torch.randn(B, T, G, K, dtype=dtype, requires_grad=True) for _ in range(2))
    learned = {n: torch.randn(p.shape, dtype=dtype, requires_grad=True) for n, p in normaliser.learned(HEADS).items()}
    return {
        "q_BTHK": q_BTHK,
        "k_BSGK": k_BSGK,
        "v_BSGK": v_BSGK,
        "normaliser": normaliser,
        "learned": learned,
        "heads": HEADS,
    }


SETTINGS = [
    *(n() for n in NORMALISERS.values()),
    SinkLogit(init=2.0),
    Clipped(gamma=-0.1, zeta=1.1),
    Clipped(alpha=1.0),
    Sigmoid(bias=-1.5),
]


@pytest.mark.parametrize("normaliser", SETTINGS, ids=str)
def test_each_is_the_formula_of_its_paper(normaliser: Normaliser) -> None:
    arguments = drawn(normaliser)
    rest = {"bias_BHTS": None, "window": None, "score_gate": None, "score_logits_BSH": None, "gate": None}
    documents_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7])
    rest |= {"is_causal": True, "mask_BTS": documents_BT[:, :, None] == documents_BT[:, None]}
    expected_BTHK, expected_BHTS, _ = definition.attention(**arguments, **rest)
    with torch.no_grad():
        found_BTHK = gated_attention(**arguments, **rest)
        del arguments["v_BSGK"], rest["gate"]
        found_BHTS, _ = attention_weights(**arguments, **rest)
    np.testing.assert_allclose(found_BTHK.numpy(), expected_BTHK, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found_BHTS.numpy(), expected_BHTS, rtol=1e-12, atol=1e-13)


@each_kind
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    arguments = drawn(NORMALISERS[kind]())
    names = ["q_BTHK", "k_BSGK", "v_BSGK", *arguments["learned"]]
    rest = {name: value for name, value in arguments.items() if name not in (*names, "learned")}
    bias_BHTS = torch.randn(1, H, T, T, dtype=torch.float64, requires_grad=True)

    def called(bias_BHTS: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        learned = {n: given.pop(n) for n in arguments["learned"]}
        return gated_attention(**given, **rest, learned=learned, bias_BHTS=bias_BHTS, window=4)

    values = [arguments.get(n, arguments["learned"].get(n)) for n in names]
    assert torch.autograd.gradcheck(called, (bias_BHTS, *values), fast_mode=True)


@each_kind
@pytest.mark.parametrize("size", [1e-30, 1e2], ids=["tiny-logits", "huge-logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_stay_finite(kind: str, size: float, dtype: torch.dtype) -> None:
    arguments = drawn(NORMALISERS[kind](), dtype)
    scaled = {n: (arguments[n].detach() * size).requires_grad_() for n in ("q_BTHK", "k_BSGK")}
    y_BTHK = gated_attention(**(arguments | scaled))
    y_BTHK.sum().backward()
    leaves = [*scaled.values(), arguments["v_BSGK"], *arguments["learned"].values()]
    assert y_BTHK.isfinite().all() and all(t.grad.isfinite().all() for t in leaves)


@each_kind
@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_one_key_of_an_extreme_logit_stays_finite(kind: str, logit: float) -> None:
    normaliser = NORMALISERS[kind]()
    logits_BHTS = torch.full((1, H, T, T), -math.inf)
    logits_BHTS[..., 2] = logit
    logits_BHTS.requires_grad_()
    learned = {n: torch.randn(p.shape) for n, p in normaliser.learned(HEADS).items()}
    slot_BHT1 = normaliser.slot_logits(torch.randn(1, T, H, K), learned)
    weights_BHTS = normaliser.weights(logits_BHTS, slot_BHT1, learned, HEADS)
    weights_BHTS.square().sum().backward()
    assert weights_BHTS.isfinite().all() and logits_BHTS.grad.isfinite().all()
    hidden = logits_BHTS.isneginf()
    assert (weights_BHTS[hidden] == 0).all() and (logits_BHTS.grad[hidden] == 0).all()


def as_a_gate(arguments: dict[str, Any], slot_BHT1: Tensor) -> Tensor:
    """The plain softmax's output times σ(lse − s), with the log-sum-exp taken from the logits."""
    q_BTHK, k_BSHK = arguments["q_BTHK"], arguments["k_BSGK"].repeat_interleave(H // G, dim=2)
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK) / math.sqrt(K)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
    lse_BHT1 = logits_BHTS.masked_fill(hidden, -math.inf).logsumexp(dim=-1, keepdim=True)
    y_BTHK = gated_attention(q_BTHK, arguments["k_BSGK"], arguments["v_BSGK"], impl="reference")
    return y_BTHK * (lse_BHT1 - slot_BHT1).sigmoid().transpose(1, 2)


def slot_of(kind: str, arguments: dict[str, Any]) -> Tensor:
    if kind == "off-by-one":
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    if kind == "sink-logit":
        return arguments["learned"]["sink_logit_H"][None, :, None, None]
    key_HK = arguments["learned"]["key_bias_GK"].repeat_interleave(H // G, dim=0)
    return torch.einsum("bthk,hk->bht", arguments["q_BTHK"], key_HK)[..., None] / math.sqrt(K)


@pytest.mark.parametrize("normaliser", [SinkLogit(), OffByOne(), KeyBias()], ids=lambda n: n.kind)
@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_a_slot_is_a_headwise_gate_on_the_log_sum_exp(impl: str, normaliser: Normaliser) -> None:
    arguments = drawn(normaliser)
    leaves = [*(arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK")), *arguments["learned"].values()]
    found = gated_attention(**arguments, impl=impl)
    expected = as_a_gate(arguments, slot_of(normaliser.kind, arguments))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_off_by_one_is_a_gate_that_reads_the_log_sum_exp(impl: str) -> None:
    arguments = drawn(OffByOne())
    gated = {n: v for n, v in arguments.items() if n not in ("normaliser", "learned")}
    logits_BTHK = torch.zeros(1, 1, H, 1, dtype=torch.float64)
    found = gated_attention(**gated, gate_logits_BTHK=logits_BTHK, gate=GateSpec.parse("sdpa-headwise-lse"), impl=impl)
    torch.testing.assert_close(found, gated_attention(**arguments, impl=impl), rtol=1e-12, atol=1e-13)


def test_clipped_without_room_to_clip_is_softmax() -> None:
    arguments = drawn(Clipped(gamma=0.0, zeta=1.0))
    plain = gated_attention(*(arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK")), impl="reference")
    torch.testing.assert_close(gated_attention(**arguments), plain, rtol=1e-12, atol=1e-13)


def test_clipped_needs_to_know_the_length() -> None:
    arguments = drawn(Clipped()) | {"heads": None}
    with pytest.raises(ValueError, match="max_seq_len is not known; state gamma"):
        gated_attention(**arguments)


def test_a_row_and_its_slot_sum_to_one() -> None:
    for kind in ("softmax", "sink-logit", "off-by-one", "key-bias"):
        arguments = drawn(NORMALISERS[kind]())
        del arguments["v_BSGK"]
        weights_BHTS, slot_BHT1 = attention_weights(**arguments)
        torch.testing.assert_close(weights_BHTS.sum(-1, keepdim=True) + slot_BHT1, torch.ones_like(slot_BHT1))
        assert (slot_BHT1 > 0).all() == (kind != "softmax")


def test_a_pair_of_differential_heads_weighs_alike() -> None:
    arguments = drawn(NORMALISERS["differential"]())
    arguments["learned"] = {n: 0.1 * value for n, value in arguments["learned"].items()}  # λ is then above 0
    del arguments["v_BSGK"]
    weights_BHTS, _ = attention_weights(**arguments)
    assert torch.equal(weights_BHTS[:, : H // 2], weights_BHTS[:, H // 2 :])
    assert (weights_BHTS < 0).any()


@pytest.mark.parametrize("kind", [kind for kind, n in NORMALISERS.items() if not n.is_softmax])
def test_no_fused_kernel_is_said_to_serve_what_it_does_not(kind: str) -> None:
    arguments = drawn(NORMALISERS[kind]())
    with pytest.raises(ValueError, match=f"impl='sdpa' computes a softmax, and {kind} is none"):
        gated_attention(**arguments, impl="sdpa")


@pytest.mark.parametrize("kind", ["softpick", "sigmoid", "clipped", "differential"])
def test_the_whole_matrix_compiles_in_one_graph(kind: str) -> None:
    arguments = inputs(Case("small", T=9, G=2, K=8, normaliser=kind), seed=1, dtype=torch.float32)
    del arguments["grad_BTHK"]
    compiled = torch.compile(partial(gated_attention, impl="auto"), fullgraph=True, backend="aot_eager")
    leaves = [*(arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK")), *arguments["learned"].values()]
    found, expected = (torch.autograd.grad(f(**arguments).square().sum(), leaves) for f in (compiled, gated_attention))
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected)
