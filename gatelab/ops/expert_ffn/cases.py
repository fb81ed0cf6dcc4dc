"""Inputs that tests and benchmarks share: how many experts and choices, odd numbers of tokens, experts without tokens, with
biases, and by kind of activation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config.moe import Activation, ClampedSwiGLU, SwiGLU


@dataclass(frozen=True)
class Case:
    """Shapes; `inputs` draws the tensors. The last `n_idle` experts get no token."""

    name: str
    N: int = 48
    D: int = 32
    F: int = 24
    X: int = 4
    E: int = 2
    n_idle: int = 0
    bias: bool = False
    activation: Activation = SwiGLU()  # noqa: RUF009  (a frozen value)


CASES = (
    Case("plain"),
    Case("odd-tokens", N=37, X=5, E=3),
    Case("wide-experts", N=29, D=16, F=64),
    Case("fine-grained", N=33, F=8, X=16, E=4),
    Case("one-choice", E=1),
    Case("all-chosen", N=19, X=3, E=3),
    Case("one-expert", N=21, X=1, E=1),
    Case("idle-experts", N=23, X=6, n_idle=3),
    Case("one-token", N=1, X=8),
    Case("biases", N=31, X=5, bias=True),
    # Limits that some products of such inputs reach.
    Case("clamped", N=27, activation=ClampedSwiGLU(limit=1.0)),
    Case("clamped-biases-idle", N=35, X=6, E=3, n_idle=2, bias=True, activation=ClampedSwiGLU(limit=1.0, alpha=0.8)),
)


def inputs(case: Case, *, seed: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Keyword arguments of `expert_ffn` for a case, and "grad_BTHK", an upstream gradient [N, D]; the tensors that are
    differentiated are leaves. The weights are float32 at least, as a router gives them."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device=device, dtype=dtype)

    logits_NX = torch.randn(case.N, case.X, generator=g)
    logits_NX[:, case.X - case.n_idle :] = -torch.inf
    weight_NE, chosen_NE = logits_NX.softmax(dim=-1).topk(case.E, dim=-1)
    wide = torch.promote_types(dtype, torch.float32)
    widths = {"b1_XF": case.F, "b3_XF": case.F, "b2_XD": case.D} if case.bias else {}
    return {
        "x_ND": normal(case.N, case.D).requires_grad_(),
        "chosen_NE": chosen_NE.to(device),
        "weight_NE": weight_NE.to(device=device, dtype=wide).requires_grad_(),
        "w1_XFD": (normal(case.X, case.F, case.D) * case.D**-0.5).requires_grad_(),
        "w3_XFD": (normal(case.X, case.F, case.D) * case.D**-0.5).requires_grad_(),
        "w2_XDF": (normal(case.X, case.D, case.F) * case.F**-0.5).requires_grad_(),
        "grad_BTHK": normal(case.N, case.D),
        **{name: normal(case.X, width).requires_grad_() for name, width in widths.items()},
        "activation": case.activation,
    }
