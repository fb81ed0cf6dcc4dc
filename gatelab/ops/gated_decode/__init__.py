"""Gated attention of one query a sequence against a cache. The public function checks its inputs and calls the implementation
named."""

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ..gated_attention.scoring import check_gate_logits
from . import reference, split

IMPLEMENTATIONS = {"reference": reference.gated_decode, "split": split.gated_decode}


def choose(impl: str, q_B1HK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate: GateSpec | None = None) -> str:
    """The implementation that `auto` means for a call: `split` on CUDA devices where it serves, else `reference`. Callers
    store the name with their results.

    Raises:
        ValueError: for a name that does not exist, or `split` for a call that it does not serve.
    """
    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"impl={impl!r}: expected one of auto, {', '.join(IMPLEMENTATIONS)}")
    if impl == "reference":
        return impl
    why = split.unserved(q_B1HK, k_BSGK, v_BSGK, gate)
    if impl == "auto":
        return "reference" if why else "split"
    if why:
        raise ValueError(f"impl='split' {why}; take reference, or auto")
    return impl


def gated_decode(
    q_B1HK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_B1HK: Tensor | None = None,
    gate: GateSpec | None = None,
    *,
    window: int | None = None,
    first_B: Tensor | None = None,
    end_B: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """y = softmax(q kᵀ/√K) v ⊙ act(gate logits) of each sequence's newest token, [B, 1, H, K] in q's type; for inference: it
    has no gradient.

    Rounding rule of `split`: sums, score and their product are float32, and rounded once.

    Args:
        q_B1HK: one query a sequence.
        k_BSGK, v_BSGK: the cache, G heads; G divides H, and query head h reads kv head h // (H/G).
        gate_logits_B1HK: before the activation, broadcastable to [B, 1, H, K]; None without a gate.
        gate: how the logits become scores (activation, form, sharing), as in `gated_attention`; none of source `lse`.
        window: the query sees the last so many keys.
        first_B: integers, each sequence's first slot, those before it being padding; None: 0.
        end_B: integers, the slot after each sequence's newest token; None: S. Both may change between replays of a captured
            graph. A sequence without a key gets zeros. Values are not checked: that would make a GPU wait.
        impl: `reference`, `split` or `auto`; never replaced silently.

    Raises:
        ValueError: shapes or types that do not fit, a window below 1, a gate without logits, of another site or of source
            `lse`, an unknown implementation or one that does not serve the call.
    """
    shapes = ", ".join(str(tuple(t.shape)) for t in (q_B1HK, k_BSGK, v_BSGK))
    if not all(t.dim() == 4 for t in (q_B1HK, k_BSGK)) or k_BSGK.shape != v_BSGK.shape:
        raise ValueError(f"q, k, v of shapes {shapes}: expected [B,1,H,K], [B,S,G,K] and [B,S,G,K]")
    (B, T, H, K), (n_sequences, _, G, n_channels) = q_B1HK.shape, k_BSGK.shape
    if T != 1 or not G or H % G or (n_sequences, n_channels) != (B, K):
        raise ValueError(f"q, k, v of shapes {shapes}: expected [B,1,H,K], [B,S,G,K] and [B,S,G,K] with G dividing H")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: expected the number of keys that a query sees, itself included, or None")
    for name, slots_B in (("first_B", first_B), ("end_B", end_B)):
        if slots_B is not None and (slots_B.shape != (B,) or slots_B.dtype not in (torch.int32, torch.int64)):
            raise ValueError(
                f"{name} of shape {tuple(slots_B.shape)} and type {slots_B.dtype}: expected int32 or int64, one a "
                f"sequence, ({B},)"
            )
    check_gate_logits(gate_logits_B1HK, gate, tuple(q_B1HK.shape))
    if gate is not None and gate.source == "lse":
        raise ValueError(f"gate={gate.slug} adds its logits to the log-sum-exp; take gatelab.ops.gated_attention")
    name = choose(impl, q_B1HK, k_BSGK, v_BSGK, gate)
    return IMPLEMENTATIONS[name](
        q_B1HK, k_BSGK, v_BSGK, gate_logits_B1HK, gate, window=window, first_B=first_B, end_B=end_B
    )


__all__ = ["IMPLEMENTATIONS", "choose", "gated_decode"]
