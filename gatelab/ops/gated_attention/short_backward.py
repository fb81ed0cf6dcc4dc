"""Triton: the way back through attention and its gate: what the gate leaves, then dq, then dk and dv.

Notable: the gate is one pass over dz and z. Elementwise it writes dy = dz ⊙ σ and dlogits = dz ⊙ z ⊙ (1 − σ), and the row
sums of dz ⊙ z are those of dy ⊙ y that attention's gradient asks for: y is not needed. Headwise it writes a few numbers a
row: the weights of a gated softmax are those of a log-sum-exp raised by softplus(−logit), so that dz itself is the upstream
gradient. Each element of the results is summed by one program in one order: no atomics, the same bits every time; the price
is that the weights are computed twice, once a kernel.
"""

import triton
import triton.language as tl

from ..attention_stats.column_kernels import LOG2_E, place, rows, spans
from ..gate_apply.kernels import SMALLEST, place_of, scores_of


@triton.jit(do_not_specialize=["n_rows", "T"])
def gate_kernel(
    dz, z, logits, lse, dy, dlogits, pairs, n_rows, T,
    g_batch: tl.int64, g_token: tl.int64, g_head: tl.int64,
    H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """pairs [B, H, T, 2], the log-sum-exp to the base of 2, raised where headwise, and Σ dy ⊙ y of each row, from dz and z
    [rows, K]; beside them dlogits [rows, W] where W > 0 and dy [rows, K] where elementwise."""
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = row < n_rows
    whole = inside[:, None] & (channel < K)[None, :]
    b, t, h = place_of(row, H, T)
    flat, place_BHT = tl.cast(row, tl.int64), (b * H + h) * T + t
    upstream = tl.load((dz + flat * K)[:, None] + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    gated = tl.load((z + flat * K)[:, None] + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    product = upstream * gated
    total = tl.sum(product, axis=1)
    row_lse = tl.load(lse + place_BHT, mask=inside, other=0.0)
    g_row = logits + b * g_batch + t * g_token + h * g_head
    if W == 1:
        score, rest, softplus = scores_of(tl.load(g_row, mask=inside, other=0.0))
        tl.store(dlogits + flat, (total * rest).to(dlogits.dtype.element_ty), mask=inside)
        row_lse += softplus
        total = tl.where(score > SMALLEST, total / tl.maximum(score, SMALLEST), 0.0)
    elif W > 1:
        score, rest, _ = scores_of(tl.load(g_row[:, None] + channel[None, :], mask=whole, other=0.0))
        dg_row, dy_row = (dlogits + flat * K)[:, None] + channel[None, :], (dy + flat * K)[:, None] + channel[None, :]
        tl.store(dg_row, (product * rest).to(dlogits.dtype.element_ty), mask=whole)
        tl.store(dy_row, (upstream * score).to(dy.dtype.element_ty), mask=whole)
    tl.store(pairs + 2 * place_BHT, row_lse * LOG2_E, mask=inside)
    tl.store(pairs + 2 * place_BHT + 1, total, mask=inside)


@triton.jit
def _to_queries(
    dq, q, dy, lse2, delta, k_base, v_base, x, start, stop, k_stride, v_stride, S, least, most, scale,
    X: tl.constexpr, Y: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """dq + what the keys start … stop leave in the rows q, from x on."""
    for y in tl.range(start, stop, Y):
        k = rows(k_base, y, k_stride, S, Y, K, PADDED, MASKED)
        v = rows(v_base, y, v_stride, S, Y, K, PADDED, MASKED)
        exponents = tl.dot(q, tl.trans(k), input_precision="ieee") * scale - lse2[:, None]
        if MASKED:
            key = y + tl.arange(0, Y)
            ahead = key[None, :] - (x + tl.arange(0, X))[:, None]
            exponents = tl.where((ahead >= least) & (ahead <= most) & (key < S)[None, :], exponents, -float("inf"))
        slopes = tl.dot(dy, tl.trans(v), input_precision="ieee") - delta[:, None]
        dlogits = tl.exp2(exponents) * slopes
        dq = tl.dot(dlogits.to(k.dtype), k, acc=dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=["T", "S", "H", "least", "most", "n_heads"])
def queries_kernel(
    q, k, v, dy, pairs, dq, T, S, H, least, most, scale, root,
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64, k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    v_batch: tl.int64, v_token: tl.int64, v_head: tl.int64,
    n_heads, R: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, X: tl.constexpr, Y: tl.constexpr,
    WINDOWED: tl.constexpr, HEADS_TOGETHER: tl.constexpr,
):  # fmt: skip
    """dq [B, T, H, K] from dy [B, T, H, K] and what `gate_kernel` wrote; the rest as in `forward_kernel`, `root`: 1/√K."""
    n_blocks = tl.cdiv(T, X)
    block, bh = place(n_blocks, n_heads, HEADS_TOGETHER)
    b, h = tl.cast(bh // H, tl.int64), bh % H
    t = (n_blocks - 1 - block) * X
    x = t + S - T
    query, channel = t + tl.arange(0, X), tl.arange(0, PADDED)
    inside, row = query < T, tl.cast(bh, tl.int64) * T + query
    first = (b * T * H + h) * K
    q_block = rows(q + b * q_batch + h * q_head, t, q_token, T, X, K, PADDED, True)
    dy_block = rows(dy + first, t, H * K, T, X, K, PADDED, True)
    row_lse2 = tl.load(pairs + 2 * row, mask=inside, other=0.0)
    row_delta = tl.load(pairs + 2 * row + 1, mask=inside, other=0.0)
    k_base, v_base = k + b * k_batch + (h // R) * k_head, v + b * v_batch + (h // R) * v_head

    start, until, whole, after, stop = spans(x, least, most, S, X, Y)
    out = tl.zeros([X, PADDED], tl.float32)
    if WINDOWED:
        out = _to_queries(out, q_block, dy_block, row_lse2, row_delta, k_base, v_base, x, start, until, k_token, v_token,
                          S, least, most, scale, X, Y, K, PADDED, True)  # fmt: skip
    out = _to_queries(out, q_block, dy_block, row_lse2, row_delta, k_base, v_base, x, whole, after, k_token, v_token,
                      S, least, most, scale, X, Y, K, PADDED, False)  # fmt: skip
    out = _to_queries(out, q_block, dy_block, row_lse2, row_delta, k_base, v_base, x, after, stop, k_token, v_token,
                      S, least, most, scale, X, Y, K, PADDED, True)  # fmt: skip
    dq_row = dq + first + tl.cast(query, tl.int64) * H * K
    inside = inside[:, None] & (channel < K)[None, :]
    tl.store(dq_row[:, None] + channel[None, :], (out * root).to(dq.dtype.element_ty), mask=inside)


@triton.jit
def _to_keys(
    dk, dv, k, v, q_base, dy_base, pairs, x, start, stop, q_stride, dy_stride, T, least, most, scale,
    X: tl.constexpr, Y: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """dk and dv + what the queries start … stop leave in the rows k and v, from x on.

    Keys are the rows of the product, so that weights are the left factor as they lie in registers. The two numbers of a
    query are loaded as one block, as large as there are threads: of a smaller one each thread would load all. Past the last
    query dy is 0, and whatever the weights, nothing is added.
    """
    for y in tl.range(start, stop, Y):
        query = y + tl.arange(0, Y)
        q = rows(q_base, y, q_stride, T, Y, K, PADDED, True)
        dy = rows(dy_base, y, dy_stride, T, Y, K, PADDED, True)
        at = pairs + 2 * query[:, None] + tl.arange(0, 2)[None, :]
        row_lse2, row_delta = tl.split(tl.load(at, mask=(query < T)[:, None], other=0.0))
        exponents = tl.dot(k, tl.trans(q), input_precision="ieee") * scale - row_lse2[None, :]
        if MASKED:
            ahead = query[None, :] - (x + tl.arange(0, X))[:, None]
            exponents = tl.where((ahead >= least) & (ahead <= most), exponents, -float("inf"))
        weights = tl.exp2(exponents)
        dv = tl.dot(weights.to(dy.dtype), dy, acc=dv, input_precision="ieee")
        slopes = tl.dot(v, tl.trans(dy), input_precision="ieee") - row_delta[None, :]
        dk = tl.dot((weights * slopes).to(q.dtype), q, acc=dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=["T", "S", "H", "least", "most", "n_heads"])
def keys_kernel(
    q, k, v, dy, pairs, dk, dv, T, S, H, least, most, scale, root,
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64, k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    v_batch: tl.int64, v_token: tl.int64, v_head: tl.int64,
    n_heads, R: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, X: tl.constexpr, Y: tl.constexpr,
    WINDOWED: tl.constexpr, HEADS_TOGETHER: tl.constexpr,
):  # fmt: skip
    """dk and dv [B, S, H / R, K]; `least` and `most`: how far a query may stand behind a key that it sees; `n_heads`: key
    heads of all batches; the rest as in `queries_kernel`."""
    block, bg = place(tl.cdiv(S, X), n_heads, HEADS_TOGETHER)
    G = H // R
    b, g = tl.cast(bg // G, tl.int64), bg % G
    key = block * X
    x = key - (S - T)  # the query that stands at the key
    k_block = rows(k + b * k_batch + g * k_head, key, k_token, S, X, K, PADDED, True)
    v_block = rows(v + b * v_batch + g * v_head, key, v_token, S, X, K, PADDED, True)

    start, until, whole, after, stop = spans(x, least, most, T, X, Y)
    if not WINDOWED:
        after = stop
    dk_block, dv_block = tl.zeros([X, PADDED], tl.float32), tl.zeros([X, PADDED], tl.float32)
    for r in range(R):
        h = g * R + r
        q_base, dy_base = q + b * q_batch + h * q_head, dy + (b * T * H + h) * K
        row_pairs = pairs + 2 * (b * H + h) * T
        dk_block, dv_block = _to_keys(dk_block, dv_block, k_block, v_block, q_base, dy_base, row_pairs, x, start, until,
                                      q_token, H * K, T, least, most, scale, X, Y, K, PADDED, True)  # fmt: skip
        dk_block, dv_block = _to_keys(dk_block, dv_block, k_block, v_block, q_base, dy_base, row_pairs, x, whole, after,
                                      q_token, H * K, T, least, most, scale, X, Y, K, PADDED, False)  # fmt: skip
        if WINDOWED:
            dk_block, dv_block = _to_keys(dk_block, dv_block, k_block, v_block, q_base, dy_base, row_pairs, x, after, stop,
                                          q_token, H * K, T, least, most, scale, X, Y, K, PADDED, True)  # fmt: skip

    row, channel = key + tl.arange(0, X), tl.arange(0, PADDED)
    inside = (row < S)[:, None] & (channel < K)[None, :]
    at = (((b * S + row) * G + g) * K)[:, None] + channel[None, :]
    tl.store(dk + at, (dk_block * root).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + at, dv_block.to(dv.dtype.element_ty), mask=inside)
