"""Ranks of the attention matrix, of a sample of its rows (effective rank: Roy and Vetterli, 2007)."""

from typing import ClassVar

from ..ops.attention_stats import Rank as SampledRank
from ..record import Row
from .probe import AttentionView, Probe, over_layers


class Rank(Probe):
    """Attention of any kind, by head: 64 rows at most, evenly over the queries, so that neither rank exceeds 64."""

    name = "rank"
    metrics: ClassVar = {"effective_rank": "1", "stable_rank": "1"}
    statistics: ClassVar = (SampledRank,)

    def attention(self, view: AttentionView) -> None:
        """One layer: per head, and the layer's mean over heads."""
        if view.is_short:
            return
        where = view.where | {"length": view.n_queries}
        self.add_heads("effective_rank", view.of(SampledRank).effective_BH, where)
        self.add_heads("stable_rank", view.of(SampledRank).stable_BH, where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return [row for metric in self.metrics for row in over_layers(rows, metric)]
