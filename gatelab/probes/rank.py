"""Ranks of the attention matrix, of a sample of its rows (effective rank: Roy and Vetterli, 2007)."""

from typing import ClassVar

import torch
from torch import Tensor

from ..config.run import ProbeConfig
from ..ops.attention_stats import Rank as SampledRank
from ..ops.attention_stats import ranks
from ..record import Row
from .probe import AttentionView, Probe, over_layers


class Rank(Probe):
    """Attention of any kind, by head: 64 rows at most, evenly over the queries, so that neither rank exceeds 64."""

    name = "rank"
    metrics: ClassVar = {"effective_rank": "1", "stable_rank": "1"}
    statistics: ClassVar = (SampledRank,)
    takes_layers = True

    def __init__(self, config: ProbeConfig, domains: tuple[str, ...]):
        super().__init__(config, domains)
        self._grams: list[tuple[dict[str, object], Tensor]] = []

    def attention(self, view: AttentionView) -> None:
        """One layer: the rows' products are kept, and all layers' eigenvalues are found together."""
        if not view.is_short:
            self._grams.append((view.where | {"length": view.n_queries}, view.of(SampledRank).gram_BHRR))

    def finish(self) -> None:
        """Eigenvalues of what was kept."""
        by_size: dict[torch.Size, list[tuple[dict[str, object], Tensor]]] = {}
        for where, gram_BHRR in self._grams:
            by_size.setdefault(gram_BHRR.shape, []).append((where, gram_BHRR))
        self._grams.clear()
        for found in by_size.values():
            effective_NBH, stable_NBH = ranks(torch.stack([gram_BHRR for _, gram_BHRR in found]))
            for (where, _), effective_BH, stable_BH in zip(found, effective_NBH, stable_NBH, strict=True):
                self.add_heads("effective_rank", effective_BH, where)
                self.add_heads("stable_rank", stable_BH, where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return over_layers(rows, self.metrics)
