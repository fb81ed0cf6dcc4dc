"""The specification: attention with grouped queries, masks, biases, every normaliser and gates on scores and output.

Builds the whole T×S matrix; meant to be read and compared with, not to be fast. It also serves the normalisers that no
fused kernel computes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser, Softmax
from ..gate_apply import apply_gate
from .scoring import Scoring, key_bias, key_scale, scoring, visible

_SOFTMAX = Softmax()


def attention_weights(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    *,
    normaliser: Normaliser = _SOFTMAX,
    learned: dict[str, Tensor] | None = None,
    heads: Heads | None = None,
    is_causal: bool = True,
    window: int | None = None,
    mask_BTS: Tensor | None = None,
    bias_BHTS: Tensor | None = None,
    score_logits_BSH: Tensor | None = None,
    score_gate: GateSpec | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights of the keys, [B, H, T, S], and what the slot takes, [B, H, T, 1] (0 without one), in float32 at least.

    The arguments are those of `gated_attention`; a `softcap` c makes a logit z into c·tanh(z/c), before biases. A softmax's
    row and its slot sum to one; a gate on the scores of form `mul`, and the other normalisers, change that.

    Raises:
        ValueError: for arguments that do not fit.
    """
    s = scoring(
        q_BTHK,
        k_BSGK,
        normaliser=normaliser,
        learned=learned,
        heads=heads,
        is_causal=is_causal,
        window=window,
        mask_BTS=mask_BTS,
        bias_BHTS=bias_BHTS,
        score_logits_BSH=score_logits_BSH,
        score_gate=score_gate,
        softcap=softcap,
    )
    logits_BHTS = _logits(q_BTHK, k_BSGK, s)
    slot_BHT1 = normaliser.slot_logits(q_BTHK, s.learned)
    if slot_BHT1 is None:
        mass_BHT1 = torch.zeros_like(logits_BHTS[..., :1])
    else:
        mass_BHT1 = (slot_BHT1 - logits_BHTS.logsumexp(dim=-1, keepdim=True)).sigmoid()
    return _weights(q_BTHK, logits_BHTS, s), mass_BHT1


def gated_attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    s: Scoring,
) -> Tensor:
    """weights · v, the normaliser's finish, then the gate; see `gatelab.ops.gated_attention.gated_attention`."""
    logits_BHTS = _logits(q_BTHK, k_BSGK, s)
    weights_BHTS = _weights(q_BTHK, logits_BHTS, s)
    if s.dropout:
        weights_BHTS = F.dropout(weights_BHTS, s.dropout)
    v_BSHK = v_BSGK.repeat_interleave(q_BTHK.shape[2] // v_BSGK.shape[2], dim=2)
    y_BTHK = torch.einsum("bhts,bshk->bthk", weights_BHTS.to(v_BSHK.dtype), v_BSHK)
    y_BTHK = s.normaliser.finish(y_BTHK, s.learned, s.heads)
    if gate is None:
        return y_BTHK
    if gate.source == "lse":
        gate_logits_BTHK = gate_logits_BTHK + logits_BHTS.logsumexp(dim=-1).transpose(1, 2)[..., None]
    return apply_gate(y_BTHK, gate_logits_BTHK, gate)


def _logits(q_BTHK: Tensor, k_BSGK: Tensor, s: Scoring) -> Tensor:
    """q kᵀ / √K and all that is added to it; −∞ where a key is hidden."""
    T, H, K = q_BTHK.shape[1:]
    S = k_BSGK.shape[1]
    k_BSHK = k_BSGK.repeat_interleave(H // k_BSGK.shape[2], dim=2)
    # Softmax sums exponentials: float32 at least, whatever the products were computed in.
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK).to(wide) / math.sqrt(K)
    if s.softcap is not None:
        logits_BHTS = s.softcap * (logits_BHTS / s.softcap).tanh()
    if s.bias_BHTS is not None:
        logits_BHTS = logits_BHTS + s.bias_BHTS.to(wide)
    per_key_BSH = key_bias(s.score_logits_BSH, s.score_gate)
    if per_key_BSH is not None:
        per_key_BHS = per_key_BSH.transpose(1, 2)
        added_BHTS = per_key_BHS[:, :, None]
        if s.score_gate.form == "forget":
            added_BHTS = added_BHTS - per_key_BHS[:, :, S - T :, None]
        logits_BHTS = logits_BHTS + added_BHTS
    allowed_BTS = visible(T, S, is_causal=s.is_causal, window=s.window, mask_BTS=s.mask_BTS, device=q_BTHK.device)
    return logits_BHTS.masked_fill(~allowed_BTS[:, None], -math.inf)


def _weights(q_BTHK: Tensor, logits_BHTS: Tensor, s: Scoring) -> Tensor:
    slot_BHT1 = s.normaliser.slot_logits(q_BTHK, s.learned)
    weights_BHTS = s.normaliser.weights(logits_BHTS, slot_BHT1, s.learned, s.heads)
    scale_BSH = key_scale(s.score_logits_BSH, s.score_gate)
    return weights_BHTS if scale_BSH is None else weights_BHTS * scale_BSH.transpose(1, 2)[:, :, None]
