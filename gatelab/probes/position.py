"""Where attention goes along the sequence: by distance, by the key's position, and the first token's share as it grows."""

from typing import ClassVar

import torch

from ..ops.attention_stats import FirstKey, Places, by_octave
from ..record import Row
from .probe import AttentionView, Probe, over_layers


class Position(Probe):
    """Self-attention in octaves: bin n holds distances, or positions, from 2ⁿ − 1 to 2ⁿ⁺¹ − 2. By layer, mean over heads;
    the mean distance by head too."""

    name = "position"
    metrics: ClassVar = {
        "attention_distance": "tokens",
        "distance_mass": "share",
        "distance_mass_uniform": "share",
        "position_mass": "share",
        "position_mass_uniform": "share",
        "first_mass_by_query": "share",
    }
    statistics: ClassVar = (FirstKey, Places)
    takes_layers = True

    def attention(self, view: AttentionView) -> None:
        """One layer."""
        if view.is_short or view.stack == "cross":
            return
        places, first = view.of(Places), view.of(FirstKey)
        where = view.where | {"length": view.n_queries}
        self.add_heads("attention_distance", places.mean_distance_BH, where)
        for metric, mass_BN in (
            ("distance_mass", places.distance_BHN.mean(dim=1)),
            ("distance_mass_uniform", places.distance_uniform_BN),
            ("position_mass", places.position_BHN.mean(dim=1)),
            ("position_mass_uniform", places.position_uniform_BN),
        ):
            self.add_bins(metric, mass_BN, where)
        counted_BT = view.counted_BT(self.config.skip_queries)
        mass_BT = first.mass_BHT.mean(dim=1).masked_fill(~counted_BT, torch.nan)
        position_BT = None
        if view.has_documents:
            # The query's position in its document.
            position_BT = torch.arange(view.n_queries, device=mass_BT.device) - first.first_BT
        self.add_bins("first_mass_by_query", by_octave(mass_BT, position_BT), where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return over_layers(rows, self.metrics)
