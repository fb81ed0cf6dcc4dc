"""Massive activations in the residual stream (arXiv 2402.17762): how large, where, and between which layers.

And channels that are large at most tokens, kurtosis, and the stream's norm along the sequence.
"""

from dataclasses import replace
from typing import ClassVar

from ..ops.attention_stats import by_octave
from ..record import Row
from .probe import Probe, over_layers
from .residual import ResidualView

# How many times the usual channel's level one must have to be listed as an outlier.
OUTLIER = 6.0


class Massive(Probe):
    """Per block: max |x| over tokens and channels of a sequence, that over the sequence's median |x|, and its place."""

    name = "massive"
    metrics: ClassVar = {
        "massive_max": "1",
        "massive_ratio": "ratio",
        "massive_position": "share",
        "massive_channel": "share",
        "massive_layer": "layer",
        "massive_layer_last": "layer",
        "outlier_channels": "count",
        "residual_kurtosis": "1",
        "residual_norm": "1",
    }
    reads_entries = True
    places: ClassVar = {"massive_position": ("key", 1), "massive_channel": ("channel", 1)}

    def residual(self, view: ResidualView) -> None:
        """One block."""
        where = {"layer": view.layer} | ({} if view.stack is None else {"stack": view.stack})
        self.add("massive_max", view.largest_B, **where)
        self.add("massive_ratio", view.largest_B / view.median_B, **where)
        self.add_place("massive_position", view.position_B, **where)
        self.add_place("massive_channel", view.channel_B, **where)
        self.add("residual_kurtosis", view.kurtosis_B, **where)
        level_BD = view.level_BD
        usual_B1 = level_BD.median(dim=1, keepdim=True).values
        n_outliers_B = (level_BD > OUTLIER * usual_B1).sum(dim=1).float()
        self.add("outlier_channels", n_outliers_B.masked_fill(view.largest_B.isnan(), float("nan")), **where)
        self.add_bins("residual_norm", by_octave(view.norm_BT), where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """M-Act, the mean over layers of the maximum; the largest ratio of any layer; where the largest is, and which
        layers have more than half of it; the mean kurtosis."""
        out = over_layers(rows, ["massive_max"]) + over_layers(rows, ["massive_ratio"], "max")
        for stack in dict.fromkeys(r.stack for r in rows):
            largest = {r.layer: r for r in rows if r.metric == "massive_max" and r.stack == stack}
            if not largest:
                continue
            top = max(largest.values(), key=lambda r: r.value)
            of_top = [r for r in rows if r.metric in self.places and (r.layer, r.stack) == (top.layer, stack)]
            out += [replace(r, layer=None) for r in of_top]
            above = [layer for layer, r in largest.items() if r.value >= top.value / 2]
            for metric, layer in (("massive_layer", min(above)), ("massive_layer_last", max(above))):
                out.append(replace(top, metric=metric, layer=None, value=float(layer), unit=self.metrics[metric]))
        return out + over_layers(rows, ["residual_kurtosis", "outlier_channels"])
