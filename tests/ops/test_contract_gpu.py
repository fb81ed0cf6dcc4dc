"""Every implementation that serves a call on a GPU keeps the numeric contract there, in memory that was full of not-a-numbers;
run with `-m gpu`. What one refuses is skipped with its reason. A warning, such as cuDNN's about a gradient that it has to copy,
fails."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import IMPLEMENTATIONS, OPERATORS, gated_attention
from gatelab.ops.gated_attention.cases import CASES, Case, apart, inputs, together

pytestmark = pytest.mark.gpu
DEVICE, BF16 = "cuda", torch.bfloat16
REFERENCE = together(partial(gated_attention, impl="reference"))
SERVED = sorted({*IMPLEMENTATIONS, *OPERATORS} - {"reference"})
by_impl = pytest.mark.parametrize("impl", SERVED)
PROJECTED = ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK")
# Bytes of freed memory, from the least that torch hands out to more than any tensor that a kernel leaves to be written, and how
# many pieces of each: 64 MiB in all, since a GPU is often shared by many workers.
_FREED, _PIECES = [2**i for i in range(9, 23)], 8
# Sequences of some hundred tokens, in every width that torch's kernels, `short` and `hopper` are made for, and some between.
SLICED = (
    Case("elementwise", T=512, H=8, G=8, K=128, gate="sdpa-elementwise"),
    Case("headwise", T=512, H=8, G=8, K=128, gate="sdpa-headwise"),
    Case("odd-elementwise", T=509, H=8, G=2, K=128, gate="sdpa-elementwise"),
    Case("odd-headwise", T=509, H=8, G=2, K=128, gate="sdpa-headwise"),
    Case("ungated", T=333, H=8, G=2, K=128),
    Case("heads-of-32", T=300, H=8, G=4, K=32, gate="sdpa-elementwise"),
    Case("heads-of-64", T=301, H=8, G=4, K=64, gate="sdpa-headwise"),
    Case("heads-of-72-both-ways", B=3, T=129, H=4, G=2, K=72, gate="sdpa-headwise", is_causal=False),
    Case("heads-of-96", B=3, T=37, H=6, G=3, K=96, gate="sdpa-elementwise"),
    Case("heads-of-256", B=1, T=200, H=4, G=2, K=256, gate="sdpa-elementwise"),
    Case("one-token", T=1, H=4, G=2, K=64, gate="sdpa-elementwise"),
    Case("window", T=450, H=8, G=2, K=64, gate="sdpa-elementwise", window=100),
    Case("documents", T=450, H=8, G=2, K=128, gate="sdpa-headwise", documents=4),
)
# Six gate channels make rows that do not begin at 16 bytes.
ODD_ROWS = Case("odd-rows", B=1, T=512, H=6, G=1, K=64, gate="sdpa-headwise")


@pytest.fixture(autouse=True)
def gives_memory_back() -> Iterator[None]:
    """To the others on the GPU."""
    yield
    torch.cuda.empty_cache()


@pytest.fixture(params=[True, False], ids=["cudnn", "no-cudnn"])
def allows_cudnn(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(before)


def arguments_of(case: Case, impl: str, dtype: torch.dtype = BF16, *, by_number: bool = False) -> dict[str, Any]:
    """A case's arguments, of heads that `hopper` serves where that is the implementation; skipped where it refuses them."""
    arguments = inputs(
        replace(case, K=max(64, case.K)) if impl == "hopper" else case, seed=1, dtype=dtype, device=DEVICE
    )
    if by_number:
        # A document begins where a token does not see the one before it.
        begins_BT = ~arguments["mask_BTS"].diagonal(offset=-1, dim1=1, dim2=2)
        first_B1 = begins_BT.new_zeros(len(begins_BT), 1)
        arguments |= {"mask_BTS": None, "segment_ids_BT": torch.cat([first_B1, begins_BT], dim=1).cumsum(dim=1)}
    try:
        with torch.no_grad():
            gated_attention(**{name: value for name, value in arguments.items() if name != "grad_BTHK"}, impl=impl)
    except ValueError as why:
        if not str(why).startswith(f"impl={impl!r} "):
            raise
        pytest.skip(str(why))
    return arguments


def poison() -> None:
    """Freed memory, full of not-a-numbers in every floating type."""
    for n_bytes in _FREED[::-1]:
        _ = [torch.full((n_bytes // 2,), math.nan, dtype=BF16, device=DEVICE) for _ in range(_PIECES)]


def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function between two poisonings: what it does not write shows, there and back."""

    def called(**arguments: Any) -> Tensor:
        poison()
        out = function(**arguments)
        out.register_hook(lambda _: poison())
        return out

    return called


def sliced(function: Callable[..., Tensor], *, before: int) -> Callable[..., Tensor]:
    """The function of slices of one projection, behind so many channels that are not numbers."""

    def called(**arguments: Any) -> Tensor:
        given = {name: arguments[name] for name in PROJECTED if arguments[name] is not None}
        flat = [t.flatten(2) for t in given.values()]
        front_BTN = torch.full((*flat[0].shape[:2], before), math.nan, dtype=flat[0].dtype, device=DEVICE)
        _, *pieces = torch.cat([front_BTN, *flat], dim=-1).split([before, *(t.shape[-1] for t in flat)], dim=-1)
        return function(
            **arguments | {n: p.unflatten(-1, given[n].shape[2:]) for n, p in zip(given, pieces, strict=True)}
        )

    return called


def assert_it_holds(candidate: Callable[..., Tensor], arguments: dict[str, Any], case: Case) -> None:
    verdicts = check(candidate, REFERENCE, apart(arguments))
    differentiable = 3 + (case.gate is not None) + case.bias + (case.scores is not None) + len(arguments["learned"])
    assert len(verdicts) == 1 + differentiable
    broken = [v for v in verdicts if not v.holds]
    assert not broken


@by_impl
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_implementation_keeps_the_contract(case: Case, impl: str) -> None:
    arguments = arguments_of(case, impl)
    assert_it_holds(poisoned(together(partial(gated_attention, impl=impl))), arguments, case)


@by_impl
@pytest.mark.parametrize("case", [c for c in CASES if c.documents and c.S is None], ids=lambda c: c.name)
def test_documents_by_their_numbers_too(case: Case, impl: str) -> None:
    arguments = arguments_of(case, impl, by_number=True)
    assert_it_holds(poisoned(together(partial(gated_attention, impl=impl))), arguments, case)


@by_impl
@pytest.mark.parametrize("case", SLICED, ids=lambda c: c.name)
def test_slices_of_one_projection_keep_the_contract(allows_cudnn: bool, case: Case, impl: str) -> None:
    if not allows_cudnn and impl == "hopper":
        pytest.skip("hopper has no kernel of cuDNN's")
    arguments = arguments_of(case, impl, by_number=case.documents > 0)
    assert_it_holds(poisoned(sliced(together(partial(gated_attention, impl=impl)), before=8)), arguments, case)


@by_impl
@pytest.mark.parametrize("before", [0, 3])
def test_rows_that_begin_anywhere_keep_the_contract(before: int, impl: str) -> None:
    arguments = arguments_of(ODD_ROWS, impl)
    candidate = together(partial(gated_attention, impl=impl))
    assert_it_holds(poisoned(sliced(candidate, before=before)), arguments, ODD_ROWS)


@by_impl
@pytest.mark.parametrize("case", [SLICED[0], replace(SLICED[6], is_causal=False)], ids=lambda c: c.name)
def test_float16_keeps_the_contract(case: Case, impl: str) -> None:
    arguments = arguments_of(case, impl, torch.float16)
    assert_it_holds(poisoned(together(partial(gated_attention, impl=impl))), arguments, case)


COMPILED = ("headwise", "grouped-odd", "cross", "window", "packed")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("impl", ["auto", *SERVED])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in COMPILED], ids=lambda c: c.name)
def test_compiled_in_one_graph_it_keeps_the_contract(case: Case, impl: str) -> None:
    arguments = arguments_of(case, impl, by_number=case.documents > 0)
    torch._dynamo.reset()
    compiled = torch.compile(partial(gated_attention, impl=impl), fullgraph=True)
    assert_it_holds(together(compiled), arguments, case)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_auto_is_another_one_where_no_gradient_is_wanted(compiled: bool) -> None:
    case = Case("short", T=256, H=8, G=4, K=64, gate="sdpa-headwise")
    arguments = inputs(case, seed=2, dtype=BF16, device=DEVICE)
    del arguments["grad_BTHK"]
    torch._dynamo.reset()
    auto = torch.compile(gated_attention, fullgraph=True) if compiled else gated_attention
    with_gradients = auto(**arguments)
    with torch.no_grad():
        without = auto(**arguments)
        own, lean = (gated_attention(**arguments, impl=impl) for impl in ("short", "flash-lean"))
    assert with_gradients.requires_grad and not without.requires_grad
    assert torch.equal(with_gradients, own) and torch.equal(without, lean) and not torch.equal(own, lean)
    torch._dynamo.reset()


@by_impl
def test_a_gate_that_is_a_constant_keeps_the_contract(impl: str) -> None:
    case = Case("static", T=140, G=2, K=64, gate="sdpa-elementwise-static")
    arguments = arguments_of(case, impl)
    for shape in ((1, 1, 4, 64), (1, 1, 4, 1)):
        gate = GateSpec.parse("sdpa-elementwise-static" if shape[3] > 1 else "sdpa-headwise-static")
        logits = torch.randn(shape, device=DEVICE).to(BF16).requires_grad_()
        changed = arguments | {"gate": gate, "gate_logits_BTHK": logits}
        assert_it_holds(poisoned(together(partial(gated_attention, impl=impl))), changed, case)
