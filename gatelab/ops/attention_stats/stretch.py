"""A stretch of queries of one attention layer, and everything that their weights, values and gates depend on.

Notable: a whole sequence is one stretch; a long one comes in several, each with all the keys before it, as a cache gives
them. Positions are counted from the sequence's first token, so that statistics of stretches add up.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ...config.normaliser import Heads, Normaliser, Softmax
from ..gated_attention import attention_weights

_SOFTMAX = Softmax()
Gates = dict[str, tuple[GateSpec, Tensor]]


@dataclass(frozen=True)
class Block:
    """Some queries of a stretch and the first `n_keys` of its keys, in float32, computed when they are asked for.

    `query_T` are their positions and `index` their place in the stretch. `is_causal`: they are the last of these keys.
    `sees_BTS` says which keys a query sees; `first_BT` is the position of the first token of each query's document.
    """

    stretch: "Stretch"
    query_T: Tensor
    index: slice | Tensor
    n_keys: int
    is_causal: bool
    sees_BTS: Tensor
    first_BT: Tensor

    @cached_property
    def _weighed(self) -> tuple[Tensor, Tensor]:
        s = self.stretch
        if s.weights_BHTS is not None:
            weights_BHTS = s.weights_BHTS[:, :, self.index, : self.n_keys].float()
            return weights_BHTS, torch.zeros_like(weights_BHTS[..., 0])
        weights_BHTS, slot_BHT1 = attention_weights(
            s.q_BTHK[:, self.index].float(),
            s.k_BSGK[:, : self.n_keys].float(),
            normaliser=s.normaliser,
            learned=s.learned,
            heads=s.heads,
            is_causal=self.is_causal,
            mask_BTS=self.sees_BTS,
            bias_BHTS=None if s.bias_BHTS is None else _part(s.bias_BHTS, self.index, self.n_keys),
            score_logits_BSH=None if s.score_logits_BSH is None else s.score_logits_BSH[:, : self.n_keys],
            score_gate=s.score_gate,
            softcap=s.softcap,
        )
        return weights_BHTS, slot_BHT1.squeeze(-1)

    @property
    def weights_BHTS(self) -> Tensor:
        """What multiplies the values."""
        return self._weighed[0]

    @property
    def slot_BHT(self) -> Tensor:
        """The slot's mass."""
        return self._weighed[1]

    @cached_property
    def n_seen_BT(self) -> Tensor:
        """How many keys each query sees."""
        return self.sees_BTS.sum(dim=-1)

    def logits_BHTS(self) -> Tensor:
        """q·k/√K, −∞ where a key is hidden; without a cap, biases and gates on the scores."""
        q_BTHK, k_BSGK = self.stretch.q_BTHK[:, self.index].float(), self.stretch.k_BSGK[:, : self.n_keys].float()
        G = k_BSGK.shape[2]
        q_BTGRK = q_BTHK.unflatten(2, (G, -1)) / math.sqrt(q_BTHK.shape[3])
        logits_BHTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK).flatten(1, 2)
        return logits_BHTS.masked_fill_(~self.sees_BTS[:, None], -math.inf)

    @property
    def gates(self) -> Gates:
        """The gates of these queries."""
        T = self.stretch.shape[2]
        return {
            site: (spec, logits_BTHK if logits_BTHK.shape[1] != T else logits_BTHK[:, self.index])
            for site, (spec, logits_BTHK) in self.stretch.gates.items()
        }

    @cached_property
    def y_BTHK(self) -> Tensor:
        """The weighted values before the gate, as the stretch knows them or computed from the weights."""
        s = self.stretch
        if s.y_BTHK is not None:
            return s.y_BTHK[:, self.index].float()
        v_BSGK = s.v_BSGK[:, : self.n_keys].float()
        weights_BGRTS = self.weights_BHTS.unflatten(1, (v_BSGK.shape[2], -1))
        y_BTHK = torch.einsum("bgrts,bsgk->btgrk", weights_BGRTS, v_BSGK).flatten(2, 3)
        return s.normaliser.finish(y_BTHK, s.learned or {}, s.heads)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """T queries, which are the last T of `start_key` + S positions when causal, and S keys.

    Args:
        q_BTHK, k_BSGK: after q/k-norm and rotation, as they enter the softmax; None where the weights are given.
        v_BSGK: values, of any width; None leaves out what needs them.
        weights_BHTS: what multiplies the values, where it is known as it is; then no other argument of the scoring counts.
        normaliser, learned, heads, is_causal, window, mask_BTS, bias_BHTS, score_logits_BSH, score_gate: as in
            `gatelab.ops.gated_attention.gated_attention`.
        softcap: logits are c·tanh(z/c), before masks.
        segment_ids_BT: document numbers of T = S tokens; attention stays within a document.
        start_key: the position of the first key; keys before it were given up, as a window's cache does.
        n_tokens: how long the sequence will be; None: this stretch ends it.
        y_BTHK: the weighted values, where they are known (before the gate); else they are computed.
        is_mapped: something stands between the weighted values and the gate.
        gates: by site, (spec, logits [B or 1, T or 1, H, K or 1]); one on the log-sum-exp gives what is added to it.
    """

    q_BTHK: Tensor | None
    k_BSGK: Tensor | None
    v_BSGK: Tensor | None = None
    weights_BHTS: Tensor | None = None
    normaliser: Normaliser = _SOFTMAX
    learned: dict[str, Tensor] | None = None
    heads: Heads | None = None
    is_causal: bool = True
    window: int | None = None
    segment_ids_BT: Tensor | None = None
    mask_BTS: Tensor | None = None
    bias_BHTS: Tensor | None = None
    score_logits_BSH: Tensor | None = None
    score_gate: GateSpec | None = None
    softcap: float | None = None
    start_key: int = 0
    n_tokens: int | None = None
    y_BTHK: Tensor | None = None
    is_mapped: bool = False
    gates: Gates = field(default_factory=dict)

    def __post_init__(self) -> None:
        _, _, T, S = self.shape
        if self.segment_ids_BT is not None and T != S:
            raise ValueError(
                f"segment_ids_BT number the tokens of self-attention, and here are {T} queries and {S} keys; give mask_BTS"
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sequences, query heads, queries, keys."""
        if self.weights_BHTS is not None:
            return tuple(self.weights_BHTS.shape)
        B, T, H = self.q_BTHK.shape[:3]
        return B, H, T, self.k_BSGK.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return (self.q_BTHK if self.weights_BHTS is None else self.weights_BHTS).device

    @property
    def start(self) -> int:
        """The position of the first query; of causal ones the last stands at the last key."""
        _, _, T, S = self.shape
        return self.start_key + S - T if self.is_causal else 0

    @cached_property
    def query_T(self) -> Tensor:
        """The positions of the queries."""
        return torch.arange(self.start, self.start + self.shape[2], device=self.device)

    @cached_property
    def first_BT(self) -> Tensor:
        """The position of the first token of each query's document; 0 without documents."""
        B, _, T, _ = self.shape
        if self.segment_ids_BT is None:
            return torch.zeros(B, T, dtype=torch.int64, device=self.device)
        starts_BT = torch.cat(
            [torch.ones_like(self.segment_ids_BT[:, :1]), self.segment_ids_BT.diff(dim=1)], dim=1
        ).bool()
        return torch.where(starts_BT, torch.arange(T, device=self.device), 0).cummax(dim=1).values

    def blocks(self, block: int = 256) -> Iterator[Block]:
        """The weights of `block` queries at a time, in order, with the keys that any of them may see.

        Raises:
            ValueError: whatever `attention_weights` refuses.
        """
        _, _, T, S = self.shape
        for t in range(0, T, block):
            u = min(t + block, T)
            # Later keys are hidden from all queries of the block.
            s = S - T + u if self.is_causal else S
            sees_BTS = self._sees(self.query_T[t:u], slice(t, u), s)
            yield self._block(slice(t, u), s, sees_BTS, is_causal=self.is_causal)

    def rows(self, query_R: Tensor) -> Block:
        """The weights of some queries, by their positions, over all keys; not of a gate on the scores of form `forget`,
        which asks for the queries between them."""
        index_R = query_R - self.start
        sees_BRS = self._sees(query_R, index_R, self.shape[3])
        return self._block(index_R, self.shape[3], sees_BRS, is_causal=False)

    def _sees(self, query_T: Tensor, index: slice | Tensor, s: int) -> Tensor:
        key_S = torch.arange(self.start_key, self.start_key + s, device=self.device)
        behind_TS = query_T[:, None] - key_S
        sees_BTS = torch.ones_like(behind_TS, dtype=torch.bool)[None]
        if self.is_causal:
            sees_BTS = sees_BTS & (behind_TS >= 0)
        if self.window is not None:
            sees_BTS = sees_BTS & (behind_TS.abs() < self.window)
        if self.segment_ids_BT is not None:
            sees_BTS = sees_BTS & (self.segment_ids_BT[:, index, None] == self.segment_ids_BT[:, None, :s])
        if self.mask_BTS is not None:
            sees_BTS = sees_BTS & _part(self.mask_BTS, index, s)
        return sees_BTS.expand(self.shape[0], *sees_BTS.shape[1:])

    def _block(self, index: slice | Tensor, s: int, sees_BTS: Tensor, *, is_causal: bool) -> Block:
        return Block(
            stretch=self,
            query_T=self.query_T[index],
            index=index,
            n_keys=s,
            is_causal=is_causal,
            sees_BTS=sees_BTS,
            first_BT=self.first_BT[:, index],
        )


def _part(values: Tensor, index: slice | Tensor, s: int) -> Tensor:
    """Queries and the first s keys of a mask or a bias; an axis of 1 stays."""
    rows = values if values.shape[-2] == 1 else values[..., index, :]
    return rows if rows.shape[-1] == 1 else rows[..., :s]
