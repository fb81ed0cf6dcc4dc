"""Triton: the functions of `fused.py`, each in one pass over memory.

Notable: a program takes some rows, of one token and head each, in the order of z, so that headwise and elementwise gates
are one kernel and z comes out as the projection after it wants it, whatever the layouts of y and the logits. Arithmetic
is in float32. Importing this file needs Triton; nothing else in this folder does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers of a tensor that a program holds: 16 a thread, two loads of 16 bytes in a 16-bit type.
_NUMBERS, _WARPS = 2048, 4
# Below, an output that is divided by its score is left 0; see `fused.py`.
SMALLEST = tl.constexpr(2.0**-100)


def gate_output(y_BTHK: Tensor, logits_BTHW: Tensor) -> Tensor:
    """As `fused.gate_output`."""
    B, T, H, K = y_BTHK.shape
    z_BTHK = torch.empty(B, T, H, K, dtype=y_BTHK.dtype, device=y_BTHK.device)
    if z_BTHK.numel():
        rows = _rows(K)
        with torch.cuda.device_of(z_BTHK):
            gate_kernel[(triton.cdiv(B * T * H, rows),)](
                y_BTHK, logits_BTHW, z_BTHK, B * T * H, T, *_strides(y_BTHK), *_strides(logits_BTHW),
                **_sizes(H, K, logits_BTHW.shape[3]),
            )  # fmt: skip
    return z_BTHK


def gate_gradients(
    dz_BTHK: Tensor, kept_BTHK: Tensor, logits_BTHW: Tensor, lse_BHT: Tensor, *, is_output: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fused.gate_gradients`."""
    B, T, H, K = dz_BTHK.shape
    W = logits_BTHW.shape[3]
    # What a variant does not write is never touched.
    dy_BTHK = dz_BTHK if W == 1 else torch.empty_like(kept_BTHK)
    y_BTHK = kept_BTHK if is_output else torch.empty_like(kept_BTHK)
    shifted_BHT = torch.empty_like(lse_BHT) if W == 1 else lse_BHT
    dlogits_BTHW = torch.empty(B, T, H, W, dtype=dtype, device=dz_BTHK.device)
    if dz_BTHK.numel():
        rows = _rows(K)
        with torch.cuda.device_of(dz_BTHK):
            gradients_kernel[(triton.cdiv(B * T * H, rows),)](
                dz_BTHK, kept_BTHK, logits_BTHW, lse_BHT, dy_BTHK, y_BTHK, dlogits_BTHW, shifted_BHT, B * T * H, T,
                *_strides(kept_BTHK), *_strides(logits_BTHW), *_strides(dy_BTHK), *_strides(y_BTHK),
                IS_OUTPUT=is_output, **_sizes(H, K, W),
            )  # fmt: skip
    return dy_BTHK, y_BTHK, shifted_BHT, dlogits_BTHW


@triton.jit
def place_of(row, H: tl.constexpr, T):
    """Batch, token and head of rows."""
    token = row // H
    return tl.cast(token // T, tl.int64), tl.cast(token % T, tl.int64), tl.cast(row % H, tl.int64)


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
    y, logits, z, n_rows, T,
    y_batch: tl.int64, y_token: tl.int64, y_head: tl.int64, g_batch: tl.int64, g_token: tl.int64, g_head: tl.int64,
    H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """z [rows, K] = y ⊙ σ(logits)."""
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = row < n_rows
    whole = inside[:, None] & (channel < K)[None, :]
    b, t, h = place_of(row, H, T)
    g_row = logits + b * g_batch + t * g_token + h * g_head
    if W == 1:
        score, _, _ = scores_of(tl.load(g_row, mask=inside, other=0.0)[:, None])
    else:
        score, _, _ = scores_of(tl.load(g_row[:, None] + channel[None, :], mask=whole, other=0.0))
    y_row = y + b * y_batch + t * y_token + h * y_head
    out = tl.load(y_row[:, None] + channel[None, :], mask=whole, other=0.0).to(tl.float32) * score
    z_row = z + tl.cast(row, tl.int64) * K
    tl.store(z_row[:, None] + channel[None, :], out.to(z.dtype.element_ty), mask=whole)


@triton.jit(do_not_specialize=["n_rows", "T"])
def gradients_kernel(
    dz, kept, logits, lse, dy, y, dlogits, shifted, n_rows, T,
    kept_batch: tl.int64, kept_token: tl.int64, kept_head: tl.int64,
    g_batch: tl.int64, g_token: tl.int64, g_head: tl.int64,
    dy_batch: tl.int64, dy_token: tl.int64, dy_head: tl.int64,
    y_batch: tl.int64, y_token: tl.int64, y_head: tl.int64,
    IS_OUTPUT: tl.constexpr, H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """dlogits from dz [rows, K] and y or z; beside it y where z was kept, dy where elementwise, else the shifted lse."""
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = row < n_rows
    whole = inside[:, None] & (channel < K)[None, :]
    b, t, h = place_of(row, H, T)
    flat = tl.cast(row, tl.int64)
    g_row = logits + b * g_batch + t * g_token + h * g_head
    upstream = tl.load((dz + flat * K)[:, None] + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    kept_row = kept + b * kept_batch + t * kept_token + h * kept_head
    seen = tl.load(kept_row[:, None] + channel[None, :], mask=whole, other=0.0).to(tl.float32)
    product = upstream * seen
    if W == 1:
        score, rest, softplus = scores_of(tl.load(g_row, mask=inside, other=0.0))
        slope = score * rest if IS_OUTPUT else rest
        dg = tl.sum(product, axis=1) * slope
        tl.store(dlogits + flat, dg.to(dlogits.dtype.element_ty), mask=inside)
        place = (b * H + h) * T + t
        tl.store(shifted + place, tl.load(lse + place, mask=inside, other=0.0) + softplus, mask=inside)
        score = score[:, None]
    else:
        score, rest, _ = scores_of(tl.load(g_row[:, None] + channel[None, :], mask=whole, other=0.0))
        slope = score * rest if IS_OUTPUT else rest
        dg_row = dlogits + flat * K
        tl.store(dg_row[:, None] + channel[None, :], (product * slope).to(dlogits.dtype.element_ty), mask=whole)
        dy_row = dy + b * dy_batch + t * dy_token + h * dy_head
        tl.store(dy_row[:, None] + channel[None, :], (upstream * score).to(dy.dtype.element_ty), mask=whole)
    if not IS_OUTPUT:
        y_row = y + b * y_batch + t * y_token + h * y_head
        out = tl.where(score > SMALLEST, seen / tl.maximum(score, SMALLEST), 0.0)
        tl.store(y_row[:, None] + channel[None, :], out.to(y.dtype.element_ty), mask=whole)


def _rows(K: int) -> int:
    return max(1, _NUMBERS // triton.next_power_of_2(K))


def _sizes(H: int, K: int, W: int) -> dict[str, int]:
    return {"H": H, "K": K, "W": W, "PADDED": triton.next_power_of_2(K), "ROWS": _rows(K), "num_warps": _WARPS}


def _strides(t_BTHK: Tensor) -> tuple[int, int, int]:
    return t_BTHK.stride()[:3]
