"""Attention, its gate and the way back through both as Triton kernels of their own: what `short.py` calls.

Notable: q, k, v and logits are read where they lie, slices of a packed projection among them, and what is written is
contiguous. The sizes of blocks follow from the shapes alone, by the tables here. Products of bfloat16 and float16 are summed
in float32 on the tensor cores. Importing this file needs Triton.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..attention_stats.kernels import Tiles
from .short_backward import gate_kernel, keys_kernel, queries_kernel
from .short_forward import forward_kernel

# Channels of a head, as a block holds them, and how each kernel is cut for them: of heads of 64 and 32 the fastest of up to 21
# cuts on an H100, or within 2.1% of it (benchmarks/results/short_tiles_h100_2026-11.md). Heads of 128 would gain 4 to 9% forward
# by a third stage of loads, whose 112 KiB of shared memory not every GPU has.
FORWARD_TILES = {32: Tiles(64, 64, 4, 3), 64: Tiles(64, 64, 4, 3), 128: Tiles(64, 64, 4, 2)}
# Where an elementwise gate waits in registers, four programs share a multiprocessor only if they are held to it.
GATED_TILES = FORWARD_TILES | {64: Tiles(64, 64, 4, 3, 128)}
QUERY_TILES = {32: Tiles(64, 64, 4, 3), 64: Tiles(64, 64, 4, 3), 128: Tiles(64, 64, 4, 2)}
KEY_TILES = {32: Tiles(64, 64, 4, 3), 64: Tiles(64, 64, 4, 3), 128: Tiles(64, 32, 4, 3)}
# Keys of a causal sequence up to which one loop with masks everywhere is mostly faster than two.
_IN_ONE_LOOP = 256
# Channels of a head up to which an elementwise gate's logits are read before the keys.
_GATE_FIRST = 64
# Further than any two tokens are apart, and of twice the size still an int32.
_ANY = 2**30
# Heads of which neighbouring programs share what they read, in L2.
_HEADS_TOGETHER = 16
# Numbers of a tensor that a program of the gate's pass holds.
_NUMBERS, _WARPS = 2048, 4


class Gradients(NamedTuple):
    """Contiguous, in the shapes of what they are the gradients of."""

    dq_BTHK: Tensor
    dk_BSGK: Tensor
    dv_BSGK: Tensor
    dlogits_BTHW: Tensor | None


def attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    logits_BTHW: Tensor | None,
    *,
    is_causal: bool,
    window: int | None,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """z [B, T, H, K] and the log-sum-exp [B, H, T] in float32; `tiles`: None takes those of the table.

    Args:
        logits_BTHW: one a token and head, or a token, head and channel, the channels side by side.
    """
    B, T, H, K = q_BTHK.shape
    z_BTHK = torch.empty(B, T, H, K, dtype=q_BTHK.dtype, device=q_BTHK.device)
    lse_BHT = torch.empty(B, H, T, dtype=torch.float32, device=q_BTHK.device)
    if _is_interpreted_bfloat16(q_BTHK):
        wide = attend(*_float32(q_BTHK, k_BSGK, v_BSGK, logits_BTHW), is_causal=is_causal, window=window, tiles=tiles)
        return wide[0].to(q_BTHK.dtype), wide[1]
    tiles = tiles or (GATED_TILES if _width(logits_BTHW) > 1 else FORWARD_TILES)[_row(K)]
    least, most = _ahead_of_query(is_causal, window)
    q, k, v = (_side_by_side(t) for t in (q_BTHK, k_BSGK, v_BSGK))
    S = k.shape[1]
    with torch.cuda.device_of(q):
        forward_kernel[(triton.cdiv(T, tiles.kept) * B * H,)](
            q, k, v, z_BTHK if logits_BTHW is None else logits_BTHW, z_BTHK, lse_BHT, *_sizes(q, k), least, most,
            _scale(K), *_strides(q), *_strides(k), *_strides(v), *_strides(logits_BTHW), B * H, W=_width(logits_BTHW),
            BOUNDED=S % tiles.passed > 0, IN_ONE_LOOP=is_causal and S <= _IN_ONE_LOOP, GATE_FIRST=K <= _GATE_FIRST,
            **_blocks(q, k, window, tiles),
        )  # fmt: skip
    return z_BTHK, lse_BHT


def gradients(
    dz_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    logits_BTHW: Tensor | None,
    z_BTHK: Tensor,
    lse_BHT: Tensor,
    *,
    is_causal: bool,
    window: int | None,
    dtype: torch.dtype | None = None,
    query_tiles: Tiles | None = None,
    key_tiles: Tiles | None = None,
) -> Gradients:
    """The way back through `attend`, given what it was given and returned, and a contiguous upstream gradient.

    Memory beside the results: two numbers a row, and elementwise one tensor of the output's size.

    Args:
        dtype: of the logits' gradient, None for theirs; one that is summed afterwards is not rounded before.
        query_tiles, key_tiles: None takes those of the tables.
    """
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    if dtype is None and logits_BTHW is not None:
        dtype = logits_BTHW.dtype
    if _is_interpreted_bfloat16(q_BTHK):
        wide = gradients(
            *_float32(dz_BTHK, q_BTHK, k_BSGK, v_BSGK, logits_BTHW, z_BTHK), lse_BHT, is_causal=is_causal, window=window,
            dtype=dtype, query_tiles=query_tiles, key_tiles=key_tiles,
        )  # fmt: skip
        return Gradients(*(t.to(q_BTHK.dtype) for t in wide[:3]), wide.dlogits_BTHW)
    dy_BTHK, dlogits_BTHW, pairs_BHT2 = _behind_the_gate(dz_BTHK, logits_BTHW, z_BTHK, lse_BHT, dtype)
    q, k, v = (_side_by_side(t) for t in (q_BTHK, k_BSGK, v_BSGK))
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    least, most = _ahead_of_query(is_causal, window)
    given, root = (q, k, v, dy_BTHK, pairs_BHT2), 1 / math.sqrt(K)
    strides = (*_strides(q), *_strides(k), *_strides(v))
    with torch.cuda.device_of(q):
        tiles = key_tiles or KEY_TILES[_row(K)]
        keys_kernel[(triton.cdiv(S, tiles.kept) * B * G,)](
            *given, dk, dv, *_sizes(q, k), -most, -least, _scale(K), root, *strides, B * G, **_blocks(q, k, window, tiles)
        )  # fmt: skip
        tiles = query_tiles or QUERY_TILES[_row(K)]
        queries_kernel[(triton.cdiv(T, tiles.kept) * B * H,)](
            *given, dq, *_sizes(q, k), least, most, _scale(K), root, *strides, B * H, **_blocks(q, k, window, tiles)
        )
    return Gradients(dq, dk, dv, dlogits_BTHW)


def _behind_the_gate(
    dz_BTHK: Tensor, logits_BTHW: Tensor | None, z_BTHK: Tensor, lse_BHT: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The upstream gradient before the gate, the logits' gradient, and the two numbers of each row that `gate_kernel` has."""
    B, T, H, K = dz_BTHK.shape
    W = _width(logits_BTHW)
    dy_BTHK = torch.empty_like(dz_BTHK) if W > 1 else dz_BTHK
    dlogits_BTHW = None if W == 0 else torch.empty(B, T, H, W, dtype=dtype, device=dz_BTHK.device)
    pairs_BHT2 = torch.empty(*lse_BHT.shape, 2, dtype=torch.float32, device=lse_BHT.device)
    rows = max(1, _NUMBERS // triton.next_power_of_2(K))
    # What a variant does not read or write is never touched.
    logits, dlogits = (dz_BTHK, dz_BTHK) if logits_BTHW is None else (logits_BTHW, dlogits_BTHW)
    with torch.cuda.device_of(dz_BTHK):
        gate_kernel[(triton.cdiv(B * T * H, rows),)](
            dz_BTHK, z_BTHK, logits, lse_BHT, dy_BTHK, dlogits, pairs_BHT2, B * T * H, T, *_strides(logits_BTHW),
            H=H, K=K, W=W, PADDED=triton.next_power_of_2(K), ROWS=rows, num_warps=_WARPS,
        )  # fmt: skip
    return dy_BTHK, dlogits_BTHW, pairs_BHT2


def _is_interpreted_bfloat16(q_BTHK: Tensor) -> bool:
    """Triton's interpreter would multiply the bits of bfloat16; in float32 the products are the same."""
    return q_BTHK.dtype == torch.bfloat16 and not isinstance(forward_kernel, triton.JITFunction)


def _float32(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.float() for t in tensors]


def _side_by_side(t_BTHK: Tensor) -> Tensor:
    return t_BTHK if t_BTHK.stride(3) == 1 else t_BTHK.contiguous()


def _ahead_of_query(is_causal: bool, window: int | None) -> tuple[int, int]:
    """How many positions ahead of its query a key that it sees stands, at least and at most."""
    reach = _ANY if window is None else min(window - 1, _ANY)
    return -reach, 0 if is_causal else reach


def _width(logits_BTHW: Tensor | None) -> int:
    return 0 if logits_BTHW is None else logits_BTHW.shape[3]


def _row(K: int) -> int:
    """Channels as the tables have them."""
    return max(32, triton.next_power_of_2(K))


def _scale(K: int) -> float:
    return 1 / (math.log(2) * math.sqrt(K))


def _sizes(q_BTHK: Tensor, k_BSGK: Tensor) -> tuple[int, int, int]:
    """T, S and H."""
    return q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[2]


def _strides(t_BTHK: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if t_BTHK is None else t_BTHK.stride()[:3]


def _blocks(q_BTHK: Tensor, k_BSGK: Tensor, window: int | None, tiles: Tiles) -> dict[str, int | None]:
    K = q_BTHK.shape[3]
    return {
        "R": q_BTHK.shape[2] // k_BSGK.shape[2],
        "WINDOWED": window is not None,
        "K": K,
        "PADDED": max(16, triton.next_power_of_2(K)),
        "X": tiles.kept,
        "Y": tiles.passed,
        "HEADS_TOGETHER": _HEADS_TOGETHER,
        "num_warps": tiles.n_warps,
        "num_stages": tiles.n_stages,
        "maxnreg": tiles.max_registers,
    }
