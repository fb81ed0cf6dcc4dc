"""Inputs that tests and benchmarks share: what is gated, how heads are grouped, odd lengths, masks, sinks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config.gate import GateSpec


@dataclass(frozen=True)
class Case:
    """Shapes and flags; `inputs` draws the tensors."""

    name: str
    B: int = 2
    T: int = 64
    H: int = 4
    G: int = 4
    K: int = 32
    gate: str | None = None
    documents: int = 0
    sink: bool = False
    is_causal: bool = True


CASES = (
    Case("plain"),
    Case("headwise", gate="sdpa-headwise"),
    Case("elementwise", gate="sdpa-elementwise"),
    Case("grouped-odd", T=37, G=2, K=16, gate="sdpa-elementwise"),
    Case("one-kv-head", T=33, G=1, gate="sdpa-headwise"),
    Case("shared", gate="sdpa-elementwise-shared"),
    Case("additive", gate="sdpa-elementwise-silu-add"),
    Case("packed", T=45, gate="sdpa-headwise", documents=3),
    Case("sink", T=31, sink=True),
    Case("sink-gate-packed", T=41, G=2, gate="sdpa-elementwise", documents=2, sink=True),
    Case("both-ways", T=29, gate="sdpa-headwise", is_causal=False),
    Case("one-token", T=1, gate="sdpa-elementwise"),
)


def inputs(case: Case, *, seed: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Keyword arguments of `gated_attention` for a case, and "grad_BTHK", an upstream gradient; the tensors that are
    differentiated are leaves."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device=device, dtype=dtype)

    gate = GateSpec.parse(case.gate) if case.gate else None
    width = case.K if gate is not None and gate.granularity == "elementwise" else 1
    out: dict[str, Any] = {
        "q_BTHK": normal(case.B, case.T, case.H, case.K).requires_grad_(),
        "k_BSGK": normal(case.B, case.T, case.G, case.K).requires_grad_(),
        "v_BSGK": normal(case.B, case.T, case.G, case.K).requires_grad_(),
        "gate_logits_BTHK": normal(case.B, case.T, case.H, width).requires_grad_() if gate else None,
        "gate": gate,
        "is_causal": case.is_causal,
        "mask_BTS": None,
        "sink_logit_H": normal(case.H).requires_grad_() if case.sink else None,
        "grad_BTHK": normal(case.B, case.T, case.H, case.K),
    }
    if case.documents:
        cuts = torch.randint(0, case.documents, (case.B, case.T), generator=g).sort(dim=1).values.to(device)
        out["mask_BTS"] = cuts[:, :, None] == cuts[:, None, :]
    return out
