"""Triton: softmax(q kᵀ/√K) v in one pass over the keys, multiplied by the gate's score before it is rounded.

Notable: the sums are in registers when the gate comes, so that it costs one read of its logits and no pass of its own; where
there are registers for them they are read before the keys, which hide the wait. Of the weights only their sum and the row's
largest logit are carried (online softmax), to the base of 2. Only blocks that the diagonal, the window or an end cuts through
evaluate a mask, those at the diagonal before the whole ones; of a short causal sequence all do, since a loop begun anew costs
more.
"""

import triton
import triton.language as tl

from ..attention_stats.column_kernels import place, rows, spans
from ..gate_apply.kernels import scores_of

_LN_2 = tl.constexpr(0.6931471805599453)
# Finite, so that no difference of two maxima is not-a-number.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def attended(
    out, mass, largest, q, k_base, v_base, x, start, stop, k_stride, v_stride, S, least, most, scale,
    X: tl.constexpr, Y: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
    WINDOWED: tl.constexpr = True, BOUNDED: tl.constexpr = True,
):  # fmt: skip
    """The three of the rows q, from x on, with the keys start … stop: Σ 2^d v, Σ 2^d and the largest q·k · scale, where d
    is q·k · scale less the largest. Where MASKED, keys further ahead than `most` count nothing, if WINDOWED those further
    behind than `least`, and if BOUNDED those from S on, which are not read."""
    query = x + tl.arange(0, X)
    # One comparison an element says both how far a query sees and where the keys end.
    last = query + most
    if BOUNDED:
        last = tl.minimum(last, S - 1)
    for y in tl.range(start, stop, Y):
        k = rows(k_base, y, k_stride, S, Y, K, PADDED, MASKED and BOUNDED)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            key = y + tl.arange(0, Y)
            is_seen = key[None, :] <= last[:, None]
            if WINDOWED:
                is_seen &= key[None, :] >= (query + least)[:, None]
            products = tl.where(is_seen, products, -float("inf"))
        before = largest
        largest = tl.maximum(before, tl.max(products, axis=1) * scale)
        weights = tl.exp2(products * scale - largest[:, None])
        keep = tl.exp2(before - largest)
        mass = mass * keep + tl.sum(weights, axis=1)
        v = rows(v_base, y, v_stride, S, Y, K, PADDED, MASKED and BOUNDED)
        out = tl.dot(weights.to(v.dtype), v, acc=out * keep[:, None], input_precision="ieee")
    return out, mass, largest


@triton.jit(do_not_specialize=["T", "S", "H", "least", "most", "n_heads"])
def forward_kernel(
    q, k, v, logits, z, lse, T, S, H, least, most, scale,
    q_batch: tl.int64, q_token: tl.int64, q_head: tl.int64, k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64,
    v_batch: tl.int64, v_token: tl.int64, v_head: tl.int64, g_batch: tl.int64, g_token: tl.int64, g_head: tl.int64,
    n_heads, W: tl.constexpr, R: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, X: tl.constexpr,
    Y: tl.constexpr, WINDOWED: tl.constexpr, BOUNDED: tl.constexpr, IN_ONE_LOOP: tl.constexpr, GATE_FIRST: tl.constexpr,
    HEADS_TOGETHER: tl.constexpr,
):  # fmt: skip
    """z [B, T, H, K] and lse [B, H, T] from q [B, T, H, K], k and v [B, S, H / R, K] and logits [B, T, H, W], which W = 0
    leaves unread; `least` and `most`: how far a key may stand ahead of a query that sees it; `scale`: log₂ e / √K; BOUNDED:
    whether S is no multiple of Y; GATE_FIRST: whether an elementwise gate is read before the keys."""
    n_blocks = tl.cdiv(T, X)
    block, bh = place(n_blocks, n_heads, HEADS_TOGETHER)
    b, h = tl.cast(bh // H, tl.int64), bh % H
    t = (n_blocks - 1 - block) * X
    x = t + S - T
    query, channel = t + tl.arange(0, X), tl.arange(0, PADDED)
    inside = query < T
    whole_rows = inside[:, None] & (channel < K)[None, :]
    g_row = logits + b * g_batch + h * g_head + query * g_token
    if GATE_FIRST and W > 1:
        g_block = tl.load(g_row[:, None] + channel[None, :], mask=whole_rows, other=0.0)
    q_block = rows(q + b * q_batch + h * q_head, t, q_token, T, X, K, PADDED, True)
    k_base, v_base = k + b * k_batch + (h // R) * k_head, v + b * v_batch + (h // R) * v_head

    start, until, whole, after, stop = spans(x, least, most, S, X, Y)
    largest = tl.full([X], LOWEST, tl.float32)
    mass, out = tl.zeros([X], tl.float32), tl.zeros([X, PADDED], tl.float32)
    if IN_ONE_LOOP:
        out, mass, largest = attended(out, mass, largest, q_block, k_base, v_base, x, start, stop, k_token, v_token, S,
                                      least, most, scale, X, Y, K, PADDED, True, WINDOWED, BOUNDED)  # fmt: skip
    else:
        out, mass, largest = attended(out, mass, largest, q_block, k_base, v_base, x, after, stop, k_token, v_token, S,
                                      least, most, scale, X, Y, K, PADDED, True, WINDOWED, BOUNDED)  # fmt: skip
        out, mass, largest = attended(out, mass, largest, q_block, k_base, v_base, x, whole, after, k_token, v_token, S,
                                      least, most, scale, X, Y, K, PADDED, False)  # fmt: skip
        if WINDOWED:
            out, mass, largest = attended(out, mass, largest, q_block, k_base, v_base, x, start, until, k_token, v_token,
                                          S, least, most, scale, X, Y, K, PADDED, True, WINDOWED, BOUNDED)  # fmt: skip

    # Rows past the last query may have seen nothing.
    mass = tl.where(inside, mass, 1.0)
    out = out / mass[:, None]
    if W > 0:
        if W == 1:
            score, _, _ = scores_of(tl.load(g_row, mask=inside, other=0.0)[:, None])
        elif GATE_FIRST:
            score, _, _ = scores_of(g_block)
        else:
            score, _, _ = scores_of(tl.load(g_row[:, None] + channel[None, :], mask=whole_rows, other=0.0))
        out = out * score
    z_row = z + ((b * T + query) * H + h) * K
    tl.store(z_row[:, None] + channel[None, :], out.to(z.dtype.element_ty), mask=whole_rows)
    row = lse + tl.cast(bh, tl.int64) * T + query
    tl.store(row, (largest + tl.log2(mass)) * _LN_2, mask=inside)
