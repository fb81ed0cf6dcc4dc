"""What an expert makes of its products a = w1 x and b = w3 x before the third, by the kind of its activation.

The formulas stand at the kinds, in `gatelab.config.moe`. Computed in the products' type, as every step between an expert's
products.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ...config.moe import Activation, ClampedSwiGLU, SwiGLU

# `hidden` or compiled code of it.
Between = Callable[[Tensor, Tensor, Activation], Tensor]


def hidden(a_MF: Tensor, b_MF: Tensor, activation: Activation) -> Tensor:
    """[M, F], of both products' shape and type."""
    return _KINDS[activation.kind](a_MF, b_MF, activation)


def _swiglu(a_MF: Tensor, b_MF: Tensor, activation: SwiGLU) -> Tensor:
    return F.silu(a_MF) * b_MF


def _clamped_swiglu(a_MF: Tensor, b_MF: Tensor, activation: ClampedSwiGLU) -> Tensor:
    a_MF, b_MF = a_MF.clamp(max=activation.limit), b_MF.clamp(-activation.limit, activation.limit)
    return (b_MF + 1) * (a_MF * (activation.alpha * a_MF).sigmoid())


_KINDS: dict[str, Callable[[Tensor, Tensor, Activation], Tensor]] = {
    "swiglu": _swiglu,
    "clamped_swiglu": _clamped_swiglu,
}
