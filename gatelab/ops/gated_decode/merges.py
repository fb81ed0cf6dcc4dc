"""Triton: what the splits of a query's keys found becomes one output a head, and is gated.

Notable: MERGE names the row of MERGES in use, for every device. A merge is a few hundred nanoseconds of loads that wait for
one another, so what counts is how many are under way at once. Importing this file needs Triton.
"""

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gate_apply.kernels import scores_of
from ..gated_attention.short_forward import LOWEST


class Merge(NamedTuple):
    """`parts`: whether a program passes over 32 splits at a time, reading their sums once it has their weights, or asks for
    those of up to 64 before anything waits; its warps; the channels of a head that it makes at most; `logits`: read by it as
    one number or as a row of equal ones where a head has one, or read by the first split, which leaves it the scores (early);
    `is_overlapped`: launched beside the splits, which it waits for once its logits are read, from capability 9.0 on."""

    parts: Literal["passes", "at once"]
    n_warps: int
    channels: int
    logits: Literal["one", "row", "early"]
    is_overlapped: bool


MERGES = {
    "direct": Merge("passes", 4, 256, "one", False),
    "vector": Merge("passes", 4, 256, "row", False),
    "early": Merge("passes", 4, 256, "early", False),
    "once": Merge("at once", 4, 256, "one", False),
    "narrow": Merge("at once", 1, 32, "one", False),
    "pdl": Merge("passes", 4, 256, "one", True),
    "narrow-pdl": Merge("at once", 1, 32, "one", True),
}
MERGE = "direct"
# Splits that a program reads at a time, of `passes` and at most of `at once`.
_PASSED, _AT_ONCE = 32, 64


def in_use() -> Merge:
    """The row that MERGE names."""
    return MERGES[MERGE]


def is_overlapped(device: torch.device) -> bool:
    """Whether the merge in use is launched beside the splits."""
    if not in_use().is_overlapped or device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def merge(
    sums_BHNK: Tensor, pairs_BHN2: Tensor, scores_BHW: Tensor | None, logits_B1HW: Tensor | None, z_B1HK: Tensor
) -> Tensor:
    """z, written, from what `kernels.split_up` gave; gated by the scores where there are any, else by σ of the logits."""
    (B, H, N, K), how, device = sums_BHNK.shape, in_use(), z_B1HK.device
    W = 0 if logits_B1HW is None else logits_B1HW.shape[3]
    logits = z_B1HK if logits_B1HW is None else logits_B1HW if scores_BHW is None else scores_BHW[:, None]
    padded, overlapped = max(16, triton.next_power_of_2(K)), is_overlapped(device)
    is_row = how.logits == "row" and W == 1
    constants = {"W": W, "K": K, "SCORED": scores_BHW is not None, "ROW": is_row, "OVERLAPPED": overlapped}
    # An option that other backends than CUDA's do not know.
    options = {"num_warps": how.n_warps} | ({"launch_pdl": True} if overlapped else {})
    with torch.cuda.device_of(z_B1HK):
        if how.parts == "passes":
            merge_kernel[(B * H,)](
                sums_BHNK, pairs_BHN2, logits, z_B1HK, H, N, logits.stride(0), logits.stride(2), **constants,
                PADDED=padded, MERGED=_PASSED, **options,
            )  # fmt: skip
        else:
            n_parts, C = max(16, triton.next_power_of_2(N)), min(padded, how.channels)
            at_once_kernel[(H, B, triton.cdiv(K, C))](
                sums_BHNK, pairs_BHN2, logits, z_B1HK, N, logits.stride(0), logits.stride(2), **constants, C=C,
                PARTS=n_parts, MERGED=min(n_parts, _AT_ONCE), **options,
            )  # fmt: skip
    return z_B1HK


@triton.jit
def read_logits(g_row, channel, inside, W: tl.constexpr, ROW: tl.constexpr):
    """A head's, or those of its channels, or the scores that are in their place; W is not 0."""
    if W > 1:
        return tl.load(g_row + channel, mask=inside, other=0.0)
    elif ROW:
        return tl.load(g_row + channel * 0, mask=inside, other=0.0)
    else:
        return tl.load(g_row)


@triton.jit
def scored(read, SCORED: tl.constexpr):
    """σ of what was read, unless that is the scores."""
    if SCORED:
        return read
    else:
        score, _, _ = scores_of(read)
        return score


@triton.jit(do_not_specialize=["H", "N"])
def merge_kernel(
    sums, pairs, logits, z, H, N, g_batch: tl.int64, g_head: tl.int64, W: tl.constexpr, K: tl.constexpr,
    SCORED: tl.constexpr, ROW: tl.constexpr, OVERLAPPED: tl.constexpr, PADDED: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """z [B, 1, H, K] from what `kernels.split_kernel` wrote and logits [B, 1, H, W], or scores, which W = 0 leaves unread; 0
    where there was no key."""
    row, channel = tl.cast(tl.program_id(0), tl.int64), tl.arange(0, PADDED)
    inside = channel < K
    g_row = logits + row // H * g_batch + row % H * g_head
    # Before anything that waits for the splits' results, unless it is one of them.
    if W > 0 and not SCORED:
        score = scored(read_logits(g_row, channel, inside, W, ROW), SCORED)
    if OVERLAPPED:
        tl.extra.cuda.gdc_wait()
    if W > 0 and SCORED:
        score = read_logits(g_row, channel, inside, W, ROW)
    largest, mass = tl.full([], LOWEST, tl.float32), tl.zeros([], tl.float32)
    out = tl.zeros([PADDED], tl.float32)
    for n in range(0, N, MERGED):
        split = n + tl.arange(0, MERGED)
        at = row * N + split
        part_mass = tl.load(pairs + 2 * at, mask=split < N, other=0.0)
        part_largest = tl.load(pairs + 2 * at + 1, mask=split < N, other=LOWEST)
        before = largest
        largest = tl.maximum(before, tl.max(part_largest, axis=0))
        keep, weights = tl.exp2(before - largest), tl.exp2(part_largest - largest)
        mass = mass * keep + tl.sum(part_mass * weights, axis=0)
        whole = (split < N)[:, None] & inside[None, :]
        part = tl.load((sums + at * K)[:, None] + channel[None, :], mask=whole, other=0.0)
        out = out * keep + tl.sum(part * weights[:, None], axis=0)
    out = out / tl.where(mass > 0, mass, 1.0)
    if W > 0:
        out = out * score
    tl.store(z + row * K + channel, out.to(z.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N"])
def at_once_kernel(
    sums, pairs, logits, z, N, g_batch: tl.int64, g_head: tl.int64, W: tl.constexpr, K: tl.constexpr,
    SCORED: tl.constexpr, ROW: tl.constexpr, OVERLAPPED: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr,
    MERGED: tl.constexpr,
):  # fmt: skip
    """As `merge_kernel`, C channels a program; PARTS is N or more. No loop and no division: all loads stand before what waits
    for the first of them."""
    b = tl.cast(tl.program_id(1), tl.int64)
    row, channel = b * tl.num_programs(0) + tl.program_id(0), tl.program_id(2) * C + tl.arange(0, C)
    inside = channel < K
    g_row = logits + b * g_batch + tl.program_id(0) * g_head
    if W > 0 and not SCORED:
        read = read_logits(g_row, channel, inside, W, ROW)
    if OVERLAPPED:
        tl.extra.cuda.gdc_wait()
    if W > 0 and SCORED:
        read = read_logits(g_row, channel, inside, W, ROW)
    largest, mass = tl.full([], LOWEST, tl.float32), tl.zeros([], tl.float32)
    out = tl.zeros([C], tl.float32)
    for n in tl.static_range(0, PARTS, MERGED):
        split = n + tl.arange(0, MERGED)
        at = row * N + split
        whole = (split < N)[:, None] & inside[None, :]
        # 64 bits once, 32 within a row.
        part = tl.load(sums + row * N * K + (split * K)[:, None] + channel[None, :], mask=whole, other=0.0)
        part_mass = tl.load(pairs + 2 * at, mask=split < N, other=0.0)
        part_largest = tl.load(pairs + 2 * at + 1, mask=split < N, other=LOWEST)
        before = largest
        largest = tl.maximum(before, tl.max(part_largest, axis=0))
        keep, weights = tl.exp2(before - largest), tl.exp2(part_largest - largest)
        mass = mass * keep + tl.sum(part_mass * weights, axis=0)
        out = out * keep + tl.sum(part * weights[:, None], axis=0)
    out = out / tl.where(mass > 0, mass, 1.0)
    if W > 0:
        # Not above: nothing is to wait for the logits before the sums are asked for.
        out = out * scored(read, SCORED)
    tl.store(z + row * K + channel, out.to(z.dtype.element_ty), mask=inside)
