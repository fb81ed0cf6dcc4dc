"""Attention and its output's sigmoid gate as one operator of own Triton kernels, for short sequences and small heads.

Notable: there attention reads and writes about as long as it multiplies, and a pass over memory for the gate is a large part
of it; here the gate is multiplied in before the output leaves the registers. Gate and output are rounded once, together: z is
the product of the float32 sums and the float32 score. Beside q, k, v and the logits it keeps z and the log-sum-exp, no
ungated output. The way back is own kernels too (`short_backward.py`), which need none; past the lengths and widths that they
are made for it is `flash-lean`'s, where that one serves. It knows windows and grouped heads.
"""

import torch
from torch import Tensor

from ...config.normaliser import Normaliser
from ..gate_apply.fused import HAS_TRITON, gate_gradients
from .call import Call, unserved_inside, unserved_types
from .flash import stock_gradients, stock_kernel

_WIDEST = 128
# Channels of a head at most -> the most keys with which the own way back is the faster one; at heads of 64 and 2,048 keys it is
# within 1% of torch's with a gate, and slower without (benchmarks/results/short_h200_2026-11.md).
_OWN_BACK = {32: 2048, 64: 1024}


def unserved(normaliser: Normaliser, call: Call | None = None) -> str | None:
    """Why `short` does not serve a call, to follow its name in a sentence; None where it does. Without a call, as far as
    the normaliser decides it."""
    why = unserved_inside(normaliser, call)
    if why is not None or call is None:
        return why
    why = unserved_types(call.dtypes)
    if why is not None:
        return why
    if call.head_dim > _WIDEST:
        return f"takes heads of up to {_WIDEST} channels, and {call.head_dim} came"
    if call.device.type != "cuda":
        return f"runs on CUDA devices, and tensors on {call.device.type} came"
    return _missing(call.device)


def _missing(device: torch.device) -> str | None:
    """What a CUDA device lacks, to follow the implementation's name in a sentence."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a CUDA device of capability 8.0 or later"
    return None if HAS_TRITON else "needs Triton: pip install triton"


# What a device is does not change while a compiled function lives, and the compiler cannot look.
_missing._dynamo_marked_constant = True


def attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    is_causal: bool,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ/√K) v ⊙ σ(gate logits), contiguous [B, T, H, K], and the log-sum-exp [B, H, T] in float32, which is not
    differentiable.

    For calls that `unserved` has nothing against; differentiable once.
    """
    kernel = backward_kernel(q_BTHK, k_BSGK, is_causal=is_causal, window=window)
    return _attend(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, is_causal, window, kernel)


def backward_kernel(q_BTHK: Tensor, k_BSGK: Tensor, *, is_causal: bool, window: int | None) -> str:
    """Whose way back is taken: `own`, or a name of `flash.stock_kernel`."""
    T, S, K = q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[3]
    is_stock = window is None and (T == S or not is_causal) and K % 8 == 0
    longest = next((n for width, n in _OWN_BACK.items() if width >= K), 0)
    return "own" if not is_stock or longest >= S else stock_kernel(q_BTHK, k_BSGK, is_causal=is_causal)


@torch.library.custom_op("gatelab::gated_short", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, is_causal: bool, window: int | None, backward: str
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    if not q.numel():
        return q.new_empty(q.shape), q.new_empty(B, H, T, dtype=torch.float32)
    from . import short_kernels

    return short_kernels.attend(q, k, v, _expanded(logits, q), is_causal=is_causal, window=window)


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, is_causal: bool, window: int | None, backward: str
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(B, H, T, dtype=torch.float32)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    q, k, v, logits, ctx.is_causal, ctx.window, ctx.backward = inputs
    z, lse = output
    ctx.save_for_backward(q, k, v, logits, z, lse)
    ctx.mark_non_differentiable(lse)
    # Else torch fills a tensor of zeros for the log-sum-exp.
    ctx.set_materialize_grads(False)


def _way_back(ctx, dz: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *dqkv, dlogits = _gradients(dz, *ctx.saved_tensors, ctx.is_causal, ctx.window, ctx.backward)
    return *dqkv, None if ctx.saved_tensors[3] is None else dlogits, None, None, None


_attend.register_autograd(_way_back, setup_context=_keep)


@torch.library.custom_op("gatelab::gated_short_backward", mutates_args=())
def _gradients(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, z: Tensor, lse: Tensor, is_causal: bool,
    window: int | None, backward: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and the logits, each contiguous."""
    wanted = (q, k, v, q.new_empty(0) if logits is None else logits)
    if not q.numel():
        dq, dk, dv, dlogits = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in wanted)
        return dq, dk, dv, dlogits
    if backward != "own":
        return _stock(dz.contiguous(), q, k, v, logits, z, lse, is_causal, backward)
    from . import short_kernels

    logits = _expanded(logits, q)
    is_summed = logits is not None and logits.shape != wanted[3].shape
    dq, dk, dv, dlogits = short_kernels.gradients(
        dz.contiguous(), q, k, v, logits, z, lse, is_causal=is_causal, window=window,
        dtype=torch.float32 if is_summed else None,
    )  # fmt: skip
    if dlogits is None:
        return dq, dk, dv, wanted[3]
    return dq, dk, dv, dlogits.sum_to_size(wanted[3].shape).to(wanted[3].dtype)


def _stock(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, z: Tensor, lse: Tensor, is_causal: bool,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `flash-lean` has it."""
    dy, y, raised, dlogits = dz, z, lse, q.new_empty(0)
    if logits is not None:
        dy, y, raised, dlogits = gate_gradients(dz, z, logits, lse, is_output=False)
    # Read where there is dropout, and there is none.
    seed = torch.empty((), dtype=torch.int64, device=q.device)
    dq, dk, dv = stock_gradients(dy, q, k, v, y, raised, seed, seed, kernel, is_causal)
    return dq.contiguous(), dk.contiguous(), dv.contiguous(), dlogits.contiguous()


@_gradients.register_fake
def _(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, z: Tensor, lse: Tensor, is_causal: bool,
    window: int | None, backward: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dlogits = q.new_empty(0) if logits is None else logits.new_empty(logits.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dlogits


def _expanded(logits: Tensor | None, q: Tensor) -> Tensor | None:
    """One logit a token and head, or a token, head and channel, the channels side by side."""
    if logits is None:
        return None
    logits = logits.expand(*q.shape[:3], -1)
    return logits if logits.shape[3] == 1 or logits.stride(3) == 1 else logits.contiguous()
