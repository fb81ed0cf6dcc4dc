"""Attention and its output's sigmoid gate as one operator of FlashAttention-4's kernels for Hopper.

Notable: the gate is multiplied in where the output leaves the kernel (`hopper_kernels.py`), the product of the normalised
float32 sums and the float32 score rounded once: one rounding less than in two kernels. Beside q, k, v and the logits it
keeps z and the log-sum-exp, no ungated output; one kernel (`hopper_prepare.py`) makes of them what the library's backward
main loop reads. It knows windows, grouped heads and documents packed into rows, whose tiles apart it leaves out
(`hopper_documents.py`). Gradients are summed in no fixed order.
"""

import functools
import importlib.metadata
import warnings
from types import ModuleType

import torch
from torch import Tensor

from ...config.normaliser import Normaliser
from ..gate_apply.fused import HAS_TRITON
from . import documents
from .call import Call, unserved_inside, unserved_types
from .rows import aligned

_WIDTHS = (64, 96, 128)
_SERVES = ("segment_ids_BT",)  # of what may come beside q, k, v and logits
# Parts of the library that it does not call its interface are used: another version may have others.
_VERSION = "4.0.0b36"


def unserved(normaliser: Normaliser, call: Call | None = None) -> str | None:
    """Why `hopper` does not serve a call, to follow its name in a sentence; None where it does. Without a call, as far as
    the normaliser decides it."""
    why = unserved_inside(normaliser, call, serves=_SERVES)
    if why is not None or call is None:
        return why
    why = unserved_types(call.dtypes)
    if why is not None:
        return why
    if call.head_dim not in _WIDTHS:
        return f"takes heads of {', '.join(str(n) for n in _WIDTHS)} channels, and {call.head_dim} came"
    if call.device.type != "cuda":
        return f"runs on CUDA devices, and tensors on {call.device.type} came"
    return _missing(call.device)


def _missing(device: torch.device) -> str | None:
    """What a CUDA device or the installation lacks, to follow the implementation's name in a sentence."""
    if torch.cuda.get_device_capability(device) != (9, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"needs a CUDA device of capability 9.0, and one of {major}.{minor} came"
    if torch.are_deterministic_algorithms_enabled():
        return "sums gradients in no fixed order, and torch.use_deterministic_algorithms is on"
    found = _installed()
    if found != _VERSION:
        came = "it is missing" if found is None else f"{found} is installed"
        return f"needs flash-attn-4 {_VERSION}, and {came}: pip install 'gatelab[hopper]'"
    return None if HAS_TRITON else "needs Triton: pip install triton"


# What a device is does not change while a compiled function lives, and the compiler cannot look.
_missing._dynamo_marked_constant = True


def _installed() -> str | None:
    try:
        return importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        return None


def attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    *,
    is_causal: bool,
    window: int | None = None,
    segment_ids_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ/√K) v ⊙ σ(gate logits), contiguous [B, T, H, K], and the log-sum-exp [B, H, T] in float32, which is not
    differentiable.

    Args:
        segment_ids_BT: numbers of documents that do not fall along a row, with as many queries as keys.

    For calls that `unserved` has nothing against; differentiable once. The first call of a kind compiles its
    kernels, for seconds.
    """
    # Outside of the operator, so that a compiler makes the spans once for all layers.
    spans_4BT = None if segment_ids_BT is None else documents.spans(segment_ids_BT, is_causal, window)
    return _attend(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, is_causal, window, spans_4BT)


@functools.cache
def _kernels() -> ModuleType:
    """`hopper_kernels`, whose imports take seconds and warn of what the libraries will rename."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from . import hopper_kernels
    return hopper_kernels


@torch.library.custom_op("gatelab::gated_hopper", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, is_causal: bool, window: int | None,
    spans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, T, H, _ = q.shape
    if not q.numel():
        return q.new_empty(q.shape), q.new_empty(B, H, T, dtype=torch.float32)
    given = (aligned(t) for t in (q, k, v))
    return _kernels().forward(*given, _expanded(logits, q), is_causal=is_causal, window=window, spans_4BT=spans)


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, is_causal: bool, window: int | None,
    spans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(B, H, T, dtype=torch.float32)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    q, k, v, logits, ctx.is_causal, ctx.window, spans = inputs
    z, lse = output
    ctx.save_for_backward(q, k, v, logits, z, lse, spans)
    ctx.mark_non_differentiable(lse)
    # Else torch fills a tensor of zeros for the log-sum-exp.
    ctx.set_materialize_grads(False)


def _way_back(ctx, dz: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *given, spans = ctx.saved_tensors
    *dqkv, dlogits = _gradients(dz, *given, ctx.is_causal, ctx.window, spans)
    return *dqkv, None if given[3] is None else dlogits, None, None, None


_attend.register_autograd(_way_back, setup_context=_keep)


@torch.library.custom_op("gatelab::gated_hopper_backward", mutates_args=())
def _gradients(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, z: Tensor, lse: Tensor, is_causal: bool,
    window: int | None, spans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and the logits, each contiguous."""
    wanted = (q, k, v, q.new_empty(0) if logits is None else logits)
    if not q.numel():
        dq, dk, dv, dlogits = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in wanted)
        return dq, dk, dv, dlogits
    from .hopper_prepare import prepare

    kernels, expanded = _kernels(), _expanded(logits, q)
    # What is summed afterwards is not rounded before.
    is_summed = expanded is not None and expanded.shape != wanted[3].shape
    tile = kernels.queries_of_a_tile(q, k, is_causal=is_causal, window=window, has_documents=spans is not None)
    dtype = torch.float32 if is_summed else wanted[3].dtype
    prepared = prepare(aligned(dz.contiguous()), z, expanded, lse, tile=tile, dtype=dtype)
    given = (aligned(t) for t in (q, k, v))
    dq, dk, dv = kernels.backward(*given, prepared, is_causal=is_causal, window=window, spans_4BT=spans)
    dlogits = wanted[3] if prepared.dlogits_BTHW is None else prepared.dlogits_BTHW
    return dq, dk, dv, dlogits.sum_to_size(wanted[3].shape).to(wanted[3].dtype)


@_gradients.register_fake
def _(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, z: Tensor, lse: Tensor, is_causal: bool,
    window: int | None, spans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dlogits = q.new_empty(0) if logits is None else logits.new_empty(logits.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dlogits


def _expanded(logits: Tensor | None, q: Tensor) -> Tensor | None:
    """One logit a token and head, or a token, head and channel in rows that begin at 16 bytes."""
    if logits is None:
        return None
    logits = logits.expand(*q.shape[:3], -1)
    return logits if logits.shape[3] == 1 else aligned(logits)
