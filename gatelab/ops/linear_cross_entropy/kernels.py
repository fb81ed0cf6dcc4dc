"""Triton: a row of logits to its cross-entropy and, in place, to its gradient softmax − one-hot, in two passes.

Notable: one program a row of any length. The first pass carries the largest logit and Σ e^(l − largest), which a larger
one rescales (arXiv 1805.02867), for each place in a block, so that places meet once a row and not once a block; the second
writes over what it reads; a row is small enough for that to come from the L2 cache. Maths is float32, rounded once. An
ignored row is not read. Nothing waits for the device: a target out of range makes its loss not-a-number. Importing this
file needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_BLOCK = 4096
_N_WARPS = 8
# Finite, so that no difference of two maxima is not-a-number.
_LOWEST = tl.constexpr(-3e38)


def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, *, ignored: int, is_turned: bool) -> Tensor:
    """As `chunked.cross_entropy_`, on rows that lie one after the other in memory; logits are left as they are where not
    `is_turned`.

    Raises:
        ValueError: types that the kernel does not serve, and logits that are not contiguous.
    """
    N, V = logits_NV.shape
    if logits_NV.dtype not in _DTYPES or not logits_NV.is_contiguous():
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise ValueError(
            f"logits of type {logits_NV.dtype} and strides {logits_NV.stride()}: the kernel takes contiguous ones of {names}"
        )
    loss_N = torch.empty(N, dtype=torch.float32, device=logits_NV.device)
    if N:
        block = min(_BLOCK, triton.next_power_of_2(V))
        with torch.cuda.device_of(logits_NV):
            cross_entropy_kernel[(N,)](
                logits_NV, targets_N.contiguous(), loss_N, V, ignored, IS_TURNED=is_turned, BLOCK=block, num_warps=_N_WARPS
            )  # fmt: skip
    return loss_N


@triton.jit(do_not_specialize=["ignored"])
def cross_entropy_kernel(logits, targets, loss, V, ignored, IS_TURNED: tl.constexpr, BLOCK: tl.constexpr):
    """logits [N, V], targets [N] int64, loss [N] float32; a program for each of N rows."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * V
    target = tl.load(targets + row)
    column = tl.arange(0, BLOCK)
    if target == ignored:
        tl.store(loss + row, 0.0)
        if IS_TURNED:
            for start in tl.range(0, V, BLOCK):
                zeros = tl.zeros([BLOCK], logits.dtype.element_ty)
                tl.store(base + start + column, zeros, mask=start + column < V)
    else:
        own = tl.load(base + target, mask=(target >= 0) & (target < V), other=float("nan")).to(tl.float32)
        largest_of, total_of = tl.full([BLOCK], _LOWEST, tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in tl.range(0, V, BLOCK):
            row_block = tl.load(base + start + column, mask=start + column < V, other=-float("inf")).to(tl.float32)
            before = largest_of
            largest_of = tl.maximum(before, row_block)
            total_of = total_of * tl.exp(before - largest_of) + tl.exp(row_block - largest_of)
        largest = tl.max(largest_of, axis=0)
        total = tl.sum(total_of * tl.exp(largest_of - largest), axis=0)
        tl.store(loss + row, largest - own + tl.log(total))
        if IS_TURNED:
            # All threads have read the target's logit before one of them writes over it.
            tl.debug_barrier()
            for start in tl.range(0, V, BLOCK):
                row_block = tl.load(base + start + column, mask=start + column < V, other=-float("inf")).to(tl.float32)
                weights = tl.exp(row_block - largest) / total
                gradient = tl.where(start + column == target, weights - 1.0, weights)
                tl.store(base + start + column, gradient.to(logits.dtype.element_ty), mask=start + column < V)
