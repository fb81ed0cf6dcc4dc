"""Gated attention with any normaliser. The public function checks its inputs and calls the implementation named."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ...config.model import ModelConfig
from ...config.normaliser import Heads, Normaliser, Softmax
from . import flash, hopper, reference, sdpa, short
from .call import Call, call_of
from .reference import attention_weights
from .scoring import Scoring, check_gate_logits, scoring, visible


class Operator(NamedTuple):
    """Attention with a sigmoid gate inside, as one operator. `unserved`: what it has against a normaliser and a call, to
    follow its name in a sentence, or None; `attend`: output and log-sum-exp of q, k, v and logits, given `is_causal` and,
    where it knows them, `window` and `segment_ids_BT`."""

    unserved: Callable[[Normaliser, Call | None], str | None]
    attend: Callable[..., tuple[Tensor, Tensor]]


# Those that serve whatever their normaliser allows, and those for the calls that they have nothing against.
IMPLEMENTATIONS = {"reference": reference.gated_attention, "sdpa": sdpa.gated_attention}
OPERATORS = {
    "flash": Operator(flash.unserved, partial(flash.attention, keeps_output=True)),
    "flash-lean": Operator(flash.unserved, partial(flash.attention, keeps_output=False)),
    "short": Operator(short.unserved, short.attention),
    "hopper": Operator(hopper.unserved, hopper.attention),
}
# Channels of a head -> the longest causal sequence of which `short` takes less time than `flash`: its forward and backward pass
# together and its forward pass alone, each with a gate and without one. Measured on an H200, with as many key heads as query
# heads (benchmarks/results/short_h200_2026-11.md).
_SHORT, _SHORT_UNGATED = {32: 2048, 64: 1024}, {32: 2048, 64: 256}
_SHORT_FORWARD, _SHORT_FORWARD_UNGATED = {32: 2048, 64: 2048}, {32: 2048}
_SOFTMAX = Softmax()


def choose(impl: str, normaliser: Normaliser = _SOFTMAX, call: Call | None = None) -> str:
    """The implementation that `auto` means for a normaliser and a call; callers store the name with their results.

    A softmax, with a slot or without, goes to the fused kernels: on CUDA devices to the operator that was measured to be the
    fastest, with a backward pass or without, where one serves the call, else to `sdpa`. Any other normaliser goes to the whole
    matrix, which takes memory of T × S a head. Without a call the answer holds for every call.

    Raises:
        ValueError: for a name that does not exist, or one that does not serve the normaliser or the call.
    """
    if impl == "auto":
        is_seen = call is not None and call.device.type == "cuda"
        fastest = _fastest(normaliser, call) if is_seen else None
        return fastest or ("sdpa" if sdpa.unserved(normaliser, call) is None else "reference")
    names = [*IMPLEMENTATIONS, *OPERATORS]
    if impl not in names:
        raise ValueError(f"impl={impl!r}: expected one of auto, {', '.join(names)}")
    if impl == "sdpa" and (why := sdpa.unserved(normaliser, call)) is not None:
        raise ValueError(f"impl='sdpa' {why}; take reference, or auto")
    if impl in OPERATORS:
        why = OPERATORS[impl].unserved(normaliser, call)
        if why is not None:
            raise ValueError(f"impl={impl!r} {why}; take {'sdpa' if normaliser.is_softmax else 'reference'}, or auto")
    return impl


def _fastest(normaliser: Normaliser, call: Call) -> str | None:
    """The operator for a call on a CUDA device; None where none is known to gain anything."""
    if call.gate is None:
        longest = _SHORT_UNGATED if call.has_gradients else _SHORT_FORWARD_UNGATED
    else:
        longest = _SHORT if call.has_gradients else _SHORT_FORWARD
    # Where every key is seen the work is that of a causal sequence twice as long; so, unmeasured, is the limit.
    reach = call.n_keys if call.is_causal else 2 * call.n_keys
    is_short = call.n_queries == call.n_keys and reach <= longest.get(call.head_dim, 0) and call.window is None
    if is_short and short.unserved(normaliser, call) is None:
        return "short"
    return "flash-lean" if flash.unserved(normaliser, call) is None else None


def chosen_for(
    config: ModelConfig, impl: str = "auto", *, dtype: torch.dtype, device: torch.device, has_mask: bool = False
) -> str:
    """What `impl` means in the layers of a resolved model that is trained on whole sequences, joined by `+` where they differ.

    Args:
        dtype: that the model computes in.
        has_mask: whether sequences come with document numbers.
    """
    c, names = config, []
    extras = (("segment_ids_BT",) if has_mask else ()) + (("bias_BHTS",) if c.positions == "relative" else ())
    for stack in c.architecture.stacks:
        layers = [(layer, False, None if c.is_global(layer) else c.window) for layer in range(c.depth(stack))]
        layers += [(layer, True, None) for layer in range(c.depth(stack)) if stack.has_cross]
        for layer, is_cross, window in layers:
            gates = {g.site: g for g in c.gates(stack, layer, is_cross=is_cross)}
            gate = gates.get("sdpa")
            # A gate that reads the output, or follows a map of it, comes after the op.
            if gate is not None and (c.output_map != "none" or gate.source in ("output", "hybrid")):
                gate = None
            more = (*(() if is_cross else extras), *(("score_gate",) if "scores" in gates else ()))
            is_causal = stack.is_causal and not is_cross
            call = Call(c.max_seq_len, c.max_seq_len, c.head_dim, (dtype,), device, gate, is_causal, window, more)
            names.append(choose(impl, c.softmax, call))
    return "+".join(sorted(set(names)))


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
    segment_ids_BT: Tensor | None = None,
    mask_BTS: Tensor | None = None,
    bias_BHTS: Tensor | None = None,
    score_logits_BSH: Tensor | None = None,
    score_gate: GateSpec | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
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
        segment_ids_BT: numbers of the documents that the tokens belong to, of as many queries as keys; attention stays
            within a document. `hopper` takes them where they do not fall along a row, and asserts it on the device.
        mask_BTS: boolean, True where a query may see a key, and-ed with the others. Every query must see a key, and keys
            and values behind a mask or a window must be finite.
        bias_BHTS: added to the logits, broadcastable; rounded to q's type by the fused kernels.
        score_logits_BSH: one logit a key and query head, for the gate on the scores; 1 in the place of B or S is a
            constant.
        score_gate: form `mul` multiplies the weights by act(g_j), after they were normalised; `add` adds act(g_j) to the
            logits; `forget` adds Σ ln act(g) over the keys after j up to the query (arXiv 2503.02130).
        dropout: the share of the keys' weights, after the normaliser, that are 0 this time, at random; the others are divided by
            1 − dropout. In `sdpa` torch's attention drops them, in `reference` any call's.
        softcap: a logit z is c·tanh(z/c), before anything is added to it (Gemma 2, arXiv 2408.00118); `reference` alone.
        impl: `reference`, `sdpa`, a name in `OPERATORS` or `auto`; never replaced silently.

    Raises:
        ValueError: shapes that do not fit, a mask that is not boolean, more causal queries than keys, queries without a key,
            a gate without logits or of another site, parameters that are not the normaliser's, an unknown implementation or
            one that does not serve the normaliser or the call.
    """
    _check(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, gate)
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
        segment_ids_BT=segment_ids_BT,
        dropout=dropout,
        softcap=softcap,
    )
    return _attend(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, gate, s, impl, reads_lse=False)[0]


def gated_attention_and_lse(
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
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """`gated_attention` with nothing added to the logits or hidden but later keys, and ln of each row's denominator: its
    log-sum-exp, a slot's logit among the keys'.

    [B, H, T] in float32 (float64 stays) and without gradient; None of the implementation `reference`, which would compute it
    a second time. The output and its gradients are those of `gated_attention`: the same bits of an operator and with a
    slot; else `sdpa` takes torch's kernel that gives the log-sum-exp, the one that torch takes itself on CPUs.

    Raises:
        ValueError: as `gated_attention`.
    """
    _check(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, gate)
    s = scoring(
        q_BTHK,
        k_BSGK,
        normaliser=normaliser,
        learned=learned,
        heads=heads,
        is_causal=is_causal,
        window=None,
        mask_BTS=None,
        bias_BHTS=None,
        score_logits_BSH=None,
        score_gate=None,
    )
    return _attend(q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK, gate, s, impl, reads_lse=True)


def _check(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, gate_logits_BTHK: Tensor | None, gate: GateSpec | None
) -> None:
    """Refuses what no scoring could mend.

    Raises:
        ValueError: saying what was expected.
    """
    if k_BSGK.shape != v_BSGK.shape:
        shapes = f"{tuple(k_BSGK.shape)}, {tuple(v_BSGK.shape)}"
        raise ValueError(f"k, v of shapes {shapes}: expected [B,S,G,K] of both")
    check_gate_logits(gate_logits_BTHK, gate, tuple(q_BTHK.shape))


def _attend(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    gate_logits_BTHK: Tensor | None,
    gate: GateSpec | None,
    s: Scoring,
    impl: str,
    *,
    reads_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output of the implementation that `impl` means, and the rows' denominators where they are read and known."""
    given = (q_BTHK, k_BSGK, v_BSGK, gate_logits_BTHK)
    name = choose(impl, s.normaliser, call_of(*given, gate, s))
    if name in OPERATORS:
        known = {"window": s.window, "segment_ids_BT": s.segment_ids_BT}
        return OPERATORS[name].attend(
            *given, is_causal=s.is_causal, **{n: value for n, value in known.items() if value is not None}
        )
    s = s.masked()
    if name == "sdpa" and reads_lse:
        return sdpa.gated_attention_and_lse(*given, gate, s)
    return IMPLEMENTATIONS[name](*given, gate, s), None


__all__ = [
    "IMPLEMENTATIONS",
    "OPERATORS",
    "Call",
    "Operator",
    "attention_weights",
    "choose",
    "chosen_for",
    "gated_attention",
    "gated_attention_and_lse",
    "visible",
]
