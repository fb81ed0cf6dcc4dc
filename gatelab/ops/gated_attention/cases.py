"""Inputs that tests and benchmarks share: gates, normalisers, grouped heads, odd lengths, masks, windows, biases.

A normaliser that is added to `NORMALISERS` has its cases here by that alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import NORMALISERS, Heads


@dataclass(frozen=True)
class Case:
    """Shapes and flags; `inputs` draws the tensors. S keys, as many as queries when None. `bias_std`: of the
    bias; `scores_mean`: of the score gate's logits."""

    name: str
    B: int = 2
    T: int = 64
    S: int | None = None
    H: int = 4
    G: int = 4
    K: int = 32
    gate: str | None = None
    scores: str | None = None
    normaliser: str = "softmax"
    documents: int = 0
    window: int | None = None
    bias: bool = False
    is_causal: bool = True
    bias_std: float = 1.0
    scores_mean: float = 0.0

    @property
    def is_softmax(self) -> bool:
        """Whether the fused kernels serve it."""
        return NORMALISERS[self.normaliser].is_softmax


# Where each rival of the softmax is tried.
_SETTINGS: dict[str, dict[str, Any]] = {
    "": {"T": 31},
    "-gate-packed": {"T": 31, "documents": 2, "gate": "sdpa-elementwise"},
    "-decoded": {"T": 3, "S": 29, "K": 12},
    "-everything": {
        "T": 25,
        "window": 7,
        "bias": True,
        "scores": "scores-headwise-forget",
        "gate": "sdpa-headwise-lse",
    },
}

CASES = (
    Case("plain"),
    Case("headwise", gate="sdpa-headwise"),
    Case("elementwise", gate="sdpa-elementwise"),
    Case("grouped-odd", T=37, G=2, K=16, gate="sdpa-elementwise"),
    Case("one-kv-head", T=33, G=1, gate="sdpa-headwise"),
    Case("shared", gate="sdpa-elementwise-shared"),
    Case("additive", gate="sdpa-elementwise-silu-add"),
    Case("packed", T=45, gate="sdpa-headwise", documents=3),
    Case("both-ways", T=29, gate="sdpa-headwise", is_causal=False),
    Case("cross", T=19, S=26, G=2, gate="sdpa-elementwise", is_causal=False),
    Case("one-token", T=1, gate="sdpa-elementwise"),
    Case("window", T=35, G=2, window=5),
    Case("window-both-ways", T=21, G=2, window=4, is_causal=False),
    Case("bias", T=23, G=2, bias=True, gate="sdpa-headwise"),
    Case("bias-packed", T=23, G=2, bias=True, documents=2, window=9),
    Case("lse-gate", T=31, G=2, gate="sdpa-headwise-lse"),
    Case("lse-gate-tanh", T=31, G=2, gate="sdpa-headwise-tanh-lse", documents=2),
    Case("lse-gate-bias", T=17, G=2, gate="sdpa-headwise-softplus-lse", bias=True),
    Case("lse-gate-decoded", T=3, S=18, G=2, gate="sdpa-headwise-lse", scores="scores-headwise-forget"),
    Case("scores-scaled", T=27, G=2, scores="scores-headwise"),
    Case("scores-added", T=27, G=2, scores="scores-headwise-silu-add", gate="sdpa-elementwise"),
    Case("scores-forgotten", T=27, G=2, scores="scores-headwise-forget"),
    # What is rounded between sums over queries and over tokens grows with the length.
    Case("scores-forgotten-long", B=1, T=1024, H=2, G=1, K=16, scores="scores-headwise-forget"),
    # Sharp rows: logits that bfloat16 would keep to a part of one, and weights that are almost all on one key.
    Case("scores-forgotten-bias", T=65, H=2, G=2, K=16, scores="scores-headwise-forget", bias=True, bias_std=6.0),
    Case("scores-forgotten-strongly", B=1, T=201, H=2, G=1, K=16, scores="scores-headwise-forget", scores_mean=-6.0),
    Case(
        "scores-forgotten-lse",
        B=1,
        T=260,
        H=2,
        G=2,
        scores="scores-headwise-forget",
        gate="sdpa-headwise-lse",
        documents=2,
    ),
    Case("scores-forgotten-decoded", T=4, S=27, G=2, scores="scores-headwise-ns_sigmoid-forget"),
    *(
        Case(f"{kind}{ending}", G=2, normaliser=kind, **setting)
        for kind in NORMALISERS
        if kind != "softmax"
        for ending, setting in _SETTINGS.items()
    ),
)


def inputs(case: Case, *, seed: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Keyword arguments of `gated_attention` for a case, and "grad_BTHK", an upstream gradient; the tensors that are
    differentiated are leaves. `learned` is a dictionary of leaves in float32 (float64 for float64), none of them zero."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = dtype, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return (mean + std * torch.randn(*shape, generator=g)).to(device=device, dtype=dtype)

    B, T, H, G, K = case.B, case.T, case.H, case.G, case.K
    S = case.T if case.S is None else case.S
    gate = GateSpec.parse(case.gate) if case.gate else None
    width = K if gate is not None and gate.granularity == "elementwise" else 1
    normaliser = NORMALISERS[case.normaliser]()
    heads = Heads(H, G, K, layer=1, max_seq_len=4 * S)
    wide = torch.promote_types(dtype, torch.float32)
    out: dict[str, Any] = {
        "q_BTHK": normal(B, T, H, K).requires_grad_(),
        "k_BSGK": normal(B, S, G, K).requires_grad_(),
        "v_BSGK": normal(B, S, G, K).requires_grad_(),
        "gate_logits_BTHK": normal(B, T, H, width).requires_grad_() if gate else None,
        "gate": gate,
        "normaliser": normaliser,
        "learned": {n: normal(*p.shape, dtype=wide).requires_grad_() for n, p in normaliser.learned(heads).items()},
        "heads": heads,
        "score_logits_BSH": normal(B, S, H, mean=case.scores_mean).requires_grad_() if case.scores else None,
        "score_gate": GateSpec.parse(case.scores) if case.scores else None,
        "bias_BHTS": normal(1, H, T, S, std=case.bias_std).requires_grad_() if case.bias else None,
        "is_causal": case.is_causal,
        "window": case.window,
        "mask_BTS": None,
        "grad_BTHK": normal(B, T, H, K),
    }
    if case.documents:
        cuts = torch.randint(0, case.documents, (B, S), generator=g).sort(dim=1).values.to(device)
        out["mask_BTS"] = cuts[:, S - T :, None] == cuts[:, None, :]
    return out


def apart(arguments: dict[str, Any]) -> dict[str, Any]:
    """The learned tensors each under a name of its own, as the contract wants what it differentiates."""
    rest = {name: value for name, value in arguments.items() if name != "learned"}
    return rest | {f"learned.{name}": value for name, value in arguments["learned"].items()}


def together(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of the arguments that `apart` gives, for one of those of `gated_attention`."""

    def called(**arguments: Any) -> Tensor:
        learned = {n.removeprefix("learned."): v for n, v in arguments.items() if n.startswith("learned.")}
        rest = {n: v for n, v in arguments.items() if not n.startswith("learned.")}
        return function(**rest, learned=learned)

    return called
