"""Triton: attention received by every key, Σ over the queries of p, and what the row kernels share with it.

Notable: a program keeps one block of keys and passes over the queries that see it, so that a column is summed by one
program, in one order, in registers: the same bits every time. Queries are the columns of the product, where a thread
holds many of a key's weights, and summing them needs no other thread. Only blocks that the diagonal, the window or an
end cuts through evaluate a mask; the two ends of visibility are plain numbers, so causal, bidirectional and windowed
attention are one compiled kernel. Exponentials are to the base of 2, with 1/√K folded in.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def place(n_blocks, n_heads, HEADS_TOGETHER: tl.constexpr):
    """The block (from 0: the one with most to do) and the head, of all batches, of this program.

    Neighbours read the same head at about the same place, in L2; heavy blocks of the heads that run together come first.
    """
    program = tl.program_id(0)
    first = program // (n_blocks * HEADS_TOGETHER) * HEADS_TOGETHER
    n_together = tl.minimum(n_heads - first, HEADS_TOGETHER)
    rank = program - first * n_blocks
    return rank // n_together, first + rank % n_together


@triton.jit
def spans(x, least, most, n, X: tl.constexpr, Y: tl.constexpr):
    """Where to pass over y in blocks of Y, for the X rows from x on, that see y where least ≤ y − x ≤ most and 0 ≤ y < n.

    Five bounds: masked from the first to the second, all seen from the third to the fourth, masked from there to the last.
    """
    start = tl.maximum(x + least, 0) // Y * Y
    stop = tl.maximum(tl.minimum(x + X + most, n), 0)
    whole = tl.cdiv(tl.maximum(x + X - 1 + least, 0), Y) * Y
    after = tl.maximum(tl.maximum(tl.minimum(x + 1 + most, n), 0) // Y * Y, whole)
    return start, tl.minimum(whole, stop), whole, after, stop


@triton.jit
def rows(base, start, stride, n, ROWS: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, BOUNDED: tl.constexpr):
    """Rows `start` and on of a matrix [n, K], as [ROWS, PADDED]; zeros past K and, where BOUNDED, past n."""
    row, channel = tl.arange(0, ROWS), tl.arange(0, PADDED)
    # 64 bits once a block, 32 within it.
    pointers = base + tl.cast(start, tl.int64) * stride + row[:, None] * tl.cast(stride, tl.int32) + channel[None, :]
    if BOUNDED:
        return tl.load(pointers, mask=(start + row < n)[:, None] & (channel < K)[None, :], other=0.0)
    elif PADDED > K:
        return tl.load(pointers, mask=(channel < K)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _received(
    column, k, q_base, lse_base, x, start, stop, q_stride, T, least, most, scale,
    X: tl.constexpr, Y: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """column + what the keys k, from x on, receive from the queries start … stop."""
    for y in tl.range(start, stop, Y):
        query = y + tl.arange(0, Y)
        q = rows(q_base, y, q_stride, T, Y, K, PADDED, MASKED)
        lse = tl.load(lse_base + query)
        exponents = tl.dot(k, tl.trans(q), input_precision="ieee") * scale - lse[None, :]
        if MASKED:
            ahead = query[None, :] - (x + tl.arange(0, X))[:, None]
            exponents = tl.where((ahead >= least) & (ahead <= most), exponents, -float("inf"))
        column += tl.sum(tl.exp2(exponents), axis=1)
    return column


@triton.jit(do_not_specialize=["T", "S", "H", "R", "least", "most", "n_heads"])
def column_sums_kernel(
    q, k, lse, out, T, S, H, R, least, most, scale,
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64, k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    n_heads, K: tl.constexpr, PADDED: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, HEADS_TOGETHER: tl.constexpr,
):  # fmt: skip
    """out [B, H, S] from q [B, T, H, K], k [B, S, H / R, K] and lse [B, H, T in whole blocks], to the base of 2 and ∞ past
    the last query; `least` and `most`: how far a query may stand behind a key that it sees; `scale`: log₂ e / √K."""
    block, bh = place(tl.cdiv(S, X), n_heads, HEADS_TOGETHER)
    b, h = tl.cast(bh // H, tl.int64), bh % H
    key = block * X
    x = key - (S - T)  # the query that stands at the key
    k_block = rows(k + b * k_batch + (h // R) * k_head, key, k_token, S, X, K, PADDED, True)
    q_base, lse_base = q + b * q_batch + h * q_head, lse + tl.cast(bh, tl.int64) * (tl.cdiv(T, Y) * Y)
    start, until, whole, after, stop = spans(x, least, most, T, X, Y)
    column = tl.zeros([X], tl.float32)
    column = _received(column, k_block, q_base, lse_base, x, start, until, q_token, T, least, most, scale, X, Y, K,
                       PADDED, True)  # fmt: skip
    column = _received(column, k_block, q_base, lse_base, x, whole, after, q_token, T, least, most, scale, X, Y, K,
                       PADDED, False)  # fmt: skip
    column = _received(column, k_block, q_base, lse_base, x, after, stop, q_token, T, least, most, scale, X, Y, K,
                       PADDED, True)  # fmt: skip
    keys = key + tl.arange(0, X)
    tl.store(out + tl.cast(bh, tl.int64) * S + keys, column, mask=keys < S)
