"""Triton: the functions of `fused.py`, each in one pass over memory.

Notable: a program takes some rows of z, of one token and head each, so that headwise and elementwise gates are one kernel and
z comes out as the projection after it wants it, whatever the layouts of y and the logits. Arithmetic is in float32. Importing
this file needs Triton; nothing else in this folder does.

`TILES` is what was the fastest on an H200, 32,768 tokens, 16 heads of 128 in bfloat16, of 11 to 21 tiles a kernel at 4,096 and
32,768 tokens a sequence (`benchmarks/results/ops_h200_2026-11.md`); `benchmarks/ops/gate_tiles.py` finds it for another device.
`Tile(2048, 4)` stands where nothing beat it at both by the upper quartile. Over it: headwise back with y kept 0.960 to 0.965 of
the time, which is 1.15 of the floor; with z kept 0.978 to 0.981, 1.06 of the floor; elementwise back with y kept 0.992. Raising
the log-sum-exp among the rows of z was 0.03 to 0.04 of the headwise time, so programs of their own do. The hint takes 0.98 of
the headwise time with y kept and 1.04 with z kept.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """How a kernel is cut. `numbers`: of one tensor, that a program holds; `is_apart`: headwise back, programs of their own raise
    the log-sum-exp, which lies by head and token, eight neighbours of a head at a time (without it, which only
    `gate_tiles.py` still times, those of the rows do); `hint`: how L2 is to treat what is read once."""

    numbers: int
    warps: int
    is_apart: bool = False
    hint: str = ""


# (way, granularity, whether the output is kept: None where no matter) -> how its kernel is cut
TILES = {
    ("forward", "headwise", None): Tile(2048, 4),
    ("forward", "elementwise", None): Tile(2048, 4),
    ("back", "headwise", True): Tile(2048, 4, is_apart=True, hint="evict_first"),
    ("back", "headwise", False): Tile(2048, 8, is_apart=True),
    ("back", "elementwise", True): Tile(4096, 8),
    ("back", "elementwise", False): Tile(2048, 4),
}
# Below, an output that is divided by its score is left 0; see `fused.py`.
SMALLEST = tl.constexpr(2.0**-100)
# Tokens of a head whose log-sum-exp are the 32 bytes that memory moves at least.
_TOGETHER = tl.constexpr(8)
_RAISED_A_WARP = 64


def gate_output(y_BTHK: Tensor, logits_BTHW: Tensor, *, tile: Tile | None = None) -> Tensor:
    """As `fused.gate_output`; `tile`: None takes that of the table."""
    B, T, H, K = y_BTHK.shape
    W = logits_BTHW.shape[3]
    z_BTHK = torch.empty(B, T, H, K, dtype=y_BTHK.dtype, device=y_BTHK.device)
    if z_BTHK.numel():
        tile = tile or TILES["forward", _granularity(W), None]
        sizes = _sizes(tile, B * T * H, H, K, W, (y_BTHK, logits_BTHW, z_BTHK))
        with torch.cuda.device_of(z_BTHK):
            gate_kernel[(triton.cdiv(B * T * H, sizes["ROWS"]),)](
                y_BTHK, logits_BTHW, z_BTHK, B * T * H, T, *_strides(y_BTHK), *_strides(logits_BTHW), **sizes
            )  # fmt: skip
    return z_BTHK


def gate_gradients(
    dz_BTHK: Tensor,
    kept_BTHK: Tensor,
    logits_BTHW: Tensor,
    lse_BHT: Tensor,
    *,
    is_output: bool,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fused.gate_gradients`; `tile`: None takes that of the table."""
    (B, T, H, K), W = dz_BTHK.shape, logits_BTHW.shape[3]
    dy_BTHK = None if W == 1 else torch.empty_like(kept_BTHK)
    y_BTHK = None if is_output else torch.empty_like(kept_BTHK)
    shifted_BHT = torch.empty_like(lse_BHT) if W == 1 else None
    dlogits_BTHW = torch.empty(B, T, H, W, dtype=dtype, device=dz_BTHK.device)
    if dz_BTHK.numel():
        tile = tile or TILES["back", _granularity(W), is_output]
        # dy and y have one layout.
        like = next(t for t in (dy_BTHK, y_BTHK, kept_BTHK) if t is not None)
        sizes = _sizes(tile, B * T * H, H, K, W, (dz_BTHK, kept_BTHK, logits_BTHW, like))
        is_apart, raised, together = tile.is_apart and W == 1, _RAISED_A_WARP * tile.warps, _TOGETHER.value * H
        apart = triton.cdiv(triton.cdiv(B * T * H, together) * together, raised) if is_apart else 0
        with torch.cuda.device_of(dz_BTHK):
            gradients_kernel[(apart + triton.cdiv(B * T * H, sizes["ROWS"]),)](
                dz_BTHK, kept_BTHK, logits_BTHW, lse_BHT, dy_BTHK, y_BTHK, dlogits_BTHW, shifted_BHT, B * T * H, T, apart,
                *_strides(kept_BTHK), *_strides(logits_BTHW), *_strides(like),
                IS_OUTPUT=is_output, IS_APART=is_apart, RAISED=raised, **sizes,
            )  # fmt: skip
    pairs = ((dy_BTHK, dz_BTHK), (y_BTHK, kept_BTHK), (shifted_BHT, lse_BHT))
    return *(given if made is None else made for made, given in pairs), dlogits_BTHW


@triton.jit
def place_of(row, H: tl.constexpr, T, INDEX: tl.constexpr = tl.int64):
    """Batch, token and head of rows."""
    token = row // H
    return tl.cast(token // T, INDEX), tl.cast(token % T, INDEX), tl.cast(row % H, INDEX)


@triton.jit
def scores_of(logits):
    """σ and 1 − σ of logits, both without cancellation, and softplus(−logits); no exponential overflows."""
    logits = logits.to(tl.float32)
    small = tl.exp(-tl.abs(logits))
    large, little = 1.0 / (1.0 + small), small / (1.0 + small)
    softplus = tl.maximum(-logits, 0.0) + tl.log(1.0 + small)
    return tl.where(logits >= 0, large, little), tl.where(logits >= 0, little, large), softplus


@triton.jit(do_not_specialize=["n_rows", "T"])
def gate_kernel(
    y, logits, z, n_rows, T, y_batch, y_token, y_head, g_batch, g_token, g_head,
    H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    IS_EVEN: tl.constexpr, INDEX: tl.constexpr, HINT: tl.constexpr,
):  # fmt: skip
    """z [rows, K] = y ⊙ σ(logits)."""
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < n_rows) | IS_EVEN
    whole = inside[:, None] & ((channel < K) | (K == PADDED))[None, :]
    b, t, h = place_of(row, H, T, INDEX)
    g_row = logits + b * g_batch + t * g_token + h * g_head
    if W == 1:
        score, _, _ = scores_of(tl.load(g_row, mask=inside, other=0.0)[:, None])
    else:
        g_at = g_row[:, None] + channel[None, :]
        score, _, _ = scores_of(tl.load(g_at, mask=whole, other=0.0, eviction_policy=HINT))
    y_at = (y + b * y_batch + t * y_token + h * y_head)[:, None] + channel[None, :]
    out = tl.load(y_at, mask=whole, other=0.0, eviction_policy=HINT).to(tl.float32) * score
    z_at = (z + tl.cast(row, INDEX) * K)[:, None] + channel[None, :]
    tl.store(z_at, out.to(z.dtype.element_ty), mask=whole)


@triton.jit(do_not_specialize=["n_rows", "T", "n_apart"])
def gradients_kernel(
    dz, kept, logits, lse, dy, y, dlogits, shifted, n_rows, T, n_apart,
    kept_batch, kept_token, kept_head, g_batch, g_token, g_head, out_batch, out_token, out_head,
    IS_OUTPUT: tl.constexpr, IS_APART: tl.constexpr, RAISED: tl.constexpr,
    H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    IS_EVEN: tl.constexpr, INDEX: tl.constexpr, HINT: tl.constexpr,
):  # fmt: skip
    """dlogits from dz [rows, K] and y or z; beside it y where z was kept, dy where elementwise, else the shifted lse."""
    program = tl.program_id(0)
    if IS_APART:
        if program < n_apart:
            i = program * RAISED + tl.arange(0, RAISED)
            # Rows, as z has them, so that those that follow one another are neighbours of one head.
            row = (i // (_TOGETHER * H) * _TOGETHER + i % _TOGETHER) * H + i // _TOGETHER % H
            b, t, h = place_of(row, H, T, INDEX)
            place, inside = (b * H + h) * T + t, row < n_rows
            _, _, softplus = scores_of(tl.load(logits + b * g_batch + t * g_token + h * g_head, mask=inside, other=0.0))
            tl.store(shifted + place, tl.load(lse + place, mask=inside, other=0.0) + softplus, mask=inside)
            return
        program -= n_apart
    row, channel = program * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = (row < n_rows) | IS_EVEN
    whole = inside[:, None] & ((channel < K) | (K == PADDED))[None, :]
    b, t, h = place_of(row, H, T, INDEX)
    flat, place = tl.cast(row, INDEX), (b * H + h) * T + t
    out_at = (b * out_batch + t * out_token + h * out_head)[:, None] + channel[None, :]
    # Everything is read before the sum: its barrier would hold back what comes behind.
    g_row = logits + b * g_batch + t * g_token + h * g_head
    if W == 1:
        logit = tl.load(g_row, mask=inside, other=0.0)
    else:
        logit = tl.load(g_row[:, None] + channel[None, :], mask=whole, other=0.0, eviction_policy=HINT)
    if shifted is not None and not IS_APART:
        before = tl.load(lse + place, mask=inside, other=0.0)
    upstream_at = (dz + flat * K)[:, None] + channel[None, :]
    upstream = tl.load(upstream_at, mask=whole, other=0.0, eviction_policy=HINT).to(tl.float32)
    kept_at = (kept + b * kept_batch + t * kept_token + h * kept_head)[:, None] + channel[None, :]
    seen = tl.load(kept_at, mask=whole, other=0.0, eviction_policy=HINT).to(tl.float32)
    score, rest, softplus = scores_of(logit)
    slope = score * rest if IS_OUTPUT else rest
    if shifted is not None and not IS_APART:
        tl.store(shifted + place, before + softplus, mask=inside)
    if dy is not None:
        tl.store(dy + out_at, (upstream * score).to(dy.dtype.element_ty), mask=whole)
    if y is not None:
        inverse = tl.where(score > SMALLEST, 1.0 / tl.maximum(score, SMALLEST), 0.0)
        inverse = inverse[:, None] if W == 1 else inverse
        tl.store(y + out_at, (seen * inverse).to(y.dtype.element_ty), mask=whole)
    if W == 1:
        tl.store(dlogits + flat, (tl.sum(upstream * seen, axis=1) * slope).to(dlogits.dtype.element_ty), mask=inside)
    else:
        dg_at = (dlogits + flat * K)[:, None] + channel[None, :]
        tl.store(dg_at, (upstream * seen * slope).to(dlogits.dtype.element_ty), mask=whole)


def _granularity(W: int) -> str:
    return "headwise" if W == 1 else "elementwise"


def _sizes(tile: Tile, n_rows: int, H: int, K: int, W: int, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """What both kernels are compiled for. IS_EVEN: there is no row that is not inside."""
    padded = triton.next_power_of_2(K)
    rows = max(1, tile.numbers // padded)
    return {
        "H": H, "K": K, "W": W, "PADDED": padded, "ROWS": rows, "IS_EVEN": n_rows % rows == 0,
        "INDEX": tl.int32 if all(map(_is_near, tensors)) else tl.int64, "HINT": tile.hint, "num_warps": tile.warps,
    }  # fmt: skip


def _is_near(t: Tensor) -> bool:
    """Whether 32 bits count the numbers from the first to the last."""
    return sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) < 2**31


def _strides(t_BTHK: Tensor) -> tuple[int, int, int]:
    return t_BTHK.stride()[:3]
