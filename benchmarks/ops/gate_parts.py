"""The headwise gate's way back in parts, so that what each of them costs can be timed: the last tables of `gate_tiles.py`, once
as there, once with an L2 that is left clean, so that nothing of the overwriting is still to be written during the timing.

Rows are in the order of z, 16 of 128 channels a program, on tensors that lie contiguous but for the logits.
"""

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.bench import ops
from gatelab.bench.candidates import gate_candidates
from gatelab.bench.timing import Work, clock
from gatelab.config import GateSpec
from gatelab.ops.gate_apply.kernels import scores_of

if TYPE_CHECKING:
    from gate_tiles import Sweep

_ROWS, _WARPS = 16, 4
_ROUNDS = 25


class Parts(NamedTuple):
    """`shift`: when the log-sum-exp is read, `early` or `late`, before or behind the sum, or `never`; `sums`: whether the
    logits' gradient is summed and written; `writes`: whether the output is recovered and written."""

    shift: str = "early"
    sums: bool = True
    writes: bool = False


def time_parts(sweep: "Sweep") -> None:
    """Into what a sweep found, for its first length: today's way back, the best tile's, its parts, and torch.compile's, also
    without the output's gradient, when it reads what `flash` does."""
    T, spec = sweep.lengths[0], GateSpec.parse("sdpa-headwise")
    given, clocks = sweep.long["headwise", T], {"L2 overwritten": sweep.measure}
    clocks |= {} if sweep.is_small else {"L2 left clean": clock(sweep.device, is_clean=True)}
    peer = [c for c in gate_candidates(spec, sweep.device) if not c.is_own][-1]
    alone = ops._of_gate(given.arguments, replace(peer, without=("y_BTHK",)))
    peers = {"peer": sweep.peers["headwise", T]["back"]}
    peers |= {"peer, dlogits alone": ops._gate_work(peer.call, alone, "backward", 0.0)}
    for keeps, (how, measure) in itertools.product((True, False), clocks.items()):
        key = ("back", "headwise", keeps)
        name = f"headwise, back, {'flash' if keeps else 'flash-lean'}"
        if not sweep.reached(f"parts, {name}, {how}"):
            continue
        tensors = (given.dz_BTHK, given.y_BTHK if keeps else given.z_BTHK, given.logits_BTHW, given.lse_BHT)
        works = sweep.works(key, T, sweep.best.get(key, [])[:1])
        for part, parts in works_of(is_output=keeps).items():
            works[part] = Work(lambda _, parts=parts, tensors=tensors: run(*tensors, parts))
        times = sweep.turns(f"parts, {name}, {how}", works | peers, _ROUNDS, measure)
        sweep.found["parts"].setdefault(name, {})[how] = sweep.told(key, T, times)


def works_of(*, is_output: bool) -> dict[str, Parts]:
    """What is timed, by name."""
    whole = Parts(writes=not is_output)
    out = {
        "parts: all, lse read behind the sum": whole._replace(shift="late"),
        "parts: all, lse read before it": whole,
        "parts: without lse": whole._replace(shift="never"),
        "parts: without the sum": whole._replace(sums=False),
        "parts: the large tensors alone": whole._replace(shift="never", sums=False),
    }
    return out if is_output else out | {"parts: without writing y": whole._replace(writes=False)}


def run(dz_BTHK: Tensor, kept_BTHK: Tensor, logits_BTH1: Tensor, lse_BHT: Tensor, parts: Parts) -> tuple[Tensor, ...]:
    """y, shifted lse and dlogits, of which only what the parts write is filled."""
    B, T, H, K = dz_BTHK.shape
    y_BTHK = torch.empty_like(kept_BTHK) if parts.writes else kept_BTHK
    shifted_BHT = torch.empty_like(lse_BHT)
    dlogits_BTH1 = torch.empty(B, T, H, 1, dtype=logits_BTH1.dtype, device=dz_BTHK.device)
    parts_kernel[(B * T * H // _ROWS,)](
        dz_BTHK, kept_BTHK, logits_BTH1, lse_BHT, y_BTHK, dlogits_BTH1, shifted_BHT, T, 0, logits_BTH1.stride(1),
        SHIFT=parts.shift, SUMS=parts.sums, WRITES=parts.writes, H=H, K=K, ROWS=_ROWS, num_warps=_WARPS,
    )  # fmt: skip
    return y_BTHK, shifted_BHT, dlogits_BTH1


@triton.jit(do_not_specialize=["T", "never"])
def parts_kernel(
    dz, kept, logits, lse, y, dlogits, shifted, T, never, g_token,
    SHIFT: tl.constexpr, SUMS: tl.constexpr, WRITES: tl.constexpr, H: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Both tensors are read whatever the parts; where nothing is made of them, a store that never is stands for it."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, head = row // H, row % H
    place = (token // T * H + head) * T + token % T
    at = row[:, None] * K + tl.arange(0, K)[None, :]
    logit = tl.load(logits + token * g_token + head)
    if SHIFT == "early":
        before = tl.load(lse + place)
    upstream, seen = tl.load(dz + at).to(tl.float32), tl.load(kept + at).to(tl.float32)
    score, rest, softplus = scores_of(logit)
    if SUMS:
        tl.store(dlogits + row, (tl.sum(upstream * seen, axis=1) * rest).to(dlogits.dtype.element_ty))
    else:
        tl.store(y + at, (upstream * seen).to(y.dtype.element_ty), mask=(row < never)[:, None])
    if SHIFT == "late":
        before = tl.load(lse + place)
    if SHIFT != "never":
        tl.store(shifted + place, before + softplus)
    if WRITES:
        tl.store(y + at, (seen / score[:, None]).to(y.dtype.element_ty))
