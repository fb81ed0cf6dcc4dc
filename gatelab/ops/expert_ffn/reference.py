"""The specification: every expert, one after the other, on every token.

Computes all X experts where the E chosen would do, X/E times the products, so that no shape depends on the choices and
the function compiles as one graph; meant to be read and compared with, not to be fast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def expert_ffn(
    x_ND: Tensor, chosen_NE: Tensor, weight_NE: Tensor, w1_XFD: Tensor, w3_XFD: Tensor, w2_XDF: Tensor
) -> Tensor:
    """Σ over the chosen e of weight_e · w2_e (SiLU(w1_e x) ⊙ w3_e x); see `gatelab.ops.expert_ffn.expert_ffn`."""
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    y_ND = torch.zeros_like(x_ND, dtype=wide)
    for e in range(w1_XFD.shape[0]):
        is_chosen_NE = chosen_NE == e
        weight_N1 = weight_NE.to(wide).where(is_chosen_NE, 0).sum(dim=1, keepdim=True)
        # A token enters the experts it did not choose as zero: where they would overflow, 0 · ∞ would reach its sum.
        own_ND = x_ND.where(is_chosen_NE.any(dim=1, keepdim=True), 0)
        hidden_NF = F.silu(own_ND @ w1_XFD[e].T) * (own_ND @ w3_XFD[e].T)
        y_ND = y_ND + weight_N1 * (hidden_NF @ w2_XDF[e].T).to(wide)
    return y_ND.to(x_ND.dtype)
