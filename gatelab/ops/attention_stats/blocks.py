"""The attention weights by blocks of queries: one pass, from which any number of statistics are taken.

Notable: weights exist for one block at a time, so peak memory is block × S a head and never T × S, and what several
probes want of a layer costs its weights once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser, Softmax
from ..gated_attention import attention_weights, visible

_SOFTMAX = Softmax()


@dataclass(frozen=True)
class Block:
    """Queries `start` to `start` + T of a pass and the keys that any of them may see, in float32.

    `weights_BHTS` multiply the values; `slot_BHT` is the slot's mass; `sees_BTS` says which keys a query sees; `first_BT`
    is the first key of each query's document; `v_BSGK` is None where the pass was given no values.
    """

    start: int
    q_BTHK: Tensor
    k_BSGK: Tensor
    v_BSGK: Tensor | None
    weights_BHTS: Tensor
    slot_BHT: Tensor
    sees_BTS: Tensor
    first_BT: Tensor

    @cached_property
    def n_seen_BT(self) -> Tensor:
        """How many keys each query sees."""
        return self.sees_BTS.sum(dim=-1)

    def logits_BHTS(self) -> Tensor:
        """q·k/√K, −∞ where a key is hidden; without biases and gates on the scores."""
        G = self.k_BSGK.shape[2]
        q_BTGRK = self.q_BTHK.unflatten(2, (G, -1)) / math.sqrt(self.q_BTHK.shape[3])
        logits_BHTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, self.k_BSGK).flatten(1, 2)
        return logits_BHTS.masked_fill_(~self.sees_BTS[:, None], -math.inf)


def attention_blocks(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor | None = None,
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
) -> Iterator[Block]:
    """The blocks of a layer in order, `block` queries each; the arguments are those of `attention_stats`.

    Raises:
        ValueError: segment_ids_BT with keys of another length, and whatever `attention_weights` refuses.
    """
    B, T = q_BTHK.shape[:2]
    S = k_BSGK.shape[1]
    if segment_ids_BT is not None and T != S:
        raise ValueError(
            f"segment_ids_BT number the tokens of self-attention, and here are {T} queries and {S} keys; give mask_BTS"
        )
    q_BTHK, k_BSGK = q_BTHK.float(), k_BSGK.float()
    v_BSGK = None if v_BSGK is None else v_BSGK.float()
    first_BT = _first_keys(segment_ids_BT, (B, T), q_BTHK.device)
    for t in range(0, T, block):
        u = min(t + block, T)
        # Later keys are hidden from all queries of the block.
        s = S - T + u if is_causal else S
        mask_block_BTS = _block(mask_BTS, t, u, s)
        if segment_ids_BT is not None:
            same_BTS = segment_ids_BT[:, t:u, None] == segment_ids_BT[:, None, :s]
            mask_block_BTS = same_BTS if mask_block_BTS is None else same_BTS & mask_block_BTS
        sees_BTS = visible(
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
            mask_BTS=sees_BTS,
            bias_BHTS=_block(bias_BHTS, t, u, s),
            score_logits_BSH=None if score_logits_BSH is None else score_logits_BSH[:, :s],
            score_gate=score_gate,
        )
        yield Block(
            start=t,
            q_BTHK=q_BTHK[:, t:u],
            k_BSGK=k_BSGK[:, :s],
            v_BSGK=None if v_BSGK is None else v_BSGK[:, :s],
            weights_BHTS=weights_BHTS,
            slot_BHT=slot_BHT1.squeeze(-1),
            sees_BTS=sees_BTS,
            first_BT=first_BT[:, t:u],
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
