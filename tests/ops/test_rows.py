"""Rows that CUDA's attention kernels can read: which tensors have them, and who is given copies of those that do not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.ops.gated_attention import fused, gated_attention, rows
from gatelab.ops.gated_attention.fused import attention_with_lse
from gatelab.ops.gated_attention.rows import aligned

BF16 = torch.bfloat16


@pytest.fixture
def as_if_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_is_cuda", lambda t: True)


def slices(widths: tuple[int, ...], *, before: int = 0, after: int = 0, dtype: torch.dtype = BF16) -> list[Tensor]:
    """Slices [2, 5, n heads, 8 channels] of one projection."""
    rows_BTN = torch.randn(2, 5, before + 8 * sum(widths) + after).to(dtype)
    _, *pieces, _ = rows_BTN.split([before, *(8 * n for n in widths), after], dim=-1)
    return [piece.unflatten(-1, (-1, 8)) for piece in pieces]


def is_read(t: Tensor) -> bool:
    """By addresses, those of every row."""
    size = t.element_size()
    places = [t[b, x, h].data_ptr() for b in range(len(t)) for x in range(t.shape[1]) for h in range(t.shape[2])]
    return t.stride(3) * size == size and all((p - t.untyped_storage().data_ptr()) % 16 == 0 for p in places)


@pytest.mark.usefixtures("as_if_cuda")
@pytest.mark.parametrize(
    ("before", "after", "dtype", "stays"),
    [
        (0, 0, BF16, True),
        (8, 8, BF16, True),
        (0, 4, BF16, False),
        (8, 4, BF16, False),
        (4, 4, BF16, False),
        (3, 0, BF16, False),
        (4, 4, torch.float32, True),
        (2, 2, torch.float32, False),
        (2, 2, torch.float64, True),
        (1, 1, torch.float64, False),
    ],
)
def test_rows_that_begin_at_16_bytes_stay_and_others_are_copied(
    before: int, after: int, dtype: torch.dtype, stays: bool
) -> None:
    for t in slices((4, 2, 2), before=before, after=after, dtype=dtype):
        found = aligned(t)
        assert (found is t) == stays == is_read(t) and is_read(found) and torch.equal(found, t)
        assert stays or found.is_contiguous()


@pytest.mark.usefixtures("as_if_cuda")
def test_axes_of_size_one_get_the_strides_of_a_copy() -> None:
    """`contiguous` would leave them, and kernels that are told strides take their divisibility for granted."""
    t = torch.randn(1, 12, 8).to(BF16).as_strided((1, 1, 2, 8), (20, 12, 8, 1))
    assert t.contiguous().stride() == (20, 12, 8, 1) and aligned(t).stride() == (16, 16, 8, 1)


@pytest.mark.usefixtures("as_if_cuda")
def test_heads_that_no_copy_aligns_are_left_to_torch() -> None:
    t = torch.randn(2, 5, 3, 6).to(BF16)
    assert aligned(t) is t and aligned(t.mT).stride(3) == 1


def test_elsewhere_channels_are_side_by_side_and_no_more() -> None:
    (t,) = slices((2,), before=3)
    assert aligned(t) is t and aligned(t.mT).stride(3) == 1


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What torch's kernels are given, q, k and v, [B, T, H, K]."""
    seen: list[Tensor] = []
    stock = F.scaled_dot_product_attention

    def watched(*tensors: Tensor, **more: Any) -> Tensor:
        seen.extend(t.transpose(1, 2) for t in tensors)
        return stock(*tensors, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


@pytest.mark.usefixtures("as_if_cuda")
@pytest.mark.parametrize("before", [0, 3])
def test_sdpa_gives_torch_rows_that_it_can_read(given: list[Tensor], before: int) -> None:
    q, k, v = slices((4, 2, 2), before=before, after=4)
    found = gated_attention(q, k, v, impl="sdpa")
    assert len(given) == 3 and all(map(is_read, given)) and not any(map(is_read, (q, k, v)))
    copies = (t.contiguous() for t in (q, k, v))
    torch.testing.assert_close(found, gated_attention(*copies, impl="reference"), rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("as_if_cuda")
def test_so_does_attention_with_its_log_sum_exp_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    right = fused.aligned

    def watched(t: Tensor) -> Tensor:
        seen.append(right(t))
        return seen[-1]

    monkeypatch.setattr(fused, "aligned", watched)
    leaves = [t.detach().requires_grad_() for t in slices((2, 2, 2), before=1, after=3, dtype=torch.float32)]
    q, k, v = (t.transpose(1, 2) for t in leaves)
    y, lse = attention_with_lse(q, k, v, bias_BHTS=None, is_causal=True, scale=0.3)
    (y.sum() + lse.sum()).backward()
    # There, back, and once more where the compiler's shapes are made.
    assert len(seen) >= 6 and all(t.shape[3] >= 8 and is_read(t) for t in seen)
    assert all(t.grad.isfinite().all() for t in leaves)


@pytest.mark.usefixtures("as_if_cuda")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_a_compiler_sees_no_offset_and_copies_by_strides() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: aligned(t).relu(), fullgraph=True, backend="eager")
    (even,), (odd,) = slices((2,), after=8), slices((2,), after=4)
    for t in (even, odd):
        torch.testing.assert_close(compiled(t), t.relu())
    torch._dynamo.reset()
