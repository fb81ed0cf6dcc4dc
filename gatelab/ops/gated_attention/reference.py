"""The specification: softmax attention with grouped queries, masks, a sink logit and a gate on its output.

Builds the whole T×S matrix; meant to be read and compared with, not to be fast.
"""

import math

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ..gate_apply import apply_gate


def visible(n_queries: int, n_keys: int, *, is_causal: bool, mask_BTS: Tensor | None, device: torch.device) -> Tensor:
    """Which keys a query may see, [B or 1, T, S] boolean. Causal: the last query sees the last key."""
    allowed = torch.ones(1, n_queries, n_keys, dtype=torch.bool, device=device)
    if is_causal:
        allowed = allowed.tril(diagonal=n_keys - n_queries)
    return allowed if mask_BTS is None else allowed & mask_BTS


def attention_weights(
    q_BTHK: Tensor, k_BSGK: Tensor, *, is_causal: bool, mask_BTS: Tensor | None, sink_logit_H: Tensor | None
) -> Tensor:
    """P, [B, H, T, S + 1]: the last column is the mass that the sink logit takes (0 without one); rows sum to one."""
    B, T, H, K = q_BTHK.shape
    k_BSHK = k_BSGK.repeat_interleave(H // k_BSGK.shape[2], dim=2)
    # Softmax sums exponentials: float32 at least, whatever the products were computed in.
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK).to(wide) / math.sqrt(K)
    allowed_BTS = visible(T, k_BSGK.shape[1], is_causal=is_causal, mask_BTS=mask_BTS, device=q_BTHK.device)
    logits_BHTS = logits_BHTS.masked_fill(~allowed_BTS[:, None], -math.inf)
    if sink_logit_H is None:
        sink_BHT1 = logits_BHTS.new_full((B, H, T, 1), -math.inf)
    else:
        sink_BHT1 = sink_logit_H.to(wide)[None, :, None, None].expand(B, H, T, 1)
    return torch.cat([logits_BHTS, sink_BHT1], dim=-1).softmax(dim=-1)


def gated_attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    *,
    is_causal: bool,
    mask_BTS: Tensor | None,
    sink_logit_H: Tensor | None,
) -> Tensor:
    """softmax(q kᵀ / √K) v, then the gate; see `gatelab.ops.gated_attention.gated_attention`."""
    weights_BHTS = attention_weights(q_BTHK, k_BSGK, is_causal=is_causal, mask_BTS=mask_BTS, sink_logit_H=sink_logit_H)
    v_BSHK = v_BSGK.repeat_interleave(q_BTHK.shape[2] // v_BSGK.shape[2], dim=2)
    y_BTHK = torch.einsum("bhts,bshk->bthk", weights_BHTS[..., :-1].to(v_BSHK.dtype), v_BSHK)
    return y_BTHK if gate is None else apply_gate(y_BTHK, gate_logits_BTHK, gate)
