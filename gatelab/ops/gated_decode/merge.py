"""Triton: what the splits of a query's keys found becomes one output a head, and is gated.

Notable: a merge is loads that wait for one another, so what counts is how many are under way at once. A program makes 32
channels with one warp; it asks for the gate's logits, then at once for everything of up to 64 splits.
Where it can be, it is launched while the splits still run (`merge` says why it may). On an H200, one sequence and 32 query
heads on 8 of 128 channels behind 4,096 tokens, a step took 10.9 µs ungated, 11.5 headwise and 11.2 elementwise with four warps
a head that passed over 32 splits at a time; 10.3, 10.3 and 10.4 with these programs; 9.5, all three, with these launched early.
There, with 16 heads on 16, and behind 32,768 tokens, a gated step is then 0.997 to 1.000 of an ungated one
(`benchmarks/results/decode_h200_2026-11.md`). Importing this file needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gate_apply.kernels import scores_of
from ..gated_attention.short_forward import LOWEST

# Channels of a program, and the most splits that it asks for at once.
_CHANNELS, _AT_ONCE = 32, 64


def is_overlapped(device: torch.device) -> bool:
    """Whether the merge is launched while the splits run: on CUDA devices, not HIP's, from capability 9.0 on, unless Triton
    interprets."""
    is_compiled = isinstance(merge_kernel, triton.JITFunction)
    if device.type != "cuda" or torch.version.cuda is None or not is_compiled:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def merge(
    sums_BHNK: Tensor, pairs_BHN2: Tensor, logits_B1HW: Tensor | None, z_B1HK: Tensor, *, overlapped: bool
) -> Tensor:
    """z, written, from what `kernels.split_kernel` wrote; `overlapped`: of `is_overlapped`, as that kernel had it.

    An overlapped merge is a programmatic dependent launch. It may begin once every program of the kernel before it in the
    stream has begun and has allowed it, and stands at `gdc_wait` until that kernel has ended and its results are seen. Why
    that changes no result:

    - The kernel before it is that of the splits: nothing may be launched between the two. All splits have their places by
      then, so that none waits for one that a merge holds.
    - Only logits are read before the wait. The splits are an ordinary launch: they begin when all that was launched before
      them in the stream has ended, and so has what made the logits, even if it allows its own dependents early.
    - Sums and pairs are read, and z, whose memory an earlier kernel may have read, is written behind the wait.
    - Every program waits for the splits, and the merge allows nothing early. So what is launched next, the splits of another
      call too, begins when both have ended, and may overwrite sums and pairs, whose memory the allocator gives away at once.
      To other streams it does not give it.
    - Capture makes these edges: a programmatic one between the two nodes, whole ones before and behind. To a compiler both
      are one operator.
    """
    B, H, N, K = sums_BHNK.shape
    logits = z_B1HK if logits_B1HW is None else logits_B1HW  # not read without a gate
    n_parts, C = max(16, triton.next_power_of_2(N)), min(max(16, triton.next_power_of_2(K)), _CHANNELS)
    # An option that other backends than CUDA's do not know.
    early = {"launch_pdl": True} if overlapped else {}
    with torch.cuda.device_of(z_B1HK):
        merge_kernel[(H, B, triton.cdiv(K, C))](
            sums_BHNK, pairs_BHN2, logits, z_B1HK, N, logits.stride(0), logits.stride(2),
            W=0 if logits_B1HW is None else logits_B1HW.shape[3], K=K, C=C, PARTS=n_parts,
            MERGED=min(n_parts, _AT_ONCE), OVERLAPPED=overlapped, num_warps=1, **early,
        )  # fmt: skip
    return z_B1HK


@triton.jit(do_not_specialize=["N"])
def merge_kernel(
    sums, pairs, logits, z, N, g_batch: tl.int64, g_head: tl.int64, W: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    PARTS: tl.constexpr, MERGED: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """z [B, 1, H, K] from what `kernels.split_kernel` wrote and logits [B, 1, H, W], which W = 0 leaves unread; 0 where there
    was no key. PARTS is N or more. No loop, no division of integers: all loads stand before what waits for the first."""
    b = tl.cast(tl.program_id(1), tl.int64)
    row, channel = b * tl.num_programs(0) + tl.program_id(0), tl.program_id(2) * C + tl.arange(0, C)
    inside = channel < K
    g_row = logits + b * g_batch + tl.program_id(0) * g_head
    if W == 1:
        logit = tl.load(g_row)
    elif W > 1:
        logit = tl.load(g_row + channel, mask=inside, other=0.0)
    if OVERLAPPED:
        tl.extra.cuda.gdc_wait()
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
        score, _, _ = scores_of(logit)
        out = out * score
    tl.store(z + row * K + channel, out.to(z.dtype.element_ty), mask=inside)
