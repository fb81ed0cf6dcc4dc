"""Through torch's scaled_dot_product_attention, which picks its own fused kernel; the gate follows.

Notable: a sink logit is one more key with a zero value whose logit is the learned number, so the fused kernels need
no change; its bias keeps torch from the flash kernels, which is why it is a control and not the default.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.gate import GateSpec
from ..gate_apply import apply_gate
from .reference import visible


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
    """Same function as the reference; see `gatelab.ops.gated_attention.gated_attention`."""
    T, H, S, G = q_BTHK.shape[1], q_BTHK.shape[2], k_BSGK.shape[1], k_BSGK.shape[2]
    q_BHTK, k_BGSK, v_BGSK = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
    mask: Tensor | None = None
    # torch's causal mask is aligned to the first key, ours to the last: they agree only when T = S.
    plain_causal = is_causal and mask_BTS is None and T == S and sink_logit_H is None
    if not plain_causal and (mask_BTS is not None or sink_logit_H is not None or (is_causal and T > 1)):
        mask = visible(T, S, is_causal=is_causal, mask_BTS=mask_BTS, device=q_BTHK.device)[:, None]
    if sink_logit_H is not None:
        mask, k_BGSK, v_BGSK = _with_sink(mask, k_BGSK, v_BGSK, sink_logit_H)
    y_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=plain_causal, enable_gqa=H != G
    )
    y_BTHK = y_BHTK.transpose(1, 2)
    return y_BTHK if gate is None else apply_gate(y_BTHK, gate_logits_BTHK, gate)


def _with_sink(
    mask_B1TS: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, sink_logit_H: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, T, S = mask_B1TS.shape
    H = sink_logit_H.shape[0]
    bias_BHTS = torch.zeros(B, H, T, S, dtype=k_BGSK.dtype, device=k_BGSK.device).masked_fill(~mask_B1TS, -math.inf)
    sink_BHT1 = sink_logit_H.to(k_BGSK.dtype)[None, :, None, None].expand(B, H, T, 1)
    return torch.cat([bias_BHTS, sink_BHT1], dim=-1), F.pad(k_BGSK, (0, 0, 0, 1)), F.pad(v_BGSK, (0, 0, 0, 1))
