"""What of a call of `gated_attention` decides who serves it, and what no operator with the gate inside serves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Normaliser, Softmax
from .scoring import Scoring

LOW_PRECISION = (torch.bfloat16, torch.float16)
EXTRAS = ("segment_ids_BT", "mask_BTS", "bias_BHTS", "score_gate")


@dataclass(frozen=True)
class Call:
    """Sizes, types and what else was given. `extras`: the names of the arguments that were given of `EXTRAS`; `dtypes`: of
    q, k and v; `has_gradients`: whether a backward pass may follow; `dropout`, `softcap`: as
    `gated_attention` takes them."""

    n_queries: int
    n_keys: int
    head_dim: int
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    gate: GateSpec | None = None
    is_causal: bool = True
    window: int | None = None
    extras: tuple[str, ...] = ()
    has_gradients: bool = True
    dropout: float = 0.0
    softcap: float | None = None


def call_of(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate_logits_BTHK: Tensor | None, gate: GateSpec | None, s: Scoring
) -> Call:
    """The call with these arguments."""
    (_, T, _, K), S, dtypes = q_BTHK.shape, k_BSGK.shape[1], (q_BTHK.dtype, k_BSGK.dtype, v_BSGK.dtype)
    extras = tuple(name for name in EXTRAS if getattr(s, name) is not None)
    differentiable = (q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK)
    has_gradients = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)
    rules = (gate, s.is_causal, s.window, extras, has_gradients, s.dropout, s.softcap)
    return Call(T, S, K, dtypes, q_BTHK.device, *rules)


def unserved_inside(normaliser: Normaliser, call: Call | None = None, *, serves: tuple[str, ...] = ()) -> str | None:
    """Why no operator with the gate inside serves a call, to follow its name in a sentence; None where that is nothing.
    Without a call, as far as the normaliser decides it. `serves`: those of `EXTRAS` that the operator takes."""
    if type(normaliser) is not Softmax:
        return f"computes a softmax without a slot, and {normaliser.kind} is none"
    if call is None:
        return None
    if call.softcap is not None:
        return f"caps no logits, and softcap={call.softcap} came"
    if call.dropout:
        return f"drops no weights, and dropout={call.dropout} came"
    if came := [name for name in call.extras if name not in serves]:
        *names, last = (name for name in EXTRAS if name not in serves)
        return f"takes none of {', '.join(names)} and {last}, and {', '.join(came)} came"
    return unserved_gate(call.gate)


def unserved_gate(gate: GateSpec | None) -> str | None:
    """Why a gate does not fit inside an operator, to follow the operator's name in a sentence; None where it does."""
    if gate is not None and (gate.form, gate.activation, gate.sharing) != ("mul", "sigmoid", "specific"):
        return f"multiplies by a sigmoid of each head's own, and {gate.slug} came"
    if gate is not None and gate.source == "lse":
        return f"takes logits that do not wait for its log-sum-exp, and {gate.slug} came"
    return None


def unserved_types(dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why an operator of own kernels does not serve q, k and v of these types."""
    if any(other != dtypes[0] for other in dtypes) or dtypes[0] not in LOW_PRECISION:
        return f"takes q, k and v of bfloat16 or of float16, and {', '.join(str(t) for t in dtypes)} came"
    return None
