"""Exact statistics of P by blocks of queries: peak memory is block × S a head, never T × S."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..gated_attention.reference import attention_weights


@dataclass(frozen=True)
class AttentionStats:
    """Float32. `first_mass_BHT`: mass on the first key that a query may see (its document's first token).
    `importance_BHS`: α_k, the mean mass on key k over the queries that see it. `slot_mass_BHT`: mass taken by the sink
    logit. `first_uniform_BT`: the first-key mass of uniform attention, 1 / number of visible keys."""

    first_mass_BHT: Tensor
    importance_BHS: Tensor
    slot_mass_BHT: Tensor
    first_uniform_BT: Tensor


def attention_stats(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    *,
    segment_ids_BT: Tensor | None = None,
    sink_logit_H: Tensor | None = None,
    block: int = 256,
) -> AttentionStats:
    """Statistics of causal self-attention (T = S).

    Args:
        q_BTHK, k_BSGK: after q/k-norm and rotation, as they enter the softmax.
        segment_ids_BT: document numbers; attention stays within a document.
        block: queries at a time.
    """
    B, T, H, _ = q_BTHK.shape
    q_BTHK, k_BSGK = q_BTHK.float(), k_BSGK.float()
    if segment_ids_BT is None:
        segment_ids_BT = torch.zeros(B, T, dtype=torch.int32, device=q_BTHK.device)
    position_T = torch.arange(T, device=q_BTHK.device)
    starts_BT = torch.cat([torch.ones_like(segment_ids_BT[:, :1]), segment_ids_BT.diff(dim=1)], dim=1) != 0
    first_BT = torch.where(starts_BT, position_T, 0).cummax(dim=1).values

    column_BHS = q_BTHK.new_zeros(B, H, T)
    seen_BS = q_BTHK.new_zeros(B, T)
    first, slot = [], []
    for t in range(0, T, block):
        u = min(t + block, T)
        mask_BTS = segment_ids_BT[:, t:u, None] == segment_ids_BT[:, None, :u]
        weights_BHTS = attention_weights(
            q_BTHK[:, t:u], k_BSGK[:, :u], is_causal=True, mask_BTS=mask_BTS, sink_logit_H=sink_logit_H
        )
        column_BHS[:, :, :u] += weights_BHTS[..., :-1].sum(dim=2)
        causal_TS = torch.ones(u - t, u, dtype=torch.bool, device=q_BTHK.device).tril(diagonal=t)
        seen_BS[:, :u] += (mask_BTS & causal_TS).sum(dim=1)
        index = first_BT[:, None, t:u, None].expand(B, H, u - t, 1)
        first.append(weights_BHTS.gather(-1, index).squeeze(-1))
        slot.append(weights_BHTS[..., -1])
    return AttentionStats(
        first_mass_BHT=torch.cat(first, dim=2),
        importance_BHS=column_BHS / seen_BS[:, None],
        slot_mass_BHT=torch.cat(slot, dim=2),
        first_uniform_BT=1.0 / (position_T - first_BT + 1),
    )
