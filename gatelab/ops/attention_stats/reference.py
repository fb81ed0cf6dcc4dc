"""Exact statistics of the attention weights by blocks of queries: peak memory is block × S a head, never T × S."""

from dataclasses import dataclass

from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser, Softmax
from .statistic import Columns, FirstKey, one_pass
from .stretch import Stretch

_SOFTMAX = Softmax()


@dataclass(frozen=True)
class AttentionStats:
    """Float32. `first_mass_BHT`: mass on the first key, which is the query's document's first token, and in
    cross-attention key 0. `importance_BHS`: α_k, the mean mass on key k over the queries that see it. `slot_mass_BHT`:
    mass taken by the slot. `first_uniform_BT`: the first-key mass of uniform attention, 1 / number of visible keys; 0, as
    the mass is, where a window or a mask hides the first key."""

    first_mass_BHT: Tensor
    importance_BHS: Tensor
    slot_mass_BHT: Tensor
    first_uniform_BT: Tensor


def attention_stats(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
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
    block: int = 256,
) -> AttentionStats:
    """Statistics of self-attention (T = S), of queries that continue a cache (T < S), or of cross-attention.

    Args:
        q_BTHK, k_BSGK: after q/k-norm and rotation, as they enter the softmax.
        segment_ids_BT: document numbers of T = S tokens; attention stays within a document.
        block: queries at a time.

    The other arguments are those of `gatelab.ops.gated_attention.gated_attention`. The weights are what multiplies the
    values: they sum to one only for a softmax, and those of `differential` may be negative.

    Raises:
        ValueError: segment_ids_BT with keys of another length, and whatever `attention_weights` refuses.
    """
    first, columns = FirstKey(), Columns()
    stretch = Stretch(
        q_BTHK=q_BTHK,
        k_BSGK=k_BSGK,
        normaliser=normaliser,
        learned=learned,
        heads=heads,
        is_causal=is_causal,
        window=window,
        segment_ids_BT=segment_ids_BT,
        mask_BTS=mask_BTS,
        bias_BHTS=bias_BHTS,
        score_logits_BSH=score_logits_BSH,
        score_gate=score_gate,
    )
    one_pass((first, columns), stretch, block=block)
    return AttentionStats(
        first_mass_BHT=first.mass_BHT,
        importance_BHS=columns.importance_BHS,
        slot_mass_BHT=first.slot_BHT,
        first_uniform_BT=first.uniform_BT,
    )
