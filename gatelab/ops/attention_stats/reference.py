"""Exact statistics of the attention weights by blocks of queries: peak memory is block × S a head, never T × S."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser, Softmax
from ..gated_attention import attention_weights, visible

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
    B, T, H, _ = q_BTHK.shape
    S = k_BSGK.shape[1]
    if segment_ids_BT is not None and T != S:
        raise ValueError(
            f"segment_ids_BT number the tokens of self-attention, and here are {T} queries and {S} keys; give mask_BTS"
        )
    q_BTHK, k_BSGK = q_BTHK.float(), k_BSGK.float()
    first_BT = _first_keys(segment_ids_BT, (B, T), q_BTHK.device)
    column_BHS, seen_BS = q_BTHK.new_zeros(B, H, S), q_BTHK.new_zeros(B, S)
    first, slot, uniform = [], [], []
    for t in range(0, T, block):
        u = min(t + block, T)
        # Later keys are hidden from all queries of the block.
        s = S - T + u if is_causal else S
        mask_block_BTS = _block(mask_BTS, t, u, s)
        if segment_ids_BT is not None:
            same_BTS = segment_ids_BT[:, t:u, None] == segment_ids_BT[:, None, :s]
            mask_block_BTS = same_BTS if mask_block_BTS is None else same_BTS & mask_block_BTS
        allowed_BTS = visible(
            u - t,
            s,
            is_causal=is_causal,
            window=window,
            mask_BTS=mask_block_BTS,
            device=q_BTHK.device,
            start=S - T + t,
        ).expand(B, u - t, s)
        weights_BHTS, slot_BHT1 = attention_weights(
            q_BTHK[:, t:u],
            k_BSGK[:, :s],
            normaliser=normaliser,
            learned=learned,
            heads=heads,
            is_causal=is_causal,
            mask_BTS=allowed_BTS,
            bias_BHTS=_block(bias_BHTS, t, u, s),
            score_logits_BSH=None if score_logits_BSH is None else score_logits_BSH[:, :s],
            score_gate=score_gate,
        )
        column_BHS[:, :, :s] += weights_BHTS.sum(dim=2)
        seen_BS[:, :s] += allowed_BTS.sum(dim=1)
        index_BT1 = first_BT[:, t:u, None]
        first.append(weights_BHTS.gather(-1, index_BT1[:, None].expand(B, H, u - t, 1)).squeeze(-1))
        uniform.append(allowed_BTS.gather(-1, index_BT1).squeeze(-1) / allowed_BTS.sum(dim=-1))
        slot.append(slot_BHT1.squeeze(-1))
    return AttentionStats(
        first_mass_BHT=torch.cat(first, dim=2),
        # A key that no query sees has none.
        importance_BHS=column_BHS / seen_BS.clamp(min=1)[:, None],
        slot_mass_BHT=torch.cat(slot, dim=2),
        first_uniform_BT=torch.cat(uniform, dim=1),
    )


def _first_keys(segment_ids_BT: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """The position of the first token of each query's document, [B, T]; 0 without documents."""
    if segment_ids_BT is None:
        return torch.zeros(shape, dtype=torch.int64, device=device)
    starts_BT = torch.cat([torch.ones_like(segment_ids_BT[:, :1]), segment_ids_BT.diff(dim=1)], dim=1) != 0
    return torch.where(starts_BT, torch.arange(shape[1], device=device), 0).cummax(dim=1).values


def _block(values: Tensor | None, t: int, u: int, s: int) -> Tensor | None:
    """Queries t to u and keys to s of a mask or a bias; an axis of 1 stays."""
    if values is None:
        return None
    rows = values if values.shape[-2] == 1 else values[..., t:u, :]
    return rows if rows.shape[-1] == 1 else rows[..., :s]
