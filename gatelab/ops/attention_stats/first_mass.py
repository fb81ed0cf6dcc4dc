"""First-token mass from one read of the queries, given the log-sum-exp that attention has computed anyway.

Notable: a weight is exp(q·k/√K − lse), so the mass on key 0 needs one product a query, not a row. Nothing is differentiated
and nothing waits for the device, so a training step may hold it, compiled or captured as a CUDA graph. On CUDA devices with
Triton it is one kernel (`kernels.mean_first_mass`) behind an operator; elsewhere it is plain torch.
"""

import math

import torch
from torch import Tensor

from ..gate_apply.fused import HAS_TRITON
from . import identities

_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST = 256  # channels that the kernel holds


def mean_first_token_mass(q_BTHK: Tensor, k_BSGK: Tensor, lse_BHT: Tensor, *, skip: int = 1) -> Tensor:
    """Mean over causal queries at position `skip` or later of their mass on key 0, [B, H] in float32, without gradient.

    Args:
        q_BTHK, k_BSGK: as they enter the softmax; T queries are the last T of S tokens, and all of them see key 0.
        lse_BHT: ln of each row's denominator; with a slot's logit in it, the mass is that beside the slot.

    Raises:
        ValueError: for arguments that do not fit, and a `skip` that leaves no query.
    """
    identities.check(q_BTHK, k_BSGK, lse_BHT, is_causal=True, window=None)
    before = identities.skipped(q_BTHK, k_BSGK, skip)
    q_BTHK, k_BSGK, lse_BHT = q_BTHK.detach(), k_BSGK.detach(), lse_BHT.detach()
    is_fit = q_BTHK.dtype == k_BSGK.dtype and q_BTHK.dtype in _TYPES and q_BTHK.shape[3] <= _WIDEST
    if HAS_TRITON and q_BTHK.is_cuda and is_fit:
        return _by_kernel(q_BTHK, k_BSGK, lse_BHT, skip)
    H, K = q_BTHK.shape[2:]
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    first_B1HK = k_BSGK[:, :1].repeat_interleave(H // k_BSGK.shape[2], dim=2).to(wide)
    # Not as a matrix product: of one column it is slower, and autocast would round it.
    logit_BTH = (q_BTHK[:, before:].to(wide) * first_B1HK).sum(dim=-1) / math.sqrt(K)
    return (logit_BTH.transpose(1, 2) - lse_BHT[:, :, before:]).exp().mean(dim=-1).float()


@torch.library.custom_op("gatelab::mean_first_token_mass", mutates_args=())
def _by_kernel(q: Tensor, k: Tensor, lse: Tensor, skip: int) -> Tensor:
    from .kernels import mean_first_mass  # which imports Triton

    return mean_first_mass(q, k, lse, skip=skip).squeeze(-1)


@_by_kernel.register_fake
def _(q: Tensor, k: Tensor, lse: Tensor, skip: int) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], dtype=torch.float32)
