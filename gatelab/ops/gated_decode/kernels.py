"""Triton: one query a sequence; the keys are cut into splits that run side by side, and what they found is merged and gated
(`merge.py`).

Notable: a program reads its keys and values once for all query heads that share them, as the rows of one matrix product. The
gate is part of the merge, so it costs one read of its logits. How many splits there are follows from shapes and the device
alone; where they begin is worked out on the device from each sequence's own length, so that a captured graph serves every
length. Nothing waits for the device, no atomics: the same bits every time. Importing this file needs Triton.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention_stats.column_kernels import rows
from ..gated_attention.short_forward import LOWEST, attended
from .merge import is_overlapped, merge

# More than any cache holds, and of twice the size still an int32.
_ANY = 2**30
_FAR = tl.constexpr(_ANY)


class Cut(NamedTuple):
    """Keys that a program passes over at a time, warps, stages of loads ahead, programs a multiprocessor to aim at, and the
    fewest keys of a split."""

    passed: int
    n_warps: int
    n_stages: int
    n_programs: int
    fewest: int


class Cuts(NamedTuple):
    """`few` where sequences and key heads alone do not fill a device; `many` where they do, by keys at most, the last for
    any number."""

    few: Cut
    many: tuple[tuple[int, Cut], ...]


# Sequences times key heads from which on they fill a device by themselves: about two programs a multiprocessor of 132.
_MANY = 256
# Channels of a head at most -> the cuts. Those of 128 channels launch the fastest of the four to seven timed at 8, 64 and 512
# sequences times key heads behind 4,096 and 32,768 keys on an H100 (`benchmarks/results/inside_h100_2026-11.md`). With few,
# splits as many as fill the device, of 256 keys at least: 16 of them took 12.1 µs where 32 took 13.2. With many, two or three
# splits a sequence and key head took less than one. Between the two lengths nothing was timed: the middle of their logarithms.
# Nor were other widths; wider heads pass over fewer keys at a time, for the sake of shared memory.
CUTS = {
    64: Cuts(Cut(64, 4, 3, 2, 128), ((_ANY, Cut(64, 4, 3, 2, 128)),)),
    128: Cuts(Cut(64, 4, 3, 2, 256), ((11_585, Cut(128, 4, 2, 4, 128)), (_ANY, Cut(64, 4, 3, 8, 128)))),
    256: Cuts(Cut(32, 4, 3, 2, 128), ((_ANY, Cut(32, 4, 3, 2, 128)),)),
}


def gated_decode(
    q_B1HK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    logits_B1HW: Tensor | None,
    *,
    window: int | None,
    first_B: Tensor | None,
    end_B: Tensor | None,
    cut: Cut | None = None,
) -> Tensor:
    """As `reference.gated_decode` with a sigmoid gate; sums are in float32, and z is rounded once.

    Args:
        logits_B1HW: one a sequence and head, or a sequence, head and channel, the channels side by side.
        cut: None takes that of the table.
    """
    if q_B1HK.dtype == torch.bfloat16 and not isinstance(split_kernel, triton.JITFunction):
        # Triton's interpreter would multiply their bits; in float32 the products are the same.
        given = (t if t is None else t.float() for t in (q_B1HK, k_BSGK, v_BSGK, logits_B1HW))
        return gated_decode(*given, window=window, first_B=first_B, end_B=end_B, cut=cut).to(q_B1HK.dtype)
    (B, _, H, K), (S, G) = q_B1HK.shape, k_BSGK.shape[1:3]
    cut = cut or cut_of(K, B * G, S)
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q_B1HK, k_BSGK, v_BSGK))
    # What is not given is never read; a number of each sequence may be a view, and one number of all of them.
    first, end = (q if slots_B is None else slots_B.contiguous() for slots_B in (first_B, end_B))
    N, overlapped = n_splits(q, k, cut), is_overlapped(q.device)
    sums_BHNK = torch.empty(B, H, N, K, dtype=torch.float32, device=q.device)
    pairs_BHN2 = torch.empty(B, H, N, 2, dtype=torch.float32, device=q.device)
    z_B1HK = torch.empty(B, 1, H, K, dtype=q.dtype, device=q.device)
    with torch.cuda.device_of(q):
        split_kernel[(G * N, B)](
            q, k, v, first, end, sums_BHNK, pairs_BHN2, S, G, N,
            _ANY if window is None else min(window, _ANY), 1 / (math.log(2) * math.sqrt(K)), *_strides(q)[::2],
            *_strides(k), *_strides(v), HAS_FIRST=first_B is not None, HAS_END=end_B is not None, R=H // G, K=K,
            PADDED=max(16, triton.next_power_of_2(K)), X=max(16, triton.next_power_of_2(H // G)), Y=cut.passed,
            OVERLAPPED=overlapped, num_warps=cut.n_warps, num_stages=cut.n_stages,
        )  # fmt: skip
    # Nothing may be launched in between: see there.
    return merge(sums_BHNK, pairs_BHN2, logits_B1HW, z_B1HK, overlapped=overlapped)


def cut_of(K: int, n_rows: int, n_keys: int) -> Cut:
    """The table's for heads of K channels, so many sequences times key heads, and a cache of so many keys."""
    cuts = next(cuts for widest, cuts in CUTS.items() if widest >= K)
    return cuts.few if n_rows < _MANY else next(cut for most, cut in cuts.many if most >= n_keys)


def n_splits(q_B1HK: Tensor, k_BSGK: Tensor, cut: Cut) -> int:
    """Into how many parts the keys of a sequence are cut: as many as fill the device, of no fewer keys than pay."""
    n_programs = cut.n_programs
    if q_B1HK.is_cuda:
        n_programs *= torch.cuda.get_device_properties(q_B1HK.device).multi_processor_count
    B, S, G, _ = k_BSGK.shape
    return max(1, min(triton.cdiv(n_programs, B * G), triton.cdiv(S, cut.fewest)))


@triton.jit(do_not_specialize=["S", "G", "N", "window"])
def split_kernel(
    q, k, v, first, end, sums, pairs, S, G, N, window, scale,
    q_batch: tl.int64, q_head: tl.int64, k_batch: tl.int64, k_token: tl.int64, k_head: tl.int64, v_batch: tl.int64,
    v_token: tl.int64, v_head: tl.int64, HAS_FIRST: tl.constexpr, HAS_END: tl.constexpr, R: tl.constexpr,
    K: tl.constexpr, PADDED: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """sums [B, H, N, K], Σ 2^d v of each split's keys, and pairs [B, H, N, 2], Σ 2^d and the largest logit, from q [B, 1, H, K]
    and k and v [B, S, G, K]; d and `scale` as in `short_forward.attended`. Key heads of a split are neighbours, in memory
    too. OVERLAPPED: the merge may be launched already; it waits."""
    if OVERLAPPED:
        tl.extra.cuda.gdc_launch_dependents()
    g, split = tl.program_id(0) % G, tl.program_id(0) // G
    b = tl.cast(tl.program_id(1), tl.int64)
    stop = S
    if HAS_END:
        stop = tl.minimum(tl.cast(tl.load(end + b), tl.int32), S)
    start = tl.maximum(stop - window, 0)
    if HAS_FIRST:
        start = tl.maximum(start, tl.cast(tl.load(first + b), tl.int32))
    n_keys = tl.cdiv(tl.cdiv(tl.maximum(stop - start, 0), Y), N) * Y
    start = tl.minimum(start + split * n_keys, stop)
    stop = tl.minimum(start + n_keys, stop)
    whole = start + (stop - start) // Y * Y

    q_block = rows(q + b * q_batch + g * R * q_head, 0, q_head, R, X, K, PADDED, True)
    k_base, v_base = k + b * k_batch + g * k_head, v + b * v_batch + g * v_head
    largest = tl.full([X], LOWEST, tl.float32)
    mass, out = tl.zeros([X], tl.float32), tl.zeros([X, PADDED], tl.float32)
    # Of the keys before `stop` a query of one token sees all, wherever its row stands.
    least, most = -_FAR, _FAR
    out, mass, largest = attended(out, mass, largest, q_block, k_base, v_base, 0, start, whole, k_token, v_token, stop,
                                  least, most, scale, X, Y, K, PADDED, False)  # fmt: skip
    out, mass, largest = attended(out, mass, largest, q_block, k_base, v_base, 0, whole, stop, k_token, v_token, stop,
                                  least, most, scale, X, Y, K, PADDED, True, WINDOWED=False)  # fmt: skip

    row, channel = tl.arange(0, X), tl.arange(0, PADDED)
    at = ((b * G + g) * R + row) * N + split
    tl.store((sums + at * K)[:, None] + channel[None, :], out, mask=(row < R)[:, None] & (channel < K)[None, :])
    tl.store(pairs + 2 * at, mass, mask=row < R)
    tl.store(pairs + 2 * at + 1, largest, mask=row < R)


def _strides(t_BTHK: Tensor) -> tuple[int, int, int]:
    return t_BTHK.stride()[:3]
