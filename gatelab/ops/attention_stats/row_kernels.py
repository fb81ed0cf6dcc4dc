"""Triton: statistics of every row of the attention weights in one pass over the keys, and the mass on the first keys.

Notable: no values are read and no weight is stored. With d = log₂ of a weight over the row's largest so far, a row is
three sums, Σ 2^d, Σ 4^d and Σ 2^d · d, which a larger maximum rescales; entropy and focus follow from them. The mass on
the first keys needs the log-sum-exp of the attention op and reads q once.
"""

import triton
import triton.language as tl

from .column_kernels import LOG2_E, place, rows, spans

_LN_2 = tl.constexpr(0.6931471805599453)
# Finite, so that no difference of two maxima is not-a-number.
_LOWEST = tl.constexpr(-1e30)


@triton.jit
def _seen(
    largest, mass, square, moment, q, k_base, x, start, stop, k_stride, S, least, most, scale,
    X: tl.constexpr, Y: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The four of the rows q, from x on, with the keys start … stop: largest q·k · scale, Σ 2^d, Σ 4^d, Σ 2^d · d.

    The largest is carried as it was rounded: products of it would be fused with what follows, and of a row that has seen
    nothing two of 10³⁰ differ by more than any exponential holds.
    """
    for y in tl.range(start, stop, Y):
        k = rows(k_base, y, k_stride, S, Y, K, PADDED, MASKED)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            key = y + tl.arange(0, Y)
            ahead = key[None, :] - (x + tl.arange(0, X))[:, None]
            sees = (ahead >= least) & (ahead <= most) & (key < S)[None, :]
            products = tl.where(sees, products, _LOWEST)
        before = largest
        largest = tl.maximum(before, tl.max(products, axis=1) * scale)
        d = products * scale - largest[:, None]
        weights = tl.exp2(d)
        if MASKED:
            weights, d = tl.where(sees, weights, 0.0), tl.where(sees, d, 0.0)
        fall = before - largest
        keep = tl.exp2(fall)
        moment = keep * (moment + mass * fall) + tl.sum(weights * d, axis=1)
        mass = keep * mass + tl.sum(weights, axis=1)
        square = keep * keep * square + tl.sum(weights * weights, axis=1)
    return largest, mass, square, moment


@triton.jit(do_not_specialize=["T", "S", "H", "R", "least", "most", "n_heads"])
def row_stats_kernel(
    q, k, out, T, S, H, R, least, most, scale,
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64, k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    n_heads, K: tl.constexpr, PADDED: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, HEADS_TOGETHER: tl.constexpr,
):  # fmt: skip
    """out [5, B, H, T], in the order of RowStats, from q [B, T, H, K] and k [B, S, H / R, K]; `least` and `most`: how far
    a key may stand ahead of a query that sees it; `scale`: log₂ e / √K."""
    n_blocks = tl.cdiv(T, X)
    block, bh = place(n_blocks, n_heads, HEADS_TOGETHER)
    b, h = tl.cast(bh // H, tl.int64), bh % H
    t = (n_blocks - 1 - block) * X
    x = t + S - T
    q_block = rows(q + b * q_batch + h * q_head, t, q_token, T, X, K, PADDED, True)
    k_base = k + b * k_batch + (h // R) * k_head

    channel = tl.arange(0, PADDED)
    k_first = tl.load(k_base + channel, mask=channel < K, other=0.0).to(tl.float32)
    first = tl.sum(q_block.to(tl.float32) * k_first[None, :], axis=1) * scale * _LN_2
    ahead_first = -(x + tl.arange(0, X))
    first = tl.where((ahead_first >= least) & (ahead_first <= most), first, -float("inf"))

    start, until, whole, after, stop = spans(x, least, most, S, X, Y)
    largest = tl.full([X], _LOWEST, tl.float32)
    mass, square, moment = tl.zeros([X], tl.float32), tl.zeros([X], tl.float32), tl.zeros([X], tl.float32)
    largest, mass, square, moment = _seen(largest, mass, square, moment, q_block, k_base, x, start, until, k_token, S,
                                          least, most, scale, X, Y, K, PADDED, True)  # fmt: skip
    largest, mass, square, moment = _seen(largest, mass, square, moment, q_block, k_base, x, whole, after, k_token, S,
                                          least, most, scale, X, Y, K, PADDED, False)  # fmt: skip
    largest, mass, square, moment = _seen(largest, mass, square, moment, q_block, k_base, x, after, stop, k_token, S,
                                          least, most, scale, X, Y, K, PADDED, True)  # fmt: skip

    query = t + tl.arange(0, X)
    row, inside, plane = out + tl.cast(bh, tl.int64) * T + query, query < T, tl.cast(n_heads, tl.int64) * T
    # Rows past the last query may have seen nothing.
    mass, square = tl.where(inside, mass, 1.0), tl.where(inside, square, 1.0)
    log2_mass = tl.log2(mass)
    entropy = tl.maximum((log2_mass - moment / mass) * _LN_2, 0.0)  # a row of one key may round below 0
    tl.store(row, (largest + log2_mass) * _LN_2, mask=inside)
    tl.store(row + plane, entropy, mask=inside)
    tl.store(row + 2 * plane, mass * mass / square, mask=inside)
    tl.store(row + 3 * plane, largest * _LN_2, mask=inside)
    tl.store(row + 4 * plane, first, mask=inside)


@triton.jit(do_not_specialize=["T", "S", "H", "R", "least", "most", "skip"])
def first_mass_kernel(
    q, k, lse, out, T, S, H, R, least, most, scale,
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64, k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    skip, N: tl.constexpr, IS_SUM: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, X: tl.constexpr,
    Y: tl.constexpr,
):  # fmt: skip
    """out [B, H, T, N], or where IS_SUM the sums over each block of X queries, from `skip` on, [B, H, blocks, N]."""
    bh, block = tl.program_id(0), tl.program_id(1)
    b, h = tl.cast(bh // H, tl.int64), bh % H
    query, key = block * X + tl.arange(0, X), tl.arange(0, Y)
    q_block = rows(q + b * q_batch + h * q_head, block * X, q_token, T, X, K, PADDED, True)
    k_block = rows(k + b * k_batch + (h // R) * k_head, 0, k_token, N, Y, K, PADDED, True)
    row_lse = tl.load(lse + tl.cast(bh, tl.int64) * T + query, mask=query < T, other=0.0)
    exponents = tl.dot(q_block, tl.trans(k_block), input_precision="ieee") * scale - (row_lse * LOG2_E)[:, None]
    ahead = key[None, :] - (query + S - T)[:, None]
    mass = tl.exp2(tl.where((ahead >= least) & (ahead <= most), exponents, -float("inf")))
    if IS_SUM:
        mass = tl.where(((query >= skip) & (query < T))[:, None], mass, 0.0)
        row = tl.cast(bh, tl.int64) * tl.num_programs(1) + block
        tl.store(out + row * N + key, tl.sum(mass, axis=0), mask=key < N)
    else:
        row = tl.cast(bh, tl.int64) * T + query
        tl.store(out + row[:, None] * N + key[None, :], mass, mask=(query < T)[:, None] & (key < N)[None, :])
