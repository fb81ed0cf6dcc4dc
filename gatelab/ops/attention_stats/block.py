"""Some queries of a stretch, and what statistics ask of their weights, computed from the weights themselves.

Notable: `Fused` answers the same questions from kernels that store no weight; a statistic does not know which it adds.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...config.gate import GateSpec
from ..gated_attention import attention_weights

if TYPE_CHECKING:
    from .stretch import Stretch

Gates = dict[str, tuple[GateSpec, Tensor]]


class Received(NamedTuple):
    """Of every key, sums over the queries that see it: its mass; the same over the queries that see more than one key; the
    mass of uniform attention; how many queries see it; the mass of uniform attention over those that see more than one."""

    mass_BHS: Tensor
    shared_mass_BHS: Tensor
    uniform_BS: Tensor
    n_queries_BS: Tensor
    shared_uniform_BS: Tensor


@dataclass(frozen=True)
class Block:
    """Queries of a stretch and the first `n_keys` of its keys, in float32, computed when they are asked for.

    `query_T` are their positions, from `start` on where they are one behind the other, and `index` their place in the
    stretch. `is_causal`: they are the last of these keys.
    `sees_BTS` says which keys a query sees; `first_BT` is the position of the first token of each query's document.
    """

    stretch: "Stretch"
    start: int
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
            bias_BHTS=None if s.bias_BHTS is None else part(s.bias_BHTS, self.index, self.n_keys),
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

    def sampled(self, index_R: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of some of the queries, and what they see."""
        return self.weights_BHTS[:, :, index_R], self.sees_BTS[:, index_R]

    @cached_property
    def n_seen_BT(self) -> Tensor:
        """How many keys each query sees."""
        return self.sees_BTS.sum(dim=-1)

    @cached_property
    def _first_BT1(self) -> tuple[Tensor, Tensor]:
        """Where the first key stands among the keys, and whether it is there: a cache of a window gives it up."""
        index_BT1 = (self.first_BT - self.stretch.start_key)[..., None]
        return index_BT1.clamp(min=0), index_BT1 >= 0

    @cached_property
    def first_mass_BHT(self) -> Tensor:
        """Mass on the first token of the query's document."""
        index_BT1, is_there_BT1 = self._first_BT1
        index_BHT1 = index_BT1[:, None].expand(*self.weights_BHTS.shape[:3], 1)
        return (self.weights_BHTS.gather(-1, index_BHT1) * is_there_BT1[:, None]).squeeze(-1)

    @property
    def first_gap_BHT(self) -> Tensor:
        """ln of that over all other mass, the slot's included; not-a-number where it is hidden or alone."""
        index_BT1, _ = self._first_BT1
        if self.stretch.segment_ids_BT is None and self.stretch.start_key == 0:
            others_BHT = self.weights_BHTS[..., 1:].sum(dim=-1)
        else:
            # Not the sum less the mass, which would lose what is left beside a mass near one.
            index_BHT1 = index_BT1[:, None].expand(*self.weights_BHTS.shape[:3], 1)
            others_BHT = self.weights_BHTS.scatter(-1, index_BHT1, 0.0).sum(dim=-1)
        tiny = torch.finfo(torch.float32).tiny
        gap_BHT = self.first_mass_BHT.clamp(min=tiny).log() - (others_BHT + self.slot_BHT).clamp(min=tiny).log()
        is_gap_BT = (self.first_uniform_BT > 0) & (self.n_seen_BT > 1)
        return gap_BHT.masked_fill(~is_gap_BT[:, None], torch.nan)

    @cached_property
    def first_uniform_BT(self) -> Tensor:
        """Its mass in uniform attention, 1 / number of visible keys; 0 where it is hidden."""
        index_BT1, is_there_BT1 = self._first_BT1
        return (self.sees_BTS.gather(-1, index_BT1) & is_there_BT1).squeeze(-1) / self.n_seen_BT.clamp(min=1)

    @property
    def first_value_norm_BTG(self) -> Tensor:
        """‖v‖ of it."""
        index_BT1, _ = self._first_BT1
        v_BSGK = self.stretch.v_BSGK
        return v_BSGK.gather(1, index_BT1[..., None].expand(-1, -1, *v_BSGK.shape[2:])).float().norm(dim=-1)

    def received(self) -> Received:
        """What every key gets."""
        column_BHS = self.weights_BHTS.sum(dim=2)
        sees_BTS = self.sees_BTS.float()
        share_BT = 1.0 / self.n_seen_BT.clamp(min=1)
        uniform_BS = torch.einsum("bt,bts->bs", share_BT, sees_BTS)
        # A query that sees one key alone says nothing: what it gives to that key is taken out again.
        alone_BT = (self.n_seen_BT == 1).float()
        index_BT = sees_BTS.argmax(dim=-1)
        index_BHT = index_BT[:, None].expand(self.weights_BHTS.shape[:3])
        given_BHT = self.weights_BHTS.gather(-1, index_BHT[..., None]).squeeze(-1) * alone_BT[:, None]
        return Received(
            column_BHS,
            column_BHS.scatter_add(-1, index_BHT, -given_BHT),
            uniform_BS,
            self.sees_BTS.sum(dim=1),
            uniform_BS.scatter_add(-1, index_BT, -alone_BT),
        )

    def entropy_and_focus(self) -> tuple[Tensor, Tensor]:
        """−Σ p ln p and 1 / Σ p² of p = absolute weights over their sum, [B, H, T] both."""
        size_BHTS = self.weights_BHTS.abs()
        sum_BHT = size_BHTS.sum(dim=-1)
        # Σ p ln p of p = w / Σ w, without another T × S tensor for p.
        entropy_BHT = sum_BHT.log() + torch.special.entr(size_BHTS).sum(dim=-1) / sum_BHT
        return entropy_BHT, sum_BHT.square() / size_BHTS.square_().sum(dim=-1)

    def largest_BH(self) -> Tensor:
        """The largest q·k/√K of a query and a key that it sees; without a cap, biases and gates on the scores; not-a-number
        where the weights alone are known."""
        if self.stretch.q_BTHK is None:
            return self.weights_BHTS.new_full(self.weights_BHTS.shape[:2], torch.nan)
        q_BTHK, k_BSGK = self.stretch.q_BTHK[:, self.index].float(), self.stretch.k_BSGK[:, : self.n_keys].float()
        G = k_BSGK.shape[2]
        q_BTGRK = q_BTHK.unflatten(2, (G, -1)) / math.sqrt(q_BTHK.shape[3])
        logits_BHTS = torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK).flatten(1, 2)
        return logits_BHTS.masked_fill_(~self.sees_BTS[:, None], -math.inf).amax(dim=(2, 3))

    @property
    def gates(self) -> Gates:
        """The gates of these queries."""
        return {
            site: (spec, logits_BTHK if not spec.has_projection else logits_BTHK[:, self.index])
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

    @property
    def y_norm_BTH(self) -> Tensor:
        """Its norm by head."""
        return self.y_BTHK.norm(dim=-1)


def part(values: Tensor, index: slice | Tensor, s: int) -> Tensor:
    """Queries and the first s keys of a mask or a bias; an axis of 1 stays."""
    rows = values if values.shape[-2] == 1 else values[..., index, :]
    return rows if rows.shape[-1] == 1 else rows[..., :s]
