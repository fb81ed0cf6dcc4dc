"""The specification of a gate, given its logits.

Rounding rule: activation and product are computed in float32 (float64 for float64 inputs) and rounded once, to y's type.
"""

import torch
from torch import Tensor

from ...config.gate import ACTIVATIONS, GateSpec


def gate_scores(logits_BTHK: Tensor, spec: GateSpec) -> Tensor:
    """act(logits) in float32 (float64 stays): shape [B, T, H, K] or [B, T, H, 1]; averaged over H when shared, which is
    then 1."""
    wide = logits_BTHK.to(torch.promote_types(logits_BTHK.dtype, torch.float32))
    scores_BTHK = ACTIVATIONS[spec.activation].apply(wide)
    return scores_BTHK.mean(dim=2, keepdim=True) if spec.sharing == "shared" else scores_BTHK


def apply_gate(y_BTHK: Tensor, logits_BTHK: Tensor, spec: GateSpec) -> Tensor:
    """y ⊙ scores or y + scores, in y's shape and type; the logits' last two axes broadcast against y's."""
    scores_BTHK = gate_scores(logits_BTHK, spec)
    wide = y_BTHK.to(scores_BTHK.dtype)
    return (wide * scores_BTHK if spec.form == "mul" else wide + scores_BTHK).to(y_BTHK.dtype)
