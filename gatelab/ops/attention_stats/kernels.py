"""The functions of `identities.py` as Triton kernels, exact at any length: no weight is stored, memory is O(T + S).

Notable: nothing waits for the device, nothing is differentiable, and the same input gives the same bits: no atomics, and
the sizes of blocks follow from the shapes and the device alone, by the tables here, not from a race between them (which
benchmarks/probes/kernels.py runs). Products of bfloat16 and float16 are summed in float32 on the tensor cores, those of
float32 are float32. Importing this file needs Triton; nothing else in Gatelab does.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .column_kernels import column_sums_kernel
from .identities import RowStats, check, skipped
from .row_kernels import first_mass_kernel, row_stats_kernel

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST_HEAD = 256
# Further than any two tokens are apart, and of twice the size still an int32.
_ANY = 2**30
# Heads of which neighbouring programs share what they read, in L2.
_HEADS_TOGETHER = 16


class Tiles(NamedTuple):
    """How a kernel is cut: rows that a program keeps, rows that it passes over at a time, warps, stages of loads ahead, and
    the registers a thread may use (None: all)."""

    kept: int
    passed: int
    n_warps: int
    n_stages: int
    max_registers: int | None = None


# A matrix product leaves the exponentials nothing to overlap with but another program: each table is in the order of
# preference, and the first tiles of which two programs fit a multiprocessor's shared memory are taken.
COLUMN_TILES = (
    Tiles(256, 64, 8, 3, 128), Tiles(256, 64, 8, 2, 128), Tiles(128, 64, 4, 2, 168), Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 2)
)  # fmt: skip
ROW_TILES = (Tiles(128, 128, 8, 2, 128), Tiles(128, 64, 4, 2, 168), Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 2))
# Products of float32 are no work for tensor cores, and hold both factors in registers.
_FLOAT32_TILES = (Tiles(32, 32, 4, 2),)


def row_stats(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    *,
    is_causal: bool = True,
    window: int | None = None,
    tiles: Tiles | None = None,
) -> RowStats:
    """As `identities.row_stats`, in one pass over the keys; `tiles`: None takes those of the table.

    Raises:
        ValueError: as the identity, and for types, head sizes and devices that the kernels do not serve.
    """
    check(q_BTHK, k_BSGK, is_causal=is_causal, window=window)
    q, k = _served(q_BTHK, k_BSGK)
    B, T, H, _ = q.shape
    out = torch.empty(5, B, H, T, dtype=torch.float32, device=q.device)
    if out.numel():
        tiles = tiles or _tiles(ROW_TILES, q)
        least, most = _ahead_of_query(is_causal, window)
        with torch.cuda.device_of(q):
            row_stats_kernel[(triton.cdiv(T, tiles.kept) * B * H,)](
                q, k, out, *_sizes(q, k), least, most, _scale(q), *_strides(q), *_strides(k), B * H,
                HEADS_TOGETHER=_HEADS_TOGETHER, **_blocks(q, tiles),
            )  # fmt: skip
    return RowStats(*out.unbind(0))


def first_mass(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    lse_BHT: Tensor,
    *,
    n_first: int = 1,
    is_causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """As `identities.first_mass`, [B, H, T, n_first]; reads q once.

    Raises:
        ValueError: as `row_stats`.
    """
    check(q_BTHK, k_BSGK, lse_BHT, is_causal=is_causal, window=window, n_first=n_first)
    return _first(q_BTHK, k_BSGK, lse_BHT, n_first, None, is_causal, window)


def mean_first_mass(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    lse_BHT: Tensor,
    *,
    n_first: int = 1,
    skip: int = 0,
    is_causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """As `identities.mean_first_mass`, [B, H, n_first]; reads q once and writes n_first numbers a block of queries.

    Raises:
        ValueError: as `row_stats`, and a `skip` that leaves no query.
    """
    check(q_BTHK, k_BSGK, lse_BHT, is_causal=is_causal, window=window, n_first=n_first)
    before = skipped(q_BTHK, k_BSGK, skip)
    sums = _first(q_BTHK, k_BSGK, lse_BHT, n_first, before, is_causal, window)
    return sums.sum(dim=2) / (q_BTHK.shape[1] - before)


def column_sums(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    lse_BHT: Tensor,
    *,
    is_causal: bool = True,
    window: int | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """As `identities.column_sums`, [B, H, S]; holds one more copy of the lse meanwhile. `tiles`: as in `row_stats`.

    Raises:
        ValueError: as `row_stats`.
    """
    check(q_BTHK, k_BSGK, lse_BHT, is_causal=is_causal, window=window)
    q, k = _served(q_BTHK, k_BSGK, lse_BHT)
    B, T, H, _ = q.shape
    S = k.shape[1]
    if not B * H * T:
        return torch.zeros(B, H, S, dtype=torch.float32, device=q.device)
    tiles = tiles or _tiles(COLUMN_TILES, q)
    out = torch.empty(B, H, S, dtype=torch.float32, device=q.device)
    # To the base of 2, and whole blocks: past the last query ∞, of which no weight is left.
    lse2 = torch.empty(B, H, triton.cdiv(T, tiles.passed) * tiles.passed, dtype=torch.float32, device=q.device)
    lse2[..., T:] = math.inf
    torch.mul(lse_BHT.detach(), 1 / math.log(2), out=lse2[..., :T])
    furthest, nearest = _ahead_of_query(is_causal, window)
    with torch.cuda.device_of(q):
        column_sums_kernel[(triton.cdiv(S, tiles.kept) * B * H,)](
            q, k, lse2, out, *_sizes(q, k), -nearest, -furthest, _scale(q), *_strides(q), *_strides(k), B * H,
            HEADS_TOGETHER=_HEADS_TOGETHER, **_blocks(q, tiles),
        )  # fmt: skip
    return out


def _first(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    lse_BHT: Tensor,
    n_first: int,
    skip: int | None,
    is_causal: bool,
    window: int | None,
) -> Tensor:
    """Mass on the first keys, [B, H, T, n_first]; with `skip`, its sums over each block of queries, from number `skip` on,
    [B, H, blocks, n_first]."""
    q, k = _served(q_BTHK, k_BSGK, lse_BHT)
    B, T, H, _ = q.shape
    tiles = Tiles(32 if q.dtype == torch.float32 else 128, max(16, triton.next_power_of_2(n_first)), 4, 1)
    n_blocks = triton.cdiv(T, tiles.kept)
    out = torch.empty(B, H, T if skip is None else n_blocks, n_first, dtype=torch.float32, device=q.device)
    if out.numel():
        least, most = _ahead_of_query(is_causal, window)
        with torch.cuda.device_of(q):
            first_mass_kernel[(B * H, n_blocks)](
                q, k, lse_BHT.detach().float().contiguous(), out, *_sizes(q, k), least, most, _scale(q), *_strides(q),
                *_strides(k), skip or 0, N=n_first, IS_SUM=skip is not None, **_blocks(q, tiles),
            )  # fmt: skip
    return out


def _served(q_BTHK: Tensor, k_BSGK: Tensor, lse_BHT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q and k with the channels of a head side by side in memory; refuses what the kernels do not serve."""
    if q_BTHK.dtype != k_BSGK.dtype or q_BTHK.dtype not in _DTYPES:
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise ValueError(f"q, k of types {q_BTHK.dtype}, {k_BSGK.dtype}: the kernels take two of one of {names}")
    if q_BTHK.shape[-1] > _WIDEST_HEAD:
        raise ValueError(f"heads of {q_BTHK.shape[-1]} channels: the kernels take {_WIDEST_HEAD} at most")
    devices = {str(t.device) for t in (q_BTHK, k_BSGK, lse_BHT) if t is not None}
    is_compiled = isinstance(column_sums_kernel, triton.JITFunction)
    if len(devices) > 1 or (is_compiled and not q_BTHK.is_cuda):
        raise ValueError(
            f"tensors on {', '.join(sorted(devices))}: the kernels run on one CUDA device; elsewhere take "
            "gatelab.ops.attention_stats.identities"
        )
    if not is_compiled and q_BTHK.dtype == torch.bfloat16:
        # Triton's interpreter would multiply their bits; in float32 the products are the same.
        q_BTHK, k_BSGK = q_BTHK.float(), k_BSGK.float()
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q_BTHK.detach(), k_BSGK.detach()))
    return q, k


def _ahead_of_query(is_causal: bool, window: int | None) -> tuple[int, int]:
    """How many positions ahead of its query a key that it sees stands, at least and at most."""
    reach = _ANY if window is None else min(window - 1, _ANY)
    return -reach, 0 if is_causal else reach


def _tiles(table: tuple[Tiles, ...], q_BTHK: Tensor) -> Tiles:
    table = _FLOAT32_TILES if q_BTHK.dtype == torch.float32 else table
    if not q_BTHK.is_cuda:
        return table[0]
    room = torch.cuda.get_device_properties(q_BTHK.device).shared_memory_per_multiprocessor
    row = _padded(q_BTHK) * q_BTHK.element_size()
    fitting = (t for t in table if 2 * row * (t.kept + t.n_stages * t.passed) < room)
    return next(fitting, table[-1])


def _padded(q_BTHK: Tensor) -> int:
    """Channels of a head as a block holds them: a power of two, and enough for a matrix product."""
    return max(16, triton.next_power_of_2(q_BTHK.shape[-1]))


def _scale(q_BTHK: Tensor) -> float:
    return 1 / (math.log(2) * math.sqrt(q_BTHK.shape[-1]))


def _sizes(q_BTHK: Tensor, k_BSGK: Tensor) -> tuple[int, ...]:
    """T, S, H and query heads a key head."""
    H = q_BTHK.shape[2]
    return q_BTHK.shape[1], k_BSGK.shape[1], H, H // k_BSGK.shape[2]


def _strides(t_BTHK: Tensor) -> tuple[int, int, int]:
    return t_BTHK.stride()[:3]


def _blocks(q_BTHK: Tensor, tiles: Tiles) -> dict[str, int | None]:
    return {
        "K": q_BTHK.shape[-1],
        "PADDED": _padded(q_BTHK),
        "X": tiles.kept,
        "Y": tiles.passed,
        "num_warps": tiles.n_warps,
        "num_stages": tiles.n_stages,
        "maxnreg": tiles.max_registers,
    }
