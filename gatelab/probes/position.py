"""Where attention goes along the sequence: by distance, by the key's position, and the first token's share as it grows."""

from typing import ClassVar

import torch

from ..ops.attention_stats import FirstKey, Places, octave
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
            for n in range(mass_BN.shape[1]):
                self.add(metric, mass_BN[:, n], **where, bin=n)
        # The query's position in its document.
        counted_BT = view.counted_BT(self.config.skip_queries)
        position_BT = torch.arange(view.n_queries, device=counted_BT.device) - first.first_BT
        octave_BT = octave(position_BT).masked_fill(~counted_BT, -1)
        mass_BT = first.mass_BHT.mean(dim=1)
        for n in range(int(octave_BT.max()) + 1):
            mass_B = mass_BT.masked_fill(octave_BT != n, torch.nan).nanmean(dim=1)
            self.add("first_mass_by_query", mass_B, **where, bin=n)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return [row for metric in self.metrics for row in over_layers(rows, metric)]
