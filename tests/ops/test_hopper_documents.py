"""Packed documents: spans against a loop, the argument against a mask, and `hopper` over emulated kernels and on a GPU."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_hopper import DEVICE, REFERENCE, attend, emulated, served  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gatelab.ops.contract import check
from gatelab.ops.gated_attention import gated_attention, hopper
from gatelab.ops.gated_attention.cases import Case, inputs
from gatelab.ops.gated_attention.documents import spans

pytestmark = pytest.mark.usefixtures("interpreted")


def numbered(*rows: tuple[int, ...], device: str = "cpu") -> Tensor:
    """Document numbers of rows of documents of these lengths, from 0."""
    return torch.stack(
        [torch.repeat_interleave(torch.arange(len(r)), torch.tensor(r)).to(device, torch.int32) for r in rows]
    )


ROWS = (((7,), (3, 4)), ((1, 1, 1), (1, 2, 0)), ((5, 1, 1, 9), (1, 13, 1, 1)), ((1,),))


@pytest.mark.parametrize("window", [None, 1, 4, 40])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_spans_are_those_of_a_loop(rows: tuple[tuple[int, ...], ...], is_causal: bool, window: int | None) -> None:
    ids_BT = numbered(*rows)
    found_4BT = spans(ids_BT * 3 - 1, is_causal, window)
    assert found_4BT.shape == (4, *ids_BT.shape) and found_4BT.dtype == torch.int32
    for b, ids in enumerate(ids_BT.tolist()):
        seen = [
            [
                s
                for s, other in enumerate(ids)
                if other == own and (s <= t or not is_causal) and abs(t - s) < (window or math.inf)
            ]
            for t, own in enumerate(ids)
        ]
        for t in range(len(ids)):
            by = [u for u, keys in enumerate(seen) if t in keys]
            assert [seen[t][0], seen[t][-1] + 1, by[0], by[-1] + 1] == found_4BT[:, b, t].tolist()
            assert len(seen[t]) == seen[t][-1] + 1 - seen[t][0] and len(by) == by[-1] + 1 - by[0]
    assert (found_4BT.diff(dim=2) >= 0).all()


def test_numbers_that_fall_are_refused_where_they_are() -> None:
    for ids in ([[0, 0, 1, 0]], [[0, 1, 2], [5, 4, 4]]):
        with pytest.raises(RuntimeError, match="segment_ids_BT falls along a row: impl='hopper' takes documents"):
            spans(torch.tensor(ids), True, None)


def test_spans_are_what_torch_expects_and_know_no_value() -> None:
    ids_BT = numbered((2, 1, 4), (7,))
    torch.library.opcheck(torch.ops.gatelab.document_spans, (ids_BT, True, 3))
    with FakeTensorMode():
        assert spans(torch.empty(2, 9, dtype=torch.int64, device="cuda"), False, None).shape == (4, 2, 9)


@pytest.mark.parametrize("impl", ["sdpa", "reference"])
@pytest.mark.parametrize("has_mask", [False, True])
def test_numbers_hide_what_their_mask_hides(impl: str, has_mask: bool) -> None:
    arguments = inputs(Case("packed", T=14, G=2, gate="sdpa-headwise", window=6), seed=1, dtype=torch.float32)
    del arguments["grad_BTHK"]
    ids_BT = torch.tensor([[4, 4, 1, 1, 4, 4, 4, 2, 2, 2, 2, 2, 2, 9], [0] * 14])  # these two know numbers that fall
    mask_BTS = ids_BT[:, :, None] == ids_BT[:, None]
    if has_mask:
        more = torch.rand(2, 14, 14, generator=torch.Generator().manual_seed(0)) < 0.7
        arguments["mask_BTS"] = more | torch.eye(14, dtype=torch.bool)
        mask_BTS = mask_BTS & arguments["mask_BTS"]
    found = gated_attention(**arguments, segment_ids_BT=ids_BT, impl=impl)
    assert torch.equal(found, gated_attention(**(arguments | {"mask_BTS": mask_BTS}), impl=impl))


def test_numbers_of_another_shape_are_refused() -> None:
    arguments = inputs(Case("cross", T=3, S=5), seed=1, dtype=torch.float32)
    del arguments["grad_BTHK"]
    why = r"segment_ids_BT of shape \(2, 5\) beside 3 queries and 5 keys: expected the number of each token's document"
    with pytest.raises(ValueError, match=why):
        gated_attention(**arguments, segment_ids_BT=torch.zeros(2, 5))


@pytest.mark.parametrize("impl", ["flash", "flash-lean", "short"])
def test_those_that_know_no_documents_say_so(impl: str) -> None:
    arguments = inputs(Case("packed", T=4), seed=1, dtype=torch.float32)
    del arguments["grad_BTHK"]
    with pytest.raises(ValueError, match=r"takes none of segment_ids_BT, mask_BTS, .* and segment_ids_BT came"):
        gated_attention(**arguments, segment_ids_BT=numbered((4,), (2, 2)), impl=impl)


def packed(case: Case, *rows: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 1) -> dict[str, Any]:
    """The arguments of a case whose rows are packed with documents of these lengths."""
    case = replace(case, B=len(rows), T=sum(rows[0]))
    return inputs(case, seed=seed, dtype=dtype, device=device) | {"segment_ids_BT": numbered(*rows, device=device)}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("changes", [{}, {"window": 5}, {"is_causal": False}], ids=str)
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_the_operator_over_emulated_kernels_keeps_the_contract(
    gate: str | None, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    case = replace(Case("packed", G=2), gate=gate, **changes)
    verdicts = check(attend, REFERENCE, packed(case, (1, 11, 1, 6), (19,), dtype=dtype, device=DEVICE))
    assert len(verdicts) == 4 + (gate is not None) and all(v.holds for v in verdicts), verdicts


def assert_as_torch_expects(arguments: dict[str, Any], window: int | None, **near: float) -> None:
    """Both operators with spans; `near`: tolerances."""
    given = [arguments[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    forward, backward = (getattr(torch.ops.gatelab, n).default for n in ("gated_hopper", "gated_hopper_backward"))
    spans_4BT = spans(arguments["segment_ids_BT"], True, window)
    torch.library.opcheck(forward, (*given, True, window, spans_4BT), **near)
    plain = [t if t is None else t.detach() for t in given]
    z, lse = forward(*plain, True, window, spans_4BT)
    torch.library.opcheck(backward, (torch.randn_like(z), *plain, z, lse, True, window, spans_4BT), **near)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("gate", [None, "sdpa-headwise"])
def test_the_operators_with_spans_are_what_torch_expects_of_them(gate: str | None) -> None:
    case = Case("checked", G=2, gate=gate)
    assert_as_torch_expects(packed(case, (1, 5), (3, 3), dtype=torch.float32, device=DEVICE), 3)


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("gate", [None, "sdpa-headwise", "sdpa-elementwise"])
def test_on_a_gpu_the_operators_with_spans_are_too(gate: str | None, window: int | None) -> None:
    arguments = packed(Case("checked", G=2, K=64, gate=gate), *UNEQUAL, dtype=torch.bfloat16, device="cuda")
    # dq is summed in no fixed order.
    assert_as_torch_expects(arguments, window, rtol=2**-6, atol=1e-3)


CUTS = "aot_eager_decomp_partition"  # what torch's compiler does before it makes kernels, which takes a minute


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_layers_compiled_in_one_graph_make_their_spans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, whole = [], torch.searchsorted
    monkeypatch.setattr(torch, "searchsorted", lambda *a, **k: made.append(a) or whole(*a, **k))
    a = packed(Case("packed", gate="sdpa-headwise"), (3, 5), (1, 7), dtype=torch.float32, device=DEVICE)
    leaves = [a[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]

    def layers(q: Tensor, k: Tensor, v: Tensor, logits: Tensor, ids_BT: Tensor) -> Tensor:
        for _ in range(3):
            q = hopper.attention(q, k, v, logits, is_causal=True, segment_ids_BT=ids_BT)[0]
        return q

    found, *wanted = (
        f(*leaves, a["segment_ids_BT"]) for f in (torch.compile(layers, fullgraph=True, backend=CUTS), layers)
    )
    assert len(made) == 2 * (1 + 3)  # first and last of each, once compiled and for each layer without
    gradients = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, *wanted)]
    for one, other in zip((found, *gradients[0]), (*wanted, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


UNEQUAL = ((1, 130, 1, 1, 255, 3, 8, 1), (400,), (128, 128, 144))
CASES = (
    Case("plain", K=128),
    Case("headwise", K=128, gate="sdpa-headwise"),
    Case("elementwise", K=128, gate="sdpa-elementwise"),
    Case("grouped", H=6, G=2, K=64, gate="sdpa-elementwise"),
    Case("one-kv-head", G=1, K=128, gate="sdpa-headwise"),
    Case("both-ways", K=128, gate="sdpa-headwise", is_causal=False),
    Case("both-ways-grouped", G=2, K=64, gate="sdpa-elementwise", is_causal=False),
    Case("window", G=2, K=128, gate="sdpa-elementwise", window=70),
    Case("window-both-ways", K=64, gate="sdpa-headwise", window=33, is_causal=False),
    Case("96-channels", G=2, K=96, gate="sdpa-elementwise"),
    Case("96-channels-window", K=96, gate="sdpa-headwise", window=150),
    Case("static", K=64, gate="sdpa-elementwise-static"),
)
ODD = (((333,), (1, 332)), ((1,) * 9 + (111,) + (1,) * 9, (128, 1)), ((1,), (1,)))


def holds(arguments: dict[str, Any], candidate: Any = attend) -> None:
    verdicts = check(candidate, REFERENCE, arguments)
    assert len(verdicts) >= 4 and all(v.holds for v in verdicts), verdicts


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu_it_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, case: Case) -> None:
    arguments = packed(case, *UNEQUAL, dtype=dtype, device="cuda")
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **k: plain(*a, **k).fill_(math.nan))
    holds(arguments)


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("rows", ODD, ids=["odd", "tokens", "one"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_on_a_gpu_odd_lengths_and_single_tokens_keep_it(is_causal: bool, rows: tuple[tuple[int, ...], ...]) -> None:
    case = Case("odd", G=2, K=128, gate="sdpa-elementwise", is_causal=is_causal)
    holds(packed(case, *rows, dtype=torch.bfloat16, device="cuda"))


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
def test_on_a_gpu_another_document_changes_no_bit() -> None:
    a = packed(Case("packed", G=2, K=128, gate="sdpa-headwise"), UNEQUAL[0], dtype=torch.bfloat16, device="cuda")
    first = attend(**a)
    with torch.no_grad():
        for name in ("q_BTHK", "k_BSGK", "v_BSGK"):
            a[name][:, :131] += 100.0
            a[name][:, 388:] -= 100.0
    assert torch.equal(first[:, 133:388], attend(**a)[:, 133:388]) and not torch.equal(first, attend(**a))


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_on_a_gpu_compiled_in_one_graph_it_keeps_the_contract() -> None:
    case = Case("packed", G=2, K=128, gate="sdpa-elementwise")
    holds(packed(case, *UNEQUAL, dtype=torch.bfloat16, device="cuda"), torch.compile(attend, fullgraph=True))
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise"])
def test_a_captured_graph_takes_other_documents(gate: str) -> None:
    a = packed(Case("packed", K=128, gate=gate), *UNEQUAL, dtype=torch.bfloat16, device="cuda")
    leaves = [a[n] for n in ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")]
    ids_BT, upstream = a["segment_ids_BT"].clone(), a["grad_BTHK"]

    def step(ids_BT: Tensor) -> list[Tensor]:
        z = hopper.attention(*leaves, is_causal=True, segment_ids_BT=ids_BT)[0]
        return [z, *torch.autograd.grad(z, leaves, upstream)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(ids_BT)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(ids_BT)
    for rows in (UNEQUAL, ((400,), (1,) * 400, (17, 383)), UNEQUAL[::-1]):
        ids_BT.copy_(numbered(*rows, device="cuda"))
        graph.replay()
        for found, wanted in zip(captured, step(numbered(*rows, device="cuda")), strict=True):
            torch.testing.assert_close(found, wanted, rtol=2**-6, atol=1e-3)  # dq is summed in no fixed order


@pytest.mark.gpu
@pytest.mark.usefixtures("served")
def test_through_the_public_function_it_is_the_same() -> None:
    a = packed(Case("packed", G=2, K=64, gate="sdpa-headwise"), *UNEQUAL, dtype=torch.bfloat16, device="cuda")
    same = attend(**a)
    del a["grad_BTHK"]
    assert torch.equal(partial(gated_attention, impl="hopper")(**a), same)
