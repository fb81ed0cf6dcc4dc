"""Attention sinks: mass on the first token, its importance, and whether its value is drained.

Definitions: docs/metrics.md. First-token mass as in arXiv 2505.06708 (F-Attn), sink rate as in arXiv 2410.10781,
value drain as in arXiv 2410.13835 (as a ratio to the median); the logit gap after the same. What of it is written into the
head's output is this laboratory's own measure.
"""

from typing import ClassVar

import torch

from ..ops.attention_stats import Columns, Effect, FirstKey, ValueNorms
from ..record import Row
from .probe import AttentionView, Probe, mean_of, over_layers


class Sinks(Probe):
    """Attention of any kind. In causal self-attention, queries before `skip_queries` positions into their document are
    left out of the means; elsewhere the first key is the first of the context, and every query counts."""

    name = "sinks"
    metrics: ClassVar = {
        "first_token_mass": "share",
        "first_token_uniform": "share",
        "sink_rate": "share",
        "sink_logit_gap": "nats",
        "sink_slot_mass": "share",
        "sink_write": "ratio",
        "value_drain": "ratio",
    }
    statistics: ClassVar = (FirstKey, Columns, ValueNorms, Effect)
    takes_layers = True

    def attention(self, view: AttentionView) -> None:
        """One layer: per head, and the layer's mean over heads."""
        if view.is_short:
            return
        first, importance_BHS = view.of(FirstKey), view.of(Columns).importance_BHS
        counted_BT = view.counted_BT(self.config.skip_queries)
        where = view.where | {"length": view.n_queries}

        self.add_heads("first_token_mass", mean_of(first.mass_BHT, counted_BT), where)
        self.add("first_token_uniform", (first.uniform_BT * counted_BT).sum(1) / counted_BT.sum(1), **where)
        if view.domain_BT is not None:
            for i, domain in enumerate(self.domains):
                selected_BT = counted_BT & (view.domain_BT == i)
                self.add_heads("first_token_mass", mean_of(first.mass_BHT, selected_BT), where | {"domain": domain})
        self.add_rate("sink_rate", importance_BHS[..., 0], where)
        gap_BHT = first.gap_BHT.masked_fill(~counted_BT[:, None], torch.nan)
        self.add_heads("sink_logit_gap", gap_BHT.nanmean(dim=-1), where)
        if view.has_slot:
            self.add_heads("sink_slot_mass", mean_of(first.slot_BHT, counted_BT), where)
        effect = view.of(Effect)
        for stage, write_BHT in (("before", effect.write_BHT), ("after", effect.gated_write_BHT)):
            if write_BHT is not None:
                write_BH = write_BHT.masked_fill(~counted_BT[:, None], torch.nan).nanmean(dim=-1)
                self.add_heads("sink_write", write_BH, where | {"stage": stage})
        norm_BSG = view.of(ValueNorms).norm_BSG
        drain_BG = norm_BSG[:, 0] / norm_BSG[:, 1:].median(dim=1).values
        self.add_heads("value_drain", drain_BG, where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return over_layers(rows, self.metrics)
