"""Gated attention with any normaliser. The public function checks its inputs and calls the implementation named."""

from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser, Softmax
from . import reference, sdpa
from .reference import attention_weights
from .scoring import check_gate_logits, scoring, visible

IMPLEMENTATIONS = {"reference": reference.gated_attention, "sdpa": sdpa.gated_attention}
_SOFTMAX = Softmax()


def choose(impl: str, normaliser: Normaliser = _SOFTMAX) -> str:
    """The implementation that `auto` means for a normaliser; callers store the name with their results.

    A softmax, with a slot or without, goes to the fused kernels; any other normaliser to the whole matrix, which takes
    memory of T × S a head.

    Raises:
        ValueError: for a name that does not exist, or one that does not serve the normaliser.
    """
    if impl == "auto":
        return "sdpa" if normaliser.is_softmax else "reference"
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r}: expected one of auto, {', '.join(IMPLEMENTATIONS)}")
    if impl == "sdpa" and not normaliser.is_softmax:
        raise ValueError(f"impl='sdpa' computes a softmax, and {normaliser.kind} is none; take reference, or auto")
    return impl


def gated_attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None = None,
    gate: GateSpec | None = None,
    *,
    normaliser: Normaliser = _SOFTMAX,
    learned: dict[str, Tensor] | None = None,
    heads: Heads | None = None,
    is_causal: bool = True,
    window: int | None = None,
    mask_BTS: Tensor | None = None,
    bias_BHTS: Tensor | None = None,
    score_logits_BSH: Tensor | None = None,
    score_gate: GateSpec | None = None,
    impl: str = "auto",
) -> Tensor:
    """y = softmax(q kᵀ/√K + mask) v ⊙ act(gate logits), [B, T, H, K] in q's type (arXiv 2505.06708, G1).

    Args:
        q_BTHK: queries; T queries are the last T of S positions when causal.
        k_BSGK, v_BSGK: keys and values of G heads; G divides H, and query head h reads kv head h // (H/G).
        gate_logits_BTHK: before the activation, broadcastable to [B, T, H, K]; None without a gate. For a gate of source
            `lse`, what is added to the row's log-sum-exp over the visible keys, biases included and the slot not.
        gate: how the logits become scores (activation, form, sharing).
        normaliser: what takes the softmax's place (`gatelab.config.normaliser`).
        learned: the parameters that `normaliser.learned(heads)` names.
        heads: the layer, for normalisers that depend on its index or on max_seq_len; None: layer 0, length not known.
        window: a query sees the keys less than this many positions away, its own included.
        mask_BTS: boolean, True where a query may see a key, and-ed with the others. Every query must see a key, and keys
            and values behind a mask or a window must be finite.
        bias_BHTS: added to the logits, broadcastable; rounded to q's type by the fused kernels.
        score_logits_BSH: one logit a key and query head, for the gate on the scores; 1 in the place of B or S is a
            constant.
        score_gate: form `mul` multiplies the weights by act(g_j), after they were normalised; `add` adds act(g_j) to the
            logits; `forget` adds Σ ln act(g) over the keys after j up to the query (arXiv 2503.02130).
        impl: `reference`, `sdpa` or `auto`; never replaced silently.

    Raises:
        ValueError: shapes that do not fit, a mask that is not boolean, more causal queries than keys, queries without a key,
            a gate without logits or of another site, parameters that are not the normaliser's, an unknown implementation or
            one that does not serve the normaliser.
    """
    if k_BSGK.shape != v_BSGK.shape:
        shapes = f"{tuple(k_BSGK.shape)}, {tuple(v_BSGK.shape)}"
        raise ValueError(f"k, v of shapes {shapes}: expected [B,S,G,K] of both")
    check_gate_logits(gate_logits_BTHK, gate, tuple(q_BTHK.shape))
    s = scoring(
        q_BTHK,
        k_BSGK,
        normaliser=normaliser,
        learned=learned,
        heads=heads,
        is_causal=is_causal,
        window=window,
        mask_BTS=mask_BTS,
        bias_BHTS=bias_BHTS,
        score_logits_BSH=score_logits_BSH,
        score_gate=score_gate,
    )
    return IMPLEMENTATIONS[choose(impl, normaliser)](q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, gate, s)


__all__ = ["IMPLEMENTATIONS", "attention_weights", "choose", "gated_attention", "visible"]
