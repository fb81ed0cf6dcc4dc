"""`split`: the kernels of `kernels.py` as one operator, and which calls they serve."""

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ..gate_apply.fused import HAS_TRITON
from ..gated_attention.call import unserved_gate, unserved_types

_WIDEST = 256
# Channels of the query heads that share a key head, both counts rounded up to powers of 2: with more, a program's blocks
# would not fit into the 99 KiB of shared memory of capabilities 8.6 and 8.9.
_MOST_CHANNELS = 8192


def unserved(q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate: GateSpec | None = None) -> str | None:
    """Why `split` does not serve a call, to follow its name in a sentence; None where it does."""
    why = unserved_gate(gate) or unserved_types((q_B1HK.dtype, k_BSGK.dtype, v_BSGK.dtype))
    if why is not None:
        return why
    R, K, device = q_B1HK.shape[2] // k_BSGK.shape[2], q_B1HK.shape[3], q_B1HK.device
    if K > _WIDEST:
        return f"takes heads of up to {_WIDEST} channels, and {K} came"
    if _power_of_2(R) * _power_of_2(K) > _MOST_CHANNELS:
        return f"takes up to {_MOST_CHANNELS} channels of query heads that share a key head, and {R} heads of {K} came"
    if device.type != "cuda":
        return f"runs on CUDA devices, and tensors on {device.type} came"
    return _missing(device)


def _power_of_2(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()


def _missing(device: torch.device) -> str | None:
    """What a CUDA device lacks, to follow the implementation's name in a sentence."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a CUDA device of capability 8.0 or later"
    return None if HAS_TRITON else "needs Triton: pip install triton"


# What a device is does not change while a compiled function lives, and the compiler cannot look.
_missing._dynamo_marked_constant = True


def gated_decode(
    q_B1HK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_B1HK: Tensor | None,
    gate: GateSpec | None,
    *,
    window: int | None,
    first_B: Tensor | None,
    end_B: Tensor | None,
) -> Tensor:
    """See `gatelab.ops.gated_decode.gated_decode`; for calls that `unserved` has nothing against."""
    return _decode(q_B1HK, k_BSGK, v_BSGK, gate_logits_B1HK, window, first_B, end_B)


@torch.library.custom_op("gatelab::gated_decode", mutates_args=())
def _decode(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, window: int | None, first: Tensor | None, end: Tensor | None
) -> Tensor:
    if not q.numel():
        return q.new_empty(q.shape)
    from . import kernels

    if logits is not None:
        # One a sequence and head, or a sequence, head and channel, the channels side by side.
        logits = logits.expand(*q.shape[:3], -1)
        logits = logits if logits.shape[3] == 1 or logits.stride(3) == 1 else logits.contiguous()
    return kernels.gated_decode(q, k, v, logits, window=window, first_B=first, end_B=end)


@_decode.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor | None, window: int | None, first: Tensor | None, end: Tensor | None
) -> Tensor:
    return q.new_empty(q.shape)
