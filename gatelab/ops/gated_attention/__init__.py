"""Gated softmax attention. The public function checks its inputs and calls the implementation that was named."""

from torch import Tensor

from ...config.gate import GateSpec
from . import reference, sdpa

IMPLEMENTATIONS = {"reference": reference.gated_attention, "sdpa": sdpa.gated_attention}


def choose(impl: str) -> str:
    """The implementation that `auto` means here; callers store the name with their results.

    Raises:
        ValueError: for a name that does not exist.
    """
    if impl == "auto":
        return "sdpa"
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: expected one of auto, {', '.join(IMPLEMENTATIONS)}")
    return impl


def gated_attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    gate: GateSpec | None = None,
    *,
    is_causal: bool = True,
    mask_BTS: Tensor | None = None,
    sink_logit_H: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """y = softmax(q kᵀ/√K + mask) v ⊙ act(gate logits), [B, T, H, K] in q's type (arXiv 2505.06708, G1).

    Args:
        q_BTHK: queries; T queries are the last T of S positions when causal.
        k_BSGK, v_BSGK: keys and values of G heads; G divides H, and query head h reads kv head h // (H/G).
        gate_logits_BTHK: before the activation, last axes broadcastable to [H, K]; None without a gate.
        gate: how the logits become scores (activation, form, sharing).
        mask_BTS: boolean, True where a query may see a key, and-ed with the causal mask. Every query must see a key.
        sink_logit_H: a learned logit a head in the denominator, without a value.
        impl: `reference`, `sdpa` or `auto`; never replaced silently.

    Raises:
        ValueError: shapes that do not fit, more causal queries than keys, a gate without logits, an unknown
            implementation.
    """
    H, G = q_BTHK.shape[2], k_BSGK.shape[2]
    if H % G or k_BSGK.shape[:3] != v_BSGK.shape[:3] or q_BTHK.shape[3] != k_BSGK.shape[3]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q_BTHK, k_BSGK, v_BSGK))
        raise ValueError(f"q, k, v of shapes {shapes}: expected [B,T,H,K], [B,S,G,K], [B,S,G,K] with G dividing H")
    if is_causal and q_BTHK.shape[1] > k_BSGK.shape[1]:
        raise ValueError(
            f"{q_BTHK.shape[1]} causal queries and {k_BSGK.shape[1]} keys: the first queries would see no key; give at "
            "least as many keys, or is_causal=False"
        )
    if (gate is None) != (gate_logits_BTHK is None):
        raise ValueError("a gate and its logits come together: give both, or neither")
    return IMPLEMENTATIONS[choose(impl)](
        q_BTHK,
        k_BSGK,
        v_BSGK,
        gate_logits_BTHK,
        gate,
        is_causal=is_causal,
        mask_BTS=mask_BTS,
        sink_logit_H=sink_logit_H,
    )


__all__ = ["IMPLEMENTATIONS", "choose", "gated_attention"]
