"""Experts given their tokens: every implementation keeps the contract, and the specification is right."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gatelab.config.moe import ACTIVATIONS, ClampedSwiGLU, SwiGLU
from gatelab.ops.contract import check
from gatelab.ops.expert_ffn import IMPLEMENTATIONS, choose, expert_ffn
from gatelab.ops.expert_ffn.cases import CASES, Case, inputs
from gatelab.ops.expert_ffn.rows import by_expert

REFERENCE = IMPLEMENTATIONS["reference"]
CPU = torch.device("cpu")
by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
by_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def forward_only(case: Case, *, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    arguments = inputs(case, seed=seed, dtype=dtype)
    del arguments["grad_BTHK"]
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in arguments.items()}


@by_case
@by_impl
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_implementation_keeps_the_contract(impl: str, dtype: torch.dtype, case: Case) -> None:
    verdicts = check(IMPLEMENTATIONS[impl], REFERENCE, inputs(case, seed=1, dtype=dtype))
    assert len(verdicts) == 6 + 3 * case.bias
    assert all(v.holds for v in verdicts), [v for v in verdicts if not v.holds]


def other_experts(**arguments: Any) -> Tensor:
    return REFERENCE(**{**arguments, "chosen_NE": arguments["chosen_NE"].roll(1, dims=0)})


def dropped_token(**arguments: Any) -> Tensor:
    return REFERENCE(**arguments).index_fill(0, torch.tensor([5]), 0.0)


def lost_weight_gradient(**arguments: Any) -> Tensor:
    return REFERENCE(**{**arguments, "weight_NE": arguments["weight_NE"].detach()})


@pytest.mark.parametrize(
    ("candidate", "broken"),
    [
        (other_experts, {"output", "d w1_XFD", "d w3_XFD", "d w2_XDF", "d weight_NE"}),
        (dropped_token, {"output", "d x_ND"}),
        (lost_weight_gradient, {"d weight_NE"}),
    ],
)
def test_the_contract_is_broken_by(candidate: Any, broken: set[str]) -> None:
    arguments = inputs(CASES[0], seed=1, dtype=torch.bfloat16)
    assert {v.tensor for v in check(candidate, REFERENCE, arguments) if not v.holds} >= broken


@by_case
def test_the_reference_is_the_definition(case: Case) -> None:
    arguments = forward_only(case, seed=2, dtype=torch.float64)
    x, chosen, weight, w1, w3, w2 = (value.numpy() for value in list(arguments.values())[:6])
    zeros = {"b1_XF": torch.zeros(w1.shape[:2]), "b3_XF": torch.zeros(w3.shape[:2]), "b2_XD": torch.zeros(w2.shape[:2])}
    b1, b3, b2 = (arguments.get(name, none).numpy() for name, none in zeros.items())
    y, kind, n_cut = np.zeros_like(x), case.activation, 0
    for n in range(case.N):
        for e, p in zip(chosen[n], weight[n], strict=True):
            a, b = w1[e] @ x[n] + b1[e], w3[e] @ x[n] + b3[e]
            if isinstance(kind, ClampedSwiGLU):
                n_cut += (a > kind.limit).sum() + (np.abs(b) > kind.limit).sum()
                a, b = np.minimum(a, kind.limit), np.clip(b, -kind.limit, kind.limit)
                hidden = (b + 1) * a / (1 + np.exp(-kind.alpha * a))
            else:
                hidden = a / (1 + np.exp(-a)) * b
            y[n] += p * (w2[e] @ hidden + b2[e])
    assert isinstance(kind, SwiGLU) or n_cut > 100
    np.testing.assert_allclose(REFERENCE(**arguments).numpy(), y, rtol=1e-11, atol=1e-11)


@by_impl
def test_an_expert_without_tokens_gets_a_zero_gradient(impl: str) -> None:
    case = next(c for c in CASES if c.n_idle)
    arguments = inputs(case, seed=3, dtype=torch.float32)
    expert_ffn(**{k: v for k, v in arguments.items() if k != "grad_BTHK"}, impl=impl).backward(arguments["grad_BTHK"])
    for name in ("w1_XFD", "w3_XFD", "w2_XDF"):
        gradient = arguments[name].grad
        assert gradient[-case.n_idle :].count_nonzero() == 0
        assert gradient[: -case.n_idle].flatten(1).norm(dim=1).min() > 0


@by_impl
def test_an_expert_that_overflows_reaches_only_the_tokens_that_chose_it(impl: str) -> None:
    arguments = inputs(Case("overflow", N=31, X=3, E=1), seed=4, dtype=torch.float32)
    with torch.no_grad():
        arguments["w1_XFD"][2], arguments["w3_XFD"][2] = 1e30, 1e30
    y_ND = expert_ffn(**{k: v for k, v in arguments.items() if k != "grad_BTHK"}, impl=impl)
    is_hit_N = (arguments["chosen_NE"] == 2).any(dim=1)
    assert 0 < is_hit_N.sum() < 31
    assert y_ND[~is_hit_N].isfinite().all() and not y_ND[is_hit_N].isfinite().all()
    y_ND[~is_hit_N].sum().backward()
    assert arguments["x_ND"].grad[~is_hit_N].isfinite().all() and arguments["w2_XDF"].grad[:2].isfinite().all()


@by_impl
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_bias_that_overflows_reaches_only_the_tokens_that_chose_its_expert(kind: str, impl: str) -> None:
    case = Case("overflow", N=31, X=3, E=1, bias=True, activation=ACTIVATIONS[kind]())
    arguments = inputs(case, seed=4, dtype=torch.float32)
    with torch.no_grad():
        for name in ("b1_XF", "b3_XF", "b2_XD"):
            arguments[name][2] = 3e38
    y_ND = expert_ffn(**{k: v for k, v in arguments.items() if k != "grad_BTHK"}, impl=impl)
    is_hit_N = (arguments["chosen_NE"] == 2).any(dim=1)
    assert 0 < is_hit_N.sum() < 31 and y_ND[~is_hit_N].isfinite().all()
    y_ND[~is_hit_N].sum().backward()
    assert arguments["x_ND"].grad[~is_hit_N].isfinite().all()
    for name in ("w1_XFD", "w3_XFD", "w2_XDF", "b1_XF", "b3_XF", "b2_XD"):
        assert arguments[name].grad[:2].isfinite().all() and arguments[name].grad[:2].count_nonzero() > 0


@pytest.mark.parametrize("case", [c for c in CASES if c.bias], ids=lambda c: c.name)
@by_impl
def test_a_bias_is_learned_from_the_tokens_of_its_expert_alone(impl: str, case: Case) -> None:
    arguments = inputs(case, seed=15, dtype=torch.float64 if impl == "reference" else torch.float32)
    expert_ffn(**{k: v for k, v in arguments.items() if k != "grad_BTHK"}, impl=impl).backward(arguments["grad_BTHK"])
    expected_XD = torch.zeros(case.X, case.D, dtype=torch.float64)
    for n, e in np.ndindex(*arguments["chosen_NE"].shape):
        share = arguments["weight_NE"][n, e].detach().double()
        expected_XD[arguments["chosen_NE"][n, e]] += share * arguments["grad_BTHK"][n].double()
    torch.testing.assert_close(arguments["b2_XD"].grad.double(), expected_XD, rtol=1e-5, atol=1e-5)
    n_busy = case.X - case.n_idle
    assert all(arguments[name].grad[n_busy:].count_nonzero() == 0 for name in ("b1_XF", "b3_XF", "b2_XD"))


@by_impl
def test_the_order_of_the_choices_does_not_matter(impl: str) -> None:
    arguments = forward_only(Case("order", X=5, E=3), seed=5, dtype=torch.float32)
    turned = {**arguments, **{n: arguments[n].flip(1) for n in ("chosen_NE", "weight_NE")}}
    torch.testing.assert_close(expert_ffn(**turned, impl=impl), expert_ffn(**arguments, impl=impl))


@by_impl
def test_the_weighted_sum_is_rounded_once(impl: str) -> None:
    arguments = forward_only(Case("rounding", N=40, X=3, E=2), seed=14, dtype=torch.bfloat16)
    one = torch.ones(40, 1)
    parts_E = [
        expert_ffn(**{**arguments, "chosen_NE": chosen_N1, "weight_NE": one}, impl=impl).float()
        for chosen_N1 in arguments["chosen_NE"].split(1, dim=1)
    ]
    sum_ND = sum(w_N1 * y_ND for w_N1, y_ND in zip(arguments["weight_NE"].split(1, dim=1), parts_E, strict=True))
    assert torch.equal(expert_ffn(**arguments, impl=impl), sum_ND.bfloat16())


@by_impl
def test_an_expert_chosen_twice_counts_twice(impl: str) -> None:
    arguments = forward_only(Case("once", N=9, E=1), seed=6, dtype=torch.float32)
    halves = {
        **arguments,
        "chosen_NE": arguments["chosen_NE"].expand(9, 2),
        "weight_NE": arguments["weight_NE"] * torch.tensor([0.25, 0.75]),
    }
    torch.testing.assert_close(expert_ffn(**halves, impl=impl), expert_ffn(**arguments, impl=impl))


@by_impl
def test_tokens_do_not_see_each_other(impl: str) -> None:
    arguments = forward_only(Case("tokens", N=17, X=4, E=2), seed=7, dtype=torch.float32)
    alone = {n: v[3:4] if n in ("x_ND", "chosen_NE", "weight_NE") else v for n, v in arguments.items()}
    torch.testing.assert_close(expert_ffn(**alone, impl=impl), expert_ffn(**arguments, impl=impl)[3:4])


@by_impl
def test_no_tokens_give_no_outputs_and_zero_gradients(impl: str) -> None:
    arguments = inputs(Case("empty", N=0), seed=8, dtype=torch.float32)
    del arguments["grad_BTHK"]
    y_ND = expert_ffn(**arguments, impl=impl)
    y_ND.sum().backward()
    assert y_ND.shape == (0, 32)
    assert arguments["w1_XFD"].grad.count_nonzero() == arguments["w2_XDF"].grad.count_nonzero() == 0


def test_pairs_are_sorted_by_expert_then_by_token() -> None:
    chosen_NE = torch.tensor([[3, 0], [0, 3], [3, 2]])
    order_M, position_M, ends_X = by_expert(chosen_NE, n_experts=5)
    assert order_M.tolist() == [1, 2, 5, 0, 3, 4]
    assert order_M[position_M].tolist() == [0, 1, 2, 3, 4, 5]
    assert ends_X.tolist() == [2, 2, 3, 6, 6] and ends_X.dtype == torch.int32


@by_case
def test_the_groups_are_the_tokens_that_chose_the_expert(case: Case) -> None:
    chosen_NE = inputs(case, seed=9, dtype=torch.float32)["chosen_NE"]
    order_M, _, ends_X = by_expert(chosen_NE, n_experts=case.X)
    groups = np.split(order_M.numpy() // case.E, ends_X[:-1].numpy())
    assert [g.tolist() for g in groups] == [
        np.nonzero((chosen_NE == e).any(1).numpy())[0].tolist() for e in range(case.X)
    ]


@pytest.mark.parametrize(
    ("impl", "dtype"),
    [("reference", torch.float32), ("reference", torch.bfloat16), ("grouped", torch.bfloat16)],
    ids=str,
)
def test_compiled_in_one_graph_equals_eager(impl: str, dtype: torch.dtype) -> None:
    compiled = torch.compile(expert_ffn, fullgraph=True, backend="aot_eager")
    for case in (CASES[1], next(c for c in CASES if c.n_idle), CASES[-1]):
        found = check(lambda **a: compiled(**a, impl=impl), REFERENCE, inputs(case, seed=10, dtype=dtype))
        assert all(v.holds for v in found), found
    torch._dynamo.reset()


def test_auto_is_grouped_where_a_gpu_has_the_product_and_the_widths_fit() -> None:
    def auto(d_model: int, dtype: torch.dtype, device: str) -> str:
        return choose("auto", d_model=d_model, d_expert=64, dtype=dtype, device=torch.device(device))

    assert auto(64, torch.bfloat16, "cuda") == "grouped"
    assert auto(60, torch.bfloat16, "cuda") == "reference"
    assert auto(64, torch.float32, "cuda") == "reference"
    assert auto(64, torch.bfloat16, "cpu") == "reference"


def test_mistakes_are_told() -> None:
    right = forward_only(Case("right", N=5, D=12, F=10), seed=11, dtype=torch.float32)
    with pytest.raises(ValueError, match="'sorted': expected one of auto, reference, grouped"):
        expert_ffn(**right, impl="sorted")
    with pytest.raises(ValueError, match=r"widths 12 and 10.*multiples of 4; or take impl='reference'"):
        expert_ffn(**right, impl="grouped")
    with pytest.raises(ValueError, match="float64 on cpu: grouped products take bfloat16, float16, float32"):
        choose("grouped", d_model=16, d_expert=16, dtype=torch.float64, device=CPU)
    with pytest.raises(ValueError, match="float32 on cuda: grouped products take bfloat16; or take"):
        choose("grouped", d_model=16, d_expert=16, dtype=torch.float32, device=torch.device("cuda"))
    with pytest.raises(ValueError, match="no grouped product for device 'mps'"):
        choose("grouped", d_model=16, d_expert=16, dtype=torch.bfloat16, device=torch.device("mps"))
    with pytest.raises(ValueError, match=r"\(4, 12, 10\), \(4, 12, 10\): expected \[N,D\]"):
        expert_ffn(**{**right, "w3_XFD": right["w2_XDF"]})
    with pytest.raises(ValueError, match=r"\(1, 5, 12\).*expected \[N,D\]"):
        expert_ffn(**{**right, "x_ND": right["x_ND"][None]})
    with pytest.raises(ValueError, match=r"\(5, 1\).*expected \[N,D\], \[N,E\], \[N,E\]"):
        expert_ffn(**{**right, "weight_NE": right["weight_NE"][:, :1]})
    with pytest.raises(ValueError, match=r"of types bfloat16, int64, float32, float32.*to x's floating type"):
        expert_ffn(**{**right, "x_ND": right["x_ND"].bfloat16()})
    with pytest.raises(ValueError, match="choices to int64"):
        expert_ffn(**{**right, "chosen_NE": right["chosen_NE"].float()})
    b_XF, b_XD = torch.zeros(4, 10), torch.zeros(4, 12)
    with pytest.raises(ValueError, match=r"b1, b3, b2 of shapes \(4, 10\), None, None: expected \(4, 10\), .*or none"):
        expert_ffn(**right, b1_XF=b_XF)
    with pytest.raises(ValueError, match=r"b1, b3, b2 of shapes .*\(4, 10\): expected \(4, 10\), \(4, 10\), \(4, 12\)"):
        expert_ffn(**right, b1_XF=b_XF, b3_XF=b_XF, b2_XD=b_XF)
    with pytest.raises(ValueError, match=r"w2, b1, b3, b2 of types .*float64: convert"):
        expert_ffn(**right, b1_XF=b_XF, b3_XF=b_XF, b2_XD=b_XD.double())
    with pytest.raises(
        ValueError, match=r"activation='relu': give a value of gatelab.config.moe, SwiGLU\(\) or Clamped"
    ):
        expert_ffn(**{**right, "activation": "relu"})


@pytest.mark.gpu
@by_case
@by_impl
def test_every_implementation_keeps_the_contract_on_a_gpu(impl: str, case: Case) -> None:
    arguments = inputs(case, seed=12, dtype=torch.bfloat16, device="cuda")
    assert all(v.holds for v in check(IMPLEMENTATIONS[impl], REFERENCE, arguments))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_grouped_never_makes_the_gpu_wait() -> None:
    arguments = inputs(Case("large", N=4096, D=256, F=128, X=16, E=4), seed=13, dtype=torch.bfloat16, device="cuda")
    upstream = arguments.pop("grad_BTHK")
    expert_ffn(**arguments, impl="grouped").backward(upstream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expert_ffn(**arguments, impl="grouped").backward(upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
