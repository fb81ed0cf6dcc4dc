"""The head with its cross-entropy: every implementation keeps the contract, and no logits are kept."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.ops.contract import check
from gatelab.ops.linear_cross_entropy import IMPLEMENTATIONS, choose, chunked, linear_cross_entropy
from gatelab.ops.linear_cross_entropy.cases import CASES, Case, inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFERENCE = IMPLEMENTATIONS["reference"]
CPU = torch.device("cpu")
# The last chunk is smaller than the others.
IN_CHUNKS = partial(chunked.linear_cross_entropy, chunk=4)
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    # A kernel is interpreted or compiled as this says when its file, and Triton's own, are imported.
    INTERPRET = ("TRITON_INTERPRET", "1" if DEVICE == "cpu" else "0")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(*INTERPRET)
        from gatelab.ops.linear_cross_entropy import kernels

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
by_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
by_function = pytest.mark.parametrize(
    "function", [*IMPLEMENTATIONS.values(), IN_CHUNKS], ids=[*IMPLEMENTATIONS, "in-chunks"]
)
by_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunked implementation with its kernel, on a CPU too, in blocks that a few words fill."""
    monkeypatch.setenv(*INTERPRET)
    monkeypatch.setattr(kernels, "_BLOCK", 16)
    monkeypatch.setattr(chunked, "_softmax_work", lambda logits: kernels.cross_entropy_)


def drawn(case: Case, *, seed: int, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    arguments = inputs(case, seed=seed, dtype=dtype)
    return arguments, arguments.pop("grad_BTHK")


def defined(x: np.ndarray, weight: np.ndarray, targets: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, ...]:
    """The loss of each model and the gradients of Σ upstream · loss, token by token."""
    loss, dx, dweight = np.zeros(len(x)), np.zeros_like(x), np.zeros_like(weight)
    for m, n in np.argwhere(targets != -100):
        logits = weight[m] @ x[m, n]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        loss[m] -= logits[targets[m, n]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        p[targets[m, n]] -= 1
        dx[m, n] = upstream[m] * (p @ weight[m])
        dweight[m] += upstream[m] * np.outer(p, x[m, n])
    return loss, dx, dweight


@by_case
@by_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_implementation_keeps_the_contract(function: Callable, dtype: torch.dtype, case: Case) -> None:
    verdicts = check(function, REFERENCE, inputs(case, seed=1, dtype=dtype))
    assert len(verdicts) == 3
    assert all(v.holds for v in verdicts), [v for v in verdicts if not v.holds]


@by_case
@by_function
def test_every_implementation_is_the_definition_in_float64(function: Callable, case: Case) -> None:
    case = Case(**{**vars(case), "weight_dtype": None})
    arguments, upstream_M = drawn(case, seed=2, dtype=torch.float64)
    loss_M = function(**arguments)
    loss_M.backward(upstream_M)
    expected = defined(*(t.detach().numpy() for t in (*arguments.values(), upstream_M)))
    found = (loss_M.detach(), arguments["x_MND"].grad, arguments["weight_MVD"].grad)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-11, atol=1e-11 * max(1.0, np.abs(b).max()))


@by_dtype
def test_types_are_those_of_the_arguments_and_the_loss_is_float32_at_least(dtype: torch.dtype) -> None:
    for function in (*IMPLEMENTATIONS.values(), IN_CHUNKS):
        for weight_dtype in (dtype, torch.float32):
            arguments, upstream_M = drawn(Case("types", weight_dtype=weight_dtype), seed=3, dtype=dtype)
            loss_M = function(**arguments)
            assert loss_M.dtype == torch.promote_types(dtype, torch.float32)
            loss_M.backward(upstream_M.to(loss_M.dtype))
            assert [arguments[n].grad.dtype for n in ("x_MND", "weight_MVD")] == [dtype, weight_dtype]


def test_it_is_what_the_loss_of_training_was() -> None:
    arguments, _ = drawn(Case("before", N=23), seed=4, dtype=torch.bfloat16)
    logits_NV = F.linear(arguments["x_MND"][0], arguments["weight_MVD"][0])
    before = F.cross_entropy(logits_NV.float(), arguments["targets_MN"][0], ignore_index=-100, reduction="sum")
    torch.testing.assert_close(REFERENCE(**arguments)[0], before, rtol=1e-6, atol=0)
    torch.testing.assert_close(IN_CHUNKS(**arguments)[0], before, rtol=1e-6, atol=0)


def shifted(**arguments: Any) -> Tensor:
    return REFERENCE(**{**arguments, "targets_MN": arguments["targets_MN"].roll(1, dims=1)})


def without_last_chunk(**arguments: Any) -> Tensor:
    cut = {n: arguments[n][:, :32] for n in ("x_MND", "targets_MN")}
    return IN_CHUNKS(**{**arguments, **cut})


def with_unscaled_gradients(**arguments: Any) -> Tensor:
    loss_M = REFERENCE(**arguments)
    return loss_M.detach() + (loss_M - loss_M.detach()) * 2


@pytest.mark.parametrize(
    ("candidate", "broken"),
    [
        (shifted, {"output", "d x_MND", "d weight_MVD"}),
        (without_last_chunk, {"output", "d x_MND", "d weight_MVD"}),
        (with_unscaled_gradients, {"d x_MND", "d weight_MVD"}),
    ],
)
def test_the_contract_is_broken_by(candidate: Any, broken: set[str]) -> None:
    arguments = inputs(CASES[1], seed=5, dtype=torch.bfloat16)
    assert {v.tensor for v in check(candidate, REFERENCE, arguments) if not v.holds} == broken


@by_function
def test_stacked_models_are_as_each_alone(function: Callable) -> None:
    arguments, upstream_M = drawn(Case("stack", M=3), seed=6, dtype=torch.float32)
    function(**arguments).backward(upstream_M)
    for m in range(3):
        alone = {n: t.detach()[m : m + 1].requires_grad_(t.requires_grad) for n, t in arguments.items()}
        function(**alone).backward(upstream_M[m : m + 1])
        for n in ("x_MND", "weight_MVD"):
            torch.testing.assert_close(alone[n].grad[0], arguments[n].grad[m], rtol=1e-5, atol=1e-6)


@by_function
def test_ignored_targets_give_no_loss_and_exactly_zero_gradients(function: Callable) -> None:
    arguments, upstream_M = drawn(Case("ignored", M=2), seed=7, dtype=torch.bfloat16)
    function(**arguments).backward(upstream_M.float())
    is_ignored_MN = arguments["targets_MN"] == -100
    dx_MND = arguments["x_MND"].grad
    assert dx_MND[is_ignored_MN].count_nonzero() == 0 and dx_MND[~is_ignored_MN].abs().amax(dim=-1).min() > 0
    kept = {**arguments, "x_MND": arguments["x_MND"].detach().masked_fill(is_ignored_MN[..., None], 3.0)}
    torch.testing.assert_close(function(**kept), function(**arguments))


@by_function
def test_a_number_of_the_vocabulary_may_be_the_ignored_one(function: Callable) -> None:
    arguments, _ = drawn(Case("pad", ignored_every=0, V=7), seed=8, dtype=torch.float64)
    marked_MN = arguments["targets_MN"].masked_fill(arguments["targets_MN"] == 3, -100)
    assert (marked_MN == -100).any()
    torch.testing.assert_close(function(**arguments, ignored=3), function(**{**arguments, "targets_MN": marked_MN}))


@by_impl
def test_all_targets_ignored_give_zero_and_zero_gradients(impl: str) -> None:
    arguments, upstream_M = drawn(next(c for c in CASES if c.name == "all-ignored"), seed=9, dtype=torch.bfloat16)
    loss_M = linear_cross_entropy(**arguments, impl=impl)
    loss_M.backward(upstream_M.float())
    assert loss_M.tolist() == [0.0, 0.0]
    assert arguments["x_MND"].grad.count_nonzero() == arguments["weight_MVD"].grad.count_nonzero() == 0


@by_impl
def test_no_tokens_give_no_loss_and_zero_gradients(impl: str) -> None:
    arguments, upstream_M = drawn(Case("empty", M=2, N=0), seed=10, dtype=torch.float32)
    loss_M = linear_cross_entropy(**arguments, impl=impl)
    loss_M.backward(upstream_M)
    assert loss_M.tolist() == [0.0, 0.0] and arguments["weight_MVD"].grad.count_nonzero() == 0
    assert arguments["x_MND"].grad.shape == (2, 0, 24)


@by_function
def test_a_slice_of_x_is_as_its_copy(function: Callable) -> None:
    arguments, upstream_M = drawn(Case("slice", M=3), seed=11, dtype=torch.float32)
    whole_MND = torch.randn(3, 40, 48, requires_grad=True)
    targets_MN = torch.randint(0, 61, (3, 40))
    for cut in (lambda t: t[:, :-1, :24], lambda t: t[:, 1:, ::2], lambda t: t[..., :24].flip(0)[:, ::3]):
        x_MND, part_MN = cut(whole_MND), cut(targets_MN[..., None].expand(-1, -1, 48))[..., 0]
        loss_M = function(x_MND, arguments["weight_MVD"], part_MN)
        copy_MND = x_MND.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        expected_M = function(copy_MND, arguments["weight_MVD"], part_MN.contiguous())
        torch.testing.assert_close(loss_M, expected_M)
        (dx_MND,) = torch.autograd.grad(loss_M, x_MND, upstream_M)
        (expected_MND,) = torch.autograd.grad(expected_M, copy_MND, upstream_M)
        torch.testing.assert_close(dx_MND, expected_MND)


def test_gradients_are_those_of_finite_differences() -> None:
    arguments, _ = drawn(Case("differences", M=2, N=6, D=3, V=5, ignored_every=4), seed=12, dtype=torch.float64)
    targets_MN = arguments.pop("targets_MN")
    assert torch.autograd.gradcheck(lambda x, w: IN_CHUNKS(x, w, targets_MN), tuple(arguments.values()))


def test_the_gradient_of_a_float32_weight_is_not_rounded_to_the_type_of_x() -> None:
    arguments, _ = drawn(Case("digits", N=64, weight_dtype=torch.float32), seed=13, dtype=torch.bfloat16)
    exact = {n: t.detach().double().requires_grad_() if t.is_floating_point() else t for n, t in arguments.items()}
    exact["weight_MVD"] = arguments["weight_MVD"].detach().bfloat16().double().requires_grad_()
    errors = []
    REFERENCE(**exact).sum().backward()
    for function in (REFERENCE, IN_CHUNKS):
        arguments["weight_MVD"].grad = None
        function(**arguments).sum().backward()
        errors.append((arguments["weight_MVD"].grad - exact["weight_MVD"].grad).norm().item())
    assert errors[1] < errors[0]
    assert arguments["weight_MVD"].grad.bfloat16().float().ne(arguments["weight_MVD"].grad).any()


def test_a_small_upstream_number_is_not_rounded_to_the_type_of_x() -> None:
    arguments, _ = drawn(Case("upstream"), seed=14, dtype=torch.bfloat16)
    loss_M = IN_CHUNKS(**arguments)
    (one_MND,) = torch.autograd.grad(loss_M, arguments["x_MND"], torch.ones(1), retain_graph=True)
    (third_MND,) = torch.autograd.grad(loss_M, arguments["x_MND"], torch.full((1,), 1 / 3))
    assert torch.equal(third_MND, (one_MND.double() / 3).bfloat16())


def test_autocast_does_not_change_the_type_that_chunks_compute_in() -> None:
    arguments, _ = drawn(Case("autocast", M=2), seed=27, dtype=torch.float32)
    expected = torch.autograd.grad(IN_CHUNKS(**arguments).sum(), arguments["x_MND"])
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(IN_CHUNKS(**arguments).sum(), arguments["x_MND"])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_graph_may_be_kept_and_gradients_of_several_parts_add_up() -> None:
    arguments, upstream_M = drawn(Case("twice", M=2), seed=15, dtype=torch.float32)
    loss_M = IN_CHUNKS(**arguments)
    loss_M.backward(upstream_M, retain_graph=True)
    once = arguments["weight_MVD"].grad.clone()
    loss_M.backward(upstream_M)
    torch.testing.assert_close(arguments["weight_MVD"].grad, 2 * once)


def test_no_graph_of_the_gradients_is_made_in_silence() -> None:
    arguments, _ = drawn(Case("second"), seed=16, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match=r"create_graph=True.*take impl='reference'"):
        torch.autograd.grad(IN_CHUNKS(**arguments).sum(), arguments["x_MND"], create_graph=True)


@pytest.mark.parametrize("needed", [(), ("x_MND",), ("weight_MVD",), ("x_MND", "weight_MVD")], ids=str)
def test_only_gradients_that_are_needed_are_computed(needed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _ = drawn(Case("needed"), seed=17, dtype=torch.float32)
    calls = []
    turn = chunked._turn

    def watched(*a: Any) -> Tensor:
        calls.append((a[4] is not None, a[5] is not None))
        return turn(*a)

    monkeypatch.setattr(chunked, "_turn", watched)
    for n in ("x_MND", "weight_MVD"):
        arguments[n].requires_grad_(n in needed)
    loss_M = IN_CHUNKS(**arguments)
    assert set(calls) == {("x_MND" in needed, "weight_MVD" in needed)} and len(calls) == 10
    assert loss_M.requires_grad == bool(needed)
    if needed:
        for found in torch.autograd.grad(loss_M, [arguments[n] for n in needed]):
            assert found.abs().max() > 0
    calls.clear()
    with torch.no_grad():
        torch.testing.assert_close(IN_CHUNKS(**arguments), loss_M.detach())
    assert set(calls) == {(False, False)}


@pytest.mark.parametrize("has_grad", [True, False])
def test_no_tensor_is_larger_than_a_chunk_of_logits(has_grad: bool) -> None:
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                self.n = max(self.n, t.numel() if isinstance(t, Tensor) else 0)
            return out

    arguments, _ = drawn(Case("memory", M=2, N=1000, D=3, V=500), seed=18, dtype=torch.float32)
    tensors = [t.detach() for t in arguments.values()]
    with Largest() as largest:
        chunked._loss._init_fn(*tensors, -100, 7, has_grad, has_grad)
    assert largest.n == 2 * 7 * 500
    with Largest() as largest:
        REFERENCE(**arguments)
    assert largest.n == 2 * 1000 * 500


def test_chunks_are_equal_and_of_the_size_that_is_written() -> None:
    cuda = torch.device("cuda")
    assert chunked.chunk_of(1, 8, 61, torch.float32, CPU) == 8
    for device, unit in ((CPU, 1), (cuda, 128)):
        for M, N, V in ((1, 32768, 50304), (3, 4096, 16384), (64, 512, 256), (1, 1000, 262144), (1, 1, 10**8)):
            chunk = chunked.chunk_of(M, N, V, torch.bfloat16, device)
            limit = chunked._CHUNK_BYTES[device.type]
            assert chunk >= 1 and (chunk % unit == 0 or chunk == N)
            assert chunk == 1 or M * (chunk - unit) * V * 2 <= limit
            n_chunks = -(-N // chunk)
            assert unit > 1 or n_chunks * chunk - N < n_chunks
    assert chunked.chunk_of(1, 0, 61, torch.float32, CPU) == 1


@pytest.mark.parametrize(
    ("impl", "backend"),
    [("reference", "aot_eager"), ("chunked", "aot_eager"), pytest.param("chunked", "inductor", marks=pytest.mark.gpu)],
)
def test_compiled_in_one_graph_equals_eager(impl: str, backend: str) -> None:
    # As in a model: x is no leaf, and the loss is divided.
    def whole(x_MND: Tensor, weight_MVD: Tensor, targets_MN: Tensor) -> Tensor:
        return linear_cross_entropy(torch.tanh(x_MND), weight_MVD, targets_MN, impl=impl).sum() / 29

    device = "cuda" if backend == "inductor" else "cpu"
    case = Case("compiled", M=2, weight_dtype=torch.float32)
    arguments = inputs(case, seed=19, dtype=torch.bfloat16, device=device)
    del arguments["grad_BTHK"]
    compiled = torch.compile(whole, fullgraph=True, backend=backend, dynamic=False)
    leaves = (arguments["x_MND"], arguments["weight_MVD"])
    for function in (compiled, torch.no_grad()(compiled)):
        expected, found = whole(**arguments), function(**arguments)
        torch.testing.assert_close(found, expected.detach() if not found.requires_grad else expected)
    expected, found = (torch.autograd.grad(f(**arguments), leaves) for f in (whole, compiled))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)
    torch._dynamo.reset()


@by_dtype
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (False, False)], ids=str)
def test_the_operator_is_what_torch_expects_of_one(dtype: torch.dtype, wanted: tuple[bool, bool]) -> None:
    arguments, _ = drawn(Case("operator", M=2, N=9, weight_dtype=torch.float32), seed=20, dtype=dtype)
    for n, is_wanted in zip(("x_MND", "weight_MVD"), wanted, strict=True):
        arguments[n].requires_grad_(is_wanted)
    operator = torch.ops.gatelab.linear_cross_entropy.default
    torch.library.opcheck(operator, (*arguments.values(), -100, 4, *wanted))


@needs_triton
@by_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_kernel_keeps_the_contract(dtype: torch.dtype, case: Case, by_kernel: None) -> None:
    verdicts = check(IN_CHUNKS, REFERENCE, inputs(case, seed=21, dtype=dtype, device=DEVICE))
    assert len(verdicts) == 3
    assert all(v.holds for v in verdicts), [v for v in verdicts if not v.holds]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("V", [1, 15, 16, 17, 64, 100])
def test_the_kernel_is_the_torch_maths(V: int, dtype: torch.dtype, by_kernel: None) -> None:
    logits_NV = (4 * torch.randn(9, V)).to(dtype).to(DEVICE)
    targets_N = torch.randint(0, V, (9,)).to(DEVICE)
    targets_N[2::3] = -100
    turned = [logits_NV.clone(), logits_NV.clone()]
    losses = [
        f(t, targets_N, ignored=-100, is_turned=True)
        for f, t in zip((kernels.cross_entropy_, chunked.cross_entropy_), turned, strict=True)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*turned, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert turned[0][2::3].count_nonzero() == 0
    before = logits_NV.clone()
    only_loss_N = kernels.cross_entropy_(logits_NV, targets_N, ignored=-100, is_turned=False)
    assert torch.equal(only_loss_N, losses[0]) and torch.equal(logits_NV, before)


@needs_triton
def test_the_kernel_writes_no_neighbouring_memory(by_kernel: None) -> None:
    around = torch.full((7, 21), torch.nan, device=DEVICE)
    around[2:5] = torch.randn(3, 21)
    loss_N = kernels.cross_entropy_(
        around[2:5], torch.tensor([0, -100, 20], device=DEVICE), ignored=-100, is_turned=True
    )
    assert around[:2].isnan().all() and around[5:].isnan().all() and around[2:5].isfinite().all()
    assert loss_N.isfinite().all()


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's, of ∞ − ∞
def test_the_kernel_says_not_a_number_of_a_target_out_of_range_and_of_infinite_logits(by_kernel: None) -> None:
    logits_NV = torch.randn(4, 21, device=DEVICE)
    logits_NV[3, 4] = torch.inf
    targets_N = torch.tensor([21, -1, 5, 6], device=DEVICE)
    loss_N = kernels.cross_entropy_(logits_NV, targets_N, ignored=-100, is_turned=True)
    assert loss_N.isfinite().tolist() == [False, False, True, False]


@needs_triton
def test_the_kernel_is_given_contiguous_rows_of_its_types(by_kernel: None) -> None:
    targets_N = torch.zeros(4, dtype=torch.int64)
    for logits_NV in (torch.randn(4, 6).double(), torch.randn(6, 4).T, torch.randn(4, 12)[:, :6]):
        with pytest.raises(ValueError, match=r"the kernel takes contiguous ones of torch\.bfloat16"):
            kernels.cross_entropy_(logits_NV, targets_N, ignored=-100, is_turned=True)


def test_auto_holds_small_logits_and_no_large_ones() -> None:
    def auto(n_logits: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> str:
        return choose("auto", n_logits=n_logits, dtype=dtype, device=torch.device(device))

    assert auto(2**23 - 1) == "reference" and auto(2**23) == "chunked"
    assert auto(2**24 - 1, torch.bfloat16) == "reference" and auto(2**24, torch.bfloat16) == "chunked"
    assert auto(1, device="cuda") == "reference" and auto(2**31, device="mps") == "chunked"


def test_without_triton_a_gpu_has_the_reference_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(chunked, "_HAS_TRITON", False)
    assert choose("auto", n_logits=2**31, dtype=torch.bfloat16, device=cuda) == "reference"
    assert choose("chunked", n_logits=2**31, dtype=torch.float64, device=cuda) == "chunked"
    with pytest.raises(ValueError, match="needs triton, which is not installed; or take impl='reference'"):
        choose("chunked", n_logits=2**31, dtype=torch.bfloat16, device=cuda)


@by_impl
def test_mistakes_are_told(impl: str) -> None:
    right, _ = drawn(Case("right", M=2, N=5, D=12, V=10), seed=22, dtype=torch.float32)

    def wrong(**changed: Any) -> Tensor:
        return linear_cross_entropy(**{**right, "impl": impl, **changed})

    with pytest.raises(ValueError, match="'fused': expected one of auto, reference, chunked"):
        wrong(impl="fused")
    for changed, shapes in (
        ({"x_MND": right["x_MND"][0]}, r"\(5, 12\), \(2, 10, 12\), \(2, 5\)"),
        ({"weight_MVD": right["weight_MVD"].mT}, r"\(2, 12, 10\)"),
        ({"weight_MVD": right["weight_MVD"][:1]}, r"\(1, 10, 12\)"),
        ({"weight_MVD": right["weight_MVD"][:, :0]}, r"\(2, 0, 12\)"),
        ({"targets_MN": right["targets_MN"][:, :4]}, r"\(2, 4\)"),
        ({"targets_MN": right["targets_MN"].flatten()}, r"\(10,\)"),
    ):
        with pytest.raises(ValueError, match=shapes + r".*expected \[M,N,D\], \[M,V,D\], \[M,N\] with V ≥ 1"):
            wrong(**changed)
    for changed, types in (
        ({"targets_MN": right["targets_MN"].int()}, "float32, float32, int32"),
        ({"targets_MN": right["targets_MN"].float()}, "float32, float32, float32"),
        ({"x_MND": right["x_MND"].long()}, "int64, float32, int64"),
        ({"weight_MVD": right["weight_MVD"].long()}, "float32, int64, int64"),
    ):
        with pytest.raises(ValueError, match=f"of types {types}: convert x and weight to floating types"):
            wrong(**changed)
    for value in (10, -1, -99):
        targets_MN = right["targets_MN"].clone()
        targets_MN[1, 3] = value
        with pytest.raises(ValueError, match=rf"1 targets out of range, the first {value}: expected 0 … 9, or -100"):
            wrong(targets_MN=targets_MN)


@pytest.mark.gpu
@by_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("chunk", [None, 128, 5])
def test_chunks_keep_the_contract_on_a_gpu(chunk: int | None, dtype: torch.dtype, case: Case) -> None:
    function = partial(chunked.linear_cross_entropy, chunk=chunk)
    assert all(v.holds for v in check(function, REFERENCE, inputs(case, seed=23, dtype=dtype, device="cuda")))


@pytest.mark.gpu
@pytest.mark.parametrize("V", [16384, 50257, 262144])
def test_wide_vocabularies_keep_the_contract_on_a_gpu(V: int) -> None:
    case = Case("wide", N=700, D=64, V=V, weight_dtype=torch.float32)
    function = partial(chunked.linear_cross_entropy, chunk=256)
    assert all(v.holds for v in check(function, REFERENCE, inputs(case, seed=24, dtype=torch.bfloat16, device="cuda")))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_chunks_never_make_the_gpu_wait() -> None:
    case = Case("large", N=4096, D=256, V=32768, weight_dtype=torch.float32)
    arguments = inputs(case, seed=25, dtype=torch.bfloat16, device="cuda")
    upstream_M = arguments.pop("grad_BTHK").float()
    linear_cross_entropy(**arguments, impl="chunked").backward(upstream_M)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        linear_cross_entropy(**arguments, impl="chunked").backward(upstream_M)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_gpu_holds_one_chunk_of_logits() -> None:
    case = Case("memory", N=16384, D=64, V=32768, weight_dtype=torch.float32)
    arguments = inputs(case, seed=26, dtype=torch.bfloat16, device="cuda")
    del arguments["grad_BTHK"]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    linear_cross_entropy(**arguments, impl="chunked")
    weight_bytes = case.V * case.D * (4 + 2)
    kept = 16384 * (64 * 2 + 4)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < weight_bytes + kept + 1.1 * chunked._CHUNK_BYTES["cuda"] + 2**21


@by_impl
def test_logits_of_ignored_tokens_are_not_computed_on_a_cpu(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, function = [], IMPLEMENTATIONS[impl]
    spy = {impl: lambda x_MND, *rest, **named: (seen.append(x_MND.shape), function(x_MND, *rest, **named))[1]}
    monkeypatch.setattr("gatelab.ops.linear_cross_entropy.IMPLEMENTATIONS", spy)
    case = Case("answers", M=3, N=40, D=8, V=31)
    arguments, upstream_M = drawn(case, seed=5, dtype=torch.float64)
    targets_MN = torch.full((3, 40), -100)
    targets_MN[0, [3, 7, 8, 39]], targets_MN[2, 0] = torch.tensor([1, 30, 0, 9]), 4  # model 1 predicts nothing
    arguments["targets_MN"] = targets_MN
    loss_M = linear_cross_entropy(**arguments, impl=impl)
    assert seen == [(3, 4, 8)]
    loss_M.backward(upstream_M)
    given = (arguments[name].detach().numpy() for name in ("x_MND", "weight_MVD", "targets_MN"))
    expected = defined(*given, upstream_M.numpy())
    for value, wanted in zip((loss_M, arguments["x_MND"].grad, arguments["weight_MVD"].grad), expected, strict=True):
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-12, atol=1e-14)
