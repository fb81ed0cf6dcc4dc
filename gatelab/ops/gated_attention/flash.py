"""Attention and its output's sigmoid gate as one operator: torch's fused kernels, then the gate in one pass over memory.

Notable: beside the gate's logits it keeps no more for the backward pass than attention without a gate does. `flash-lean`
keeps the gated output z, which the projection after it keeps too, and recovers the output y = z / σ; `flash` keeps y and
spares that pass. The identities are those of `gate_apply.fused`. cuDNN's kernel is not taken where its gradients may be
not-a-number (`fused.cudnn_overflows`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...config.normaliser import Normaliser
from ..gate_apply.fused import HAS_TRITON, gate_gradients, gate_output
from .call import LOW_PRECISION, Call, unserved_inside
from .fused import cudnn_overflows
from .rows import aligned

aten = torch.ops.aten

# name of the implementation -> whether it keeps the ungated output for the backward pass
KEEPS_OUTPUT = {"flash": True, "flash-lean": False}
_WIDEST = 256  # channels of torch's flash kernels
_WIDEST_CUDNN = 128


def unserved(normaliser: Normaliser, call: Call | None = None) -> str | None:
    """Why `flash` and `flash-lean` do not serve a call, to follow their name in a sentence; None where they do. Without
    a call, as far as the normaliser decides it."""
    why = unserved_inside(normaliser, call)
    if why is not None or call is None:
        return why
    dtype, K = call.dtypes[0], call.head_dim
    if call.window is not None:
        return f"knows no window, and window={call.window} came"
    if call.is_causal and call.n_queries != call.n_keys:
        return f"takes as many causal queries as keys, and {call.n_queries} and {call.n_keys} came"
    if any(other != dtype for other in call.dtypes) or not dtype.is_floating_point:
        return f"takes q, k and v of one floating type, and {', '.join(str(t) for t in call.dtypes)} came"
    if call.device.type == "cpu":
        return None
    if call.device.type != "cuda":
        return f"runs on cpu and cuda, and tensors on {call.device.type} came"
    if dtype not in LOW_PRECISION:
        return f"takes bfloat16 and float16 on CUDA devices, and {dtype} came"
    if K % 8 or K > _WIDEST:
        return f"takes heads of a multiple of 8 channels up to {_WIDEST} on CUDA devices, and {K} came"
    return _missing(call.device)


Asked = TypeVar("Asked", bound=Callable[..., Any])


def _constant(function: Asked) -> Asked:
    """`torch.compiler.assume_constant_result`, which would import the compiler, seconds of it, for everybody: what a device is
    does not change while a compiled function lives, and the compiler cannot look."""
    function._dynamo_marked_constant = True
    return function


@_constant
def _missing(device: torch.device) -> str | None:
    """What a CUDA device lacks, to follow an implementation's name in a sentence."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a CUDA device of capability 8.0 or later, as torch's flash attention does"
    if not torch.backends.cuda.flash_sdp_enabled():
        return "is torch's flash attention, which torch.backends.cuda.enable_flash_sdp or sdpa_kernel has switched off"
    return None if HAS_TRITON else "needs Triton on CUDA devices: pip install triton"


def attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    is_causal: bool,
    keeps_output: bool,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ/√K) v ⊙ σ(gate logits), contiguous [B, T, H, K], and the log-sum-exp [B, H, T] in float32 (float64
    stays), which is not differentiable.

    For calls that `unserved` has nothing against; differentiable once. `keeps_output`: see `KEEPS_OUTPUT`.
    """
    kernel = stock_kernel(q_BTHK, k_BSGK, is_causal=is_causal)
    z_BTHK, lse_BHT, *_ = _attend(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, kernel, is_causal, keeps_output)
    return z_BTHK, lse_BHT


def stock_kernel(q_BTHK: Tensor, k_BSGK: Tensor, *, is_causal: bool) -> str:
    """Which of torch's kernels serves: `cpu`, `cudnn` or `flash`."""
    if q_BTHK.device.type == "cpu":
        return "cpu"
    T, K, S = q_BTHK.shape[1], q_BTHK.shape[3], k_BSGK.shape[1]
    fits = K <= _WIDEST_CUDNN and T > 1 and S > 1 and not cudnn_overflows(S, is_bare_causal=is_causal)
    return "cudnn" if fits and _has_cudnn(q_BTHK.device) else "flash"


@_constant
def _has_cudnn(device: torch.device) -> bool:
    """Whether cuDNN's kernel is there and the fastest: on Hopper, unless it is switched off, or every sum has to have one
    order."""
    is_on = torch.backends.cudnn.is_available() and torch.backends.cuda.cudnn_sdp_enabled()
    is_free = not torch.are_deterministic_algorithms_enabled()
    return is_on and is_free and torch.cuda.get_device_capability(device)[0] == 9


@torch.library.custom_op("gatelab::gated_flash", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, kernel: str, is_causal: bool, keeps_output: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z; then for the backward pass the log-sum-exp, y where it is kept apart from z, and two small tensors that CUDA's
    kernels ask for. What is not there is empty."""
    y, lse, seed, offset = _stock(q, k, v, kernel, is_causal)
    if logits is None:
        return y.contiguous(), lse, q.new_empty(0), seed, offset
    return gate_output(y, logits), lse, y if keeps_output else q.new_empty(0), seed, offset


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, kernel: str, is_causal: bool, keeps_output: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    y, lse, seed, offset = _stock(q, k, v, kernel, is_causal)
    return q.new_empty(q.shape), lse, y if keeps_output and logits is not None else q.new_empty(0), seed, offset


def _keep(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    q, k, v, logits, ctx.kernel, ctx.is_causal, keeps_output = inputs
    z, lse, y, seed, offset = output
    ctx.is_output = keeps_output or logits is None
    ctx.save_for_backward(q, k, v, logits, z if logits is None or not keeps_output else y, lse, seed, offset)
    ctx.mark_non_differentiable(lse, y, seed, offset)
    # Else torch fills a tensor of zeros for each output that is not differentiable.
    ctx.set_materialize_grads(False)


def _way_back(ctx, dz: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    *dqkv, dlogits = _gradients(dz, *ctx.saved_tensors, ctx.kernel, ctx.is_causal, ctx.is_output)
    return *dqkv, None if ctx.saved_tensors[3] is None else dlogits, None, None, None


_attend.register_autograd(_way_back, setup_context=_keep)


@torch.library.custom_op("gatelab::gated_flash_backward", mutates_args=())
def _gradients(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, kept: Tensor, lse: Tensor, seed: Tensor,
    offset: Tensor, kernel: str, is_causal: bool, is_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and the logits, each contiguous; `kept` is y where `is_output`, else z."""
    dy, y, raised, dlogits = dz.contiguous(), kept, lse, q.new_empty(0)
    if logits is not None:
        dy, y, raised, dlogits = gate_gradients(dy, kept, logits, lse, is_output=is_output)
    dq, dk, dv = stock_gradients(dy, q, k, v, y, raised, seed, offset, kernel, is_causal)
    return dq.contiguous(), dk.contiguous(), dv.contiguous(), dlogits.contiguous()


@_gradients.register_fake
def _(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, kept: Tensor, lse: Tensor, seed: Tensor,
    offset: Tensor, kernel: str, is_causal: bool, is_output: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dlogits = q.new_empty(0) if logits is None else logits.new_empty(logits.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dlogits


def _stock(q: Tensor, k: Tensor, v: Tensor, kernel: str, is_causal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [B, T, H, K] in the layout that the kernel gives it, a contiguous log-sum-exp [B, H, T], seed and offset."""
    B, T, H, _ = q.shape
    if not q.numel():
        lse = q.new_empty(B, H, T, dtype=torch.promote_types(q.dtype, torch.float32))
        return torch.empty_like(q), lse, q.new_empty(0), q.new_empty(0)
    heads = [t.transpose(1, 2) for t in (aligned(q), *_kv(aligned(k), aligned(v), H, kernel))]
    if kernel == "cpu":
        y, lse = aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, is_causal)
        return y.transpose(1, 2), lse.contiguous(), lse.new_empty(0), lse.new_empty(0)
    if kernel == "cudnn":
        y, lse, *_, seed, offset, _ = aten._scaled_dot_product_cudnn_attention(*heads, None, True, 0.0, is_causal)
        return y.transpose(1, 2), lse.reshape(B, H, T), seed, offset
    y, lse, *_, seed, offset, _ = aten._scaled_dot_product_flash_attention(*heads, 0.0, is_causal, False)
    return y.transpose(1, 2), lse, seed, offset


def stock_gradients(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, seed: Tensor, offset: Tensor, kernel: str,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv in the shapes of q, k, v."""
    if not q.numel():
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    heads = [t.transpose(1, 2) for t in (aligned(q), *_kv(aligned(k), aligned(v), q.shape[2], kernel))]
    # cuDNN's has one more axis.
    given = (dy.transpose(1, 2), *heads, y.transpose(1, 2), lse[..., None] if kernel == "cudnn" else lse)
    lengths = (None, None, q.shape[1], k.shape[1])
    if kernel == "cpu":
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, is_causal)
    elif kernel == "cudnn":
        gradients = aten._scaled_dot_product_cudnn_attention_backward(
            *given, seed, offset, None, *lengths, 0.0, is_causal
        )
    else:
        gradients = aten._scaled_dot_product_flash_attention_backward(*given, *lengths, 0.0, is_causal, seed, offset)
    dq, dk, dv = (t.transpose(1, 2) for t in gradients)
    G, R = k.shape[2], dk.shape[2] // k.shape[2]
    if R > 1:
        dk, dv = (t.unflatten(2, (G, R)).sum(dim=3) for t in (dk, dv))
    return dq, dk, dv


def _kv(k: Tensor, v: Tensor, n_heads: int, kernel: str) -> tuple[Tensor, Tensor]:
    """k and v with the heads that a kernel wants: those of CUDA read grouped heads as they are, the CPU's one a query
    head."""
    R = n_heads // k.shape[2]
    return (k, v) if kernel != "cpu" or R == 1 else (k.repeat_interleave(R, dim=2), v.repeat_interleave(R, dim=2))
