"""The specification: every expert, one after the other, on every token.

Computes all X experts where the E chosen would do, X/E times the products, so that no shape depends on the choices and
the function compiles as one graph; meant to be read and compared with, not to be fast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.moe import Activation, SwiGLU
from .hidden import Between, hidden


def expert_ffn(
    x_ND: Tensor,
    chosen_NE: Tensor,
    weight_NE: Tensor,
    w1_XFD: Tensor,
    w3_XFD: Tensor,
    w2_XDF: Tensor,
    *,
    b1_XF: Tensor | None = None,
    b3_XF: Tensor | None = None,
    b2_XD: Tensor | None = None,
    activation: Activation = SwiGLU(),  # noqa: B008  (a frozen value)
) -> Tensor:
    """Σ over the chosen e of weight_e · (w2_e h(w1_e x + b1_e, w3_e x + b3_e) + b2_e); see
    `gatelab.ops.expert_ffn.expert_ffn`."""
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    y_ND = torch.zeros_like(x_ND, dtype=wide)
    for e in range(w1_XFD.shape[0]):
        is_chosen_NE = chosen_NE == e
        weight_N1 = weight_NE.to(wide).where(is_chosen_NE, 0).sum(dim=1, keepdim=True)
        # A token enters the experts it did not choose as zero, and meets no bias of theirs: where they would overflow, 0 · ∞
        # would reach its sum.
        is_own_N1 = is_chosen_NE.any(dim=1, keepdim=True)
        own_ND = x_ND.where(is_own_N1, 0)
        a_NF = _with_bias(own_ND @ w1_XFD[e].T, b1_XF, e, is_own_N1)
        b_NF = _with_bias(own_ND @ w3_XFD[e].T, b3_XF, e, is_own_N1)
        out_ND = _with_bias(hidden(a_NF, b_NF, activation) @ w2_XDF[e].T, b2_XD, e, is_own_N1)
        y_ND = y_ND + weight_N1 * out_ND.to(wide)
    return y_ND.to(x_ND.dtype)


def expert_rows(
    x_MD: Tensor,
    ends_X: Tensor,
    w1_XFD: Tensor,
    w3_XFD: Tensor,
    w2_XDF: Tensor,
    *,
    b1_XF: Tensor | None = None,
    b3_XF: Tensor | None = None,
    b2_XD: Tensor | None = None,
    activation: Activation = SwiGLU(),  # noqa: B008  (a frozen value)
    between: Between = hidden,
) -> Tensor:
    """Each expert on its own rows, of which the host asks how many; see `gatelab.ops.expert_ffn.expert_rows`."""
    out, ends = [], ends_X.tolist()
    for e, own_MD in enumerate(x_MD.split([end - first for first, end in zip([0, *ends], ends, strict=False)])):
        biases = [None if b is None else b[e] for b in (b1_XF, b3_XF, b2_XD)]
        a_MF, b_MF = (F.linear(own_MD, w[e], b) for w, b in ((w1_XFD, biases[0]), (w3_XFD, biases[1])))
        out.append(F.linear(between(a_MF, b_MF, activation), w2_XDF[e], biases[2]))
    return torch.cat(out)


def _with_bias(product_NO: Tensor, bias_XO: Tensor | None, e: int, is_own_N1: Tensor) -> Tensor:
    return product_NO if bias_XO is None else product_NO + bias_XO[e].where(is_own_N1, 0)
