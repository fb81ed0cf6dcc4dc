"""The specification: one query a sequence against its keys, whole rows of weights, then the gate."""

import math

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ..gate_apply import apply_gate


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
    """See `gatelab.ops.gated_decode.gated_decode`."""
    H, K, S = *q_B1HK.shape[2:], k_BSGK.shape[1]
    k_BSHK, v_BSHK = (t.repeat_interleave(H // t.shape[2], dim=2) for t in (k_BSGK, v_BSGK))
    # Softmax sums exponentials: float32 at least, whatever the products were computed in.
    wide = torch.promote_types(q_B1HK.dtype, torch.float32)
    logits_BH1S = torch.einsum("bthk,bshk->bhts", q_B1HK, k_BSHK).to(wide) / math.sqrt(K)
    hidden_BS = ~_visible(S, len(q_B1HK), q_B1HK.device, window=window, first_B=first_B, end_B=end_B)
    weights_BH1S = logits_BH1S.masked_fill(hidden_BS[:, None, None], -math.inf).softmax(dim=-1)
    # A row without a key would not be numbers.
    weights_BH1S = weights_BH1S.masked_fill(hidden_BS[:, None, None], 0.0)
    y_B1HK = torch.einsum("bhts,bshk->bthk", weights_BH1S.to(v_BSHK.dtype), v_BSHK)
    return y_B1HK if gate is None else apply_gate(y_B1HK, gate_logits_B1HK, gate)


def _visible(
    n_keys: int,
    batch: int,
    device: torch.device,
    *,
    window: int | None,
    first_B: Tensor | None,
    end_B: Tensor | None,
) -> Tensor:
    """[B, S], True from each sequence's first slot, or that of its window, to its last."""
    slot_S = torch.arange(n_keys, device=device)
    end_B = torch.full((batch,), n_keys, device=device) if end_B is None else end_B
    start_B = torch.zeros_like(end_B) if first_B is None else first_B
    if window is not None:
        start_B = start_B.maximum(end_B - window)
    return (slot_S >= start_B[:, None]) & (slot_S < end_B[:, None])
