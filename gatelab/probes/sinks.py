"""Attention sinks: mass on the first token, its importance, and whether its value is drained.

Definitions: docs/metrics.md. First-token mass as in arXiv 2505.06708 (F-Attn), sink rate as in arXiv 2410.10781,
value drain as in arXiv 2410.13835 (as a ratio to the median).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..ops.attention_stats import attention_stats
from ..record import Row
from .probe import AttentionView, Probe, over_layers


class Sinks(Probe):
    """Attention of any kind. In causal self-attention, queries before `skip_queries` positions into their document are
    left out of the means; elsewhere the first key is the first of the context, and every query counts."""

    name = "sinks"
    metrics: ClassVar = {
        "first_token_mass": "share",
        "first_token_uniform": "share",
        "sink_rate": "share",
        "sink_slot_mass": "share",
        "value_drain": "ratio",
    }

    def attention(self, view: AttentionView) -> None:
        """One layer: per head, and the layer's mean over heads."""
        if min(view.q_BTHK.shape[1], view.k_BSGK.shape[1]) < 2:
            return  # one token: every query is left out, and an importance of 1 says nothing
        score_gate, score_logits_BSH1 = view.gates.get("scores", (None, None))
        stats = attention_stats(
            view.q_BTHK,
            view.k_BSGK,
            normaliser=view.normaliser,
            learned=view.learned,
            heads=view.heads,
            is_causal=view.stack is None,
            window=view.window,
            segment_ids_BT=view.segment_ids_BT,
            bias_BHTS=view.bias_BHTS,
            score_logits_BSH=None if score_logits_BSH1 is None else score_logits_BSH1.squeeze(-1),
            score_gate=score_gate,
        )
        counted_BT = stats.first_uniform_BT < math.inf
        if view.stack is None:
            # 1/visible keys counts the position within the document: skip the first ones.
            counted_BT = stats.first_uniform_BT < 1.0 / self.config.skip_queries - 1e-9
        counted_BT = counted_BT.expand(view.q_BTHK.shape[0], -1)
        where = view.where | {"length": view.q_BTHK.shape[1]}

        self._heads("first_token_mass", _mean(stats.first_mass_BHT, counted_BT), where)
        uniform_BT = stats.first_uniform_BT.expand_as(counted_BT)
        self.add("first_token_uniform", (uniform_BT * counted_BT).sum(1) / counted_BT.sum(1), **where)
        if view.domain_BT is not None:
            for i, domain in enumerate(self.domains):
                selected_BT = counted_BT & (view.domain_BT == i)
                self._heads("first_token_mass", _mean(stats.first_mass_BHT, selected_BT), where | {"domain": domain})
        for threshold in self.config.thresholds:
            is_sink_BH = (stats.importance_BHS[..., 0] > threshold).float()
            self._heads("sink_rate", is_sink_BH, where | {"threshold": threshold})
        if view.normaliser.slot_logits(view.q_BTHK, view.learned or {}) is not None:
            self._heads("sink_slot_mass", _mean(stats.slot_mass_BHT, counted_BT), where)
        norm_BSG = view.v_BSGK.float().norm(dim=-1)
        drain_BG = norm_BSG[:, 0] / norm_BSG[:, 1:].median(dim=1).values
        self._heads("value_drain", drain_BG, where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return [row for metric in self.metrics for row in over_layers(rows, metric)]

    def _heads(self, metric: str, value_BH: Tensor, where: dict[str, object]) -> None:
        self.add(metric, value_BH.nanmean(dim=1), **where)
        for head in range(value_BH.shape[1]):
            self.add(metric, value_BH[:, head], **where, head=head)


def _mean(value_BHT: Tensor, selected_BT: Tensor) -> Tensor:
    """Mean over the selected queries, [B, H]; not-a-number for a sequence that has none."""
    selected_B1T = selected_BT[:, None].to(value_BHT.dtype)
    count_B1 = selected_B1T.sum(-1)
    return (value_BHT * selected_B1T).sum(-1) / torch.where(count_B1 > 0, count_B1, torch.nan)
