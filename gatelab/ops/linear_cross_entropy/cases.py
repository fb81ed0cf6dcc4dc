"""Inputs that tests and benchmarks share: odd shapes, stacked models, ignored targets, large logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Shapes; `inputs` draws the tensors. Every `ignored_every`-th target does not count (0: all do, 1: none does); logits
    are about as large as `scale`; a weight of `weight_dtype` (None: x's type)."""

    name: str
    M: int = 1
    N: int = 37
    D: int = 24
    V: int = 61
    ignored_every: int = 5
    scale: float = 2.0
    weight_dtype: torch.dtype | None = None


CASES = (
    Case("plain"),
    Case("stacked", M=3),
    Case("float32-weight", M=2, weight_dtype=torch.float32),
    Case("all-counted", ignored_every=0),
    Case("all-ignored", M=2, N=7, ignored_every=1),
    Case("one-token", M=3, N=1, ignored_every=0),
    Case("one-word", N=5, V=1),
    Case("one-channel", N=9, D=1),
    Case("wide-vocabulary", M=2, N=11, V=259),
    Case("large-logits", N=19, scale=1e4),
)


def inputs(case: Case, *, seed: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Keyword arguments of `linear_cross_entropy` for a case, and "grad_BTHK", an upstream gradient [M]; x and the weight
    are leaves."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    targets_MN = torch.randint(0, case.V, (case.M, case.N), generator=g)
    if case.ignored_every:
        targets_MN[:, :: case.ignored_every] = -100
    weight_MVD = normal(case.M, case.V, case.D) * case.scale * case.D**-0.5
    return {
        "x_MND": normal(case.M, case.N, case.D).to(device=device, dtype=dtype).requires_grad_(),
        "weight_MVD": weight_MVD.to(device=device, dtype=case.weight_dtype or dtype).requires_grad_(),
        "targets_MN": targets_MN.to(device),
        "grad_BTHK": (0.5 + torch.rand(case.M, generator=g)).to(device=device, dtype=dtype),
    }
