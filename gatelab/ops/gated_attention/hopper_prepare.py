"""Triton: what FlashAttention-4's backward main loop reads, of a gate and its output, in one pass over memory.

Notable: it takes the place of that library's own preparation, which forms rowsum(dy ⊙ y) from a y that is not kept here.
Elementwise, the same sum is rowsum(dz ⊙ z), beside which dy = dz ⊙ σ and dlogits = dz ⊙ z ⊙ (1 − σ) are written. Headwise,
the weights of the gated softmax are those of a log-sum-exp raised by softplus(−logit): the main loop reads dz itself, with
the sums over σ. A program takes some tokens of one head, and programs beside each other the heads of the same tokens.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention_stats.column_kernels import LOG2_E
from ..gate_apply.kernels import SMALLEST, scores_of

# As in `gate_apply.kernels`: numbers of a tensor that a program holds.
_NUMBERS, _WARPS = 2048, 4


class Prepared(NamedTuple):
    """`dy` and `dlogits` [B, T, H, K or W]; per row, T rounded up to whole tiles of queries: `delta` and the log-sum-exp to
    the base of 2, float32, which in the padding are 0 and +∞; `dq` [B, H, rows · K] of float32 zeros to add to."""

    dy_BTHK: Tensor
    dlogits_BTHW: Tensor | None
    delta_BHP: Tensor
    lse2_BHP: Tensor
    dq_BHN: Tensor


def prepare(
    dz_BTHK: Tensor,
    z_BTHK: Tensor,
    logits_BTHW: Tensor | None,
    lse_BHT: Tensor,
    *,
    tile: int,
    dtype: torch.dtype | None,
) -> Prepared:
    """The upstream gradient and statistics of the attention under the gate.

    Args:
        dz_BTHK, z_BTHK: contiguous; K a multiple of 32.
        logits_BTHW: W = 1 of a headwise gate, W = K of an elementwise one, channels side by side; None: without a gate.
        lse_BHT: contiguous, natural, float32.
        tile: of queries, a multiple of 16.
        dtype: of dlogits.
    """
    B, T, H, K = dz_BTHK.shape
    W = 0 if logits_BTHW is None else logits_BTHW.shape[3]
    P = triton.cdiv(T, tile) * tile
    rows = max(16, min(_NUMBERS // triton.next_power_of_2(K), tile & -tile))
    dy_BTHK = torch.empty_like(dz_BTHK) if W > 1 else dz_BTHK
    dlogits_BTHW = torch.empty(B, T, H, W, dtype=dtype, device=dz_BTHK.device) if W else None
    delta_BHP, lse2_BHP = (torch.empty(B, H, P, dtype=torch.float32, device=dz_BTHK.device) for _ in range(2))
    dq_BHN = torch.empty(B, H, P * K, dtype=torch.float32, device=dz_BTHK.device)
    # What a variant does not read or write is never touched.
    logits = dz_BTHK if logits_BTHW is None else logits_BTHW
    with torch.cuda.device_of(dz_BTHK):
        prepare_kernel[(B * (P // rows) * H,)](
            dz_BTHK, z_BTHK, logits, lse_BHT, dy_BTHK, dz_BTHK if dlogits_BTHW is None else dlogits_BTHW,
            delta_BHP, lse2_BHP, dq_BHN, T, P, *logits.stride()[:3], H=H, K=K, W=W,
            PADDED=triton.next_power_of_2(K), ROWS=rows, num_warps=_WARPS,
        )  # fmt: skip
    return Prepared(dy_BTHK, dlogits_BTHW, delta_BHP, lse2_BHP, dq_BHN)


@triton.jit(do_not_specialize=["T", "P"])
def prepare_kernel(
    dz, z, logits, lse, dy, dlogits, delta, lse2, dq, T, P,
    g_batch: tl.int64, g_token: tl.int64, g_head: tl.int64,
    H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One tile of ROWS tokens of a head; P is a multiple of ROWS."""
    pid = tl.program_id(0)
    n_blocks = P // ROWS
    h, block, b = tl.cast(pid % H, tl.int64), (pid // H) % n_blocks, tl.cast(pid // H // n_blocks, tl.int64)
    t, channel = block * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = t < T
    filled = (channel < K)[None, :]
    whole = inside[:, None] & filled
    row = (b * T + t) * H + h
    upstream = tl.load((dz + row * K)[:, None] + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    gated = tl.load((z + row * K)[:, None] + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    product = upstream * gated
    total = tl.sum(product, axis=1)
    row_lse = tl.load(lse + (b * H + h) * T + t, mask=inside, other=float("inf"))
    g_row = logits + b * g_batch + t * g_token + h * g_head
    if W == 1:
        score, rest, softplus = scores_of(tl.load(g_row, mask=inside, other=0.0))
        tl.store(dlogits + row, (total * rest).to(dlogits.dtype.element_ty), mask=inside)
        row_lse += softplus
        total = tl.where(score > SMALLEST, total / tl.maximum(score, SMALLEST), 0.0)
    elif W > 1:
        score, rest, _ = scores_of(tl.load(g_row[:, None] + channel[None, :], mask=whole, other=0.0))
        dg_row, dy_row = (dlogits + row * K)[:, None] + channel[None, :], (dy + row * K)[:, None] + channel[None, :]
        tl.store(dg_row, (product * rest).to(dlogits.dtype.element_ty), mask=whole)
        tl.store(dy_row, (upstream * score).to(dy.dtype.element_ty), mask=whole)
    place = (b * H + h) * P + t
    tl.store(delta + place, total)
    tl.store(lse2 + place, row_lse * LOG2_E)
    tl.store((dq + place * K)[:, None] + channel[None, :], tl.zeros([ROWS, PADDED], tl.float32), mask=filled)
