"""z = y ⊙ σ(logits) around a fused attention: the product, and what attention's own backward kernel is then called with.

Notable: with z kept the ungated y need not be. Elementwise, dy = dz ⊙ σ, dlogits = dz ⊙ z ⊙ (1 − σ) and y = z / σ.
Headwise, the gated attention is a softmax whose weights are all smaller by σ, so that its gradients are those of the same
kernel at dy = dz and at the log-sum-exp raised by −ln σ = softplus(−logit): nothing of dz's size is written for them. One
Triton kernel each way on CUDA devices; the same formulas in torch elsewhere.
"""

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
# A score so small lets no gradient pass; y = z / σ would be a quotient of numbers that float32 does not resolve.
_SMALLEST = 2.0**-100


class Ungated(NamedTuple):
    """What the backward kernel of the attention before a gate takes, and the gradient of the gate's logits."""

    dy_BTHK: Tensor
    y_BTHK: Tensor
    lse_BHT: Tensor
    dlogits_BTHK: Tensor


def gate_output(y_BTHK: Tensor, logits_BTHK: Tensor) -> Tensor:
    """y ⊙ σ(logits), contiguous [B, T, H, K] in y's type, rounded once.

    Args:
        y_BTHK: the attention output in any layout whose channels lie side by side.
        logits_BTHK: broadcastable to y; as y, 1 in the place of K is a headwise gate.
    """
    logits_BTHK = _expanded(logits_BTHK, y_BTHK)
    if y_BTHK.is_cuda and HAS_TRITON:
        from . import kernels

        return kernels.gate_output(y_BTHK, logits_BTHK)
    wide = _wide(y_BTHK, logits_BTHK)
    return (y_BTHK.to(wide) * logits_BTHK.to(wide).sigmoid()).to(y_BTHK.dtype).contiguous()


def gate_gradients(
    dz_BTHK: Tensor, kept_BTHK: Tensor, logits_BTHK: Tensor, lse_BHT: Tensor, *, is_output: bool
) -> Ungated:
    """The way back through `gate_output` and, as far as it is the gate's, through the attention before it.

    Args:
        dz_BTHK: contiguous upstream gradient.
        kept_BTHK: y where `is_output`, else z, from which y is recovered; dy and y have its layout.
        logits_BTHK: as they were given to `gate_output`.
        lse_BHT: contiguous log-sum-exp of the attention; returned as it is for an elementwise gate.
    """
    shape, expanded_BTHK = logits_BTHK.shape, _expanded(logits_BTHK, kept_BTHK)
    # What is summed afterwards is not rounded before.
    is_summed = expanded_BTHK.shape != shape
    dtype = torch.promote_types(logits_BTHK.dtype, torch.float32) if is_summed else logits_BTHK.dtype
    if dz_BTHK.is_cuda and HAS_TRITON:
        from .kernels import gate_gradients as maths
    else:
        maths = _gate_gradients
    *taken, dlogits_BTHK = maths(dz_BTHK, kept_BTHK, expanded_BTHK, lse_BHT, is_output=is_output, dtype=dtype)
    if is_summed:
        dlogits_BTHK = dlogits_BTHK.sum_to_size(shape).to(logits_BTHK.dtype)
    return Ungated(*taken, dlogits_BTHK)


def _gate_gradients(
    dz_BTHK: Tensor, kept_BTHK: Tensor, logits_BTHK: Tensor, lse_BHT: Tensor, *, is_output: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = _wide(kept_BTHK, logits_BTHK)
    dz, kept, logits = dz_BTHK.to(wide), kept_BTHK.to(wide), logits_BTHK.to(wide)
    # 1 − σ of a large logit would be 0.
    score, slope = logits.sigmoid(), (-logits).sigmoid()
    if is_output:
        slope, y_BTHK = slope * score, kept_BTHK
    else:
        y_BTHK = torch.where(score > _SMALLEST, kept / score.clamp(min=_SMALLEST), 0.0).to(kept_BTHK.dtype)
    if logits.shape[3] > 1:
        return (dz * score).to(dz_BTHK.dtype), y_BTHK, lse_BHT, (dz * kept * slope).to(dtype)
    raised_BHT = (-logits).logaddexp(logits.new_zeros(())).squeeze(3).transpose(1, 2)
    dlogits_BTH1 = (dz * kept).sum(dim=3, keepdim=True) * slope
    return dz_BTHK, y_BTHK, (lse_BHT + raised_BHT).to(lse_BHT.dtype).contiguous(), dlogits_BTH1.to(dtype)


def _expanded(logits_BTHK: Tensor, y_BTHK: Tensor) -> Tensor:
    """One logit a token and head, or a token, head and channel, the channels side by side; nothing is copied but odd
    layouts."""
    logits_BTHK = logits_BTHK.expand(*y_BTHK.shape[:3], -1)
    return logits_BTHK if logits_BTHK.stride(3) == 1 or logits_BTHK.shape[3] == 1 else logits_BTHK.contiguous()


def _wide(y_BTHK: Tensor, logits_BTHK: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(y_BTHK.dtype, logits_BTHK.dtype), torch.float32)
