"""Massive activations in the residual stream (arXiv 2402.17762): how large, where, and between which layers; kurtosis."""

from dataclasses import replace
from typing import ClassVar

from ..record import Row
from .probe import Probe, ResidualView, over_layers


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
        "residual_kurtosis": "1",
    }
    places: ClassVar = {"massive_position": ("key", 1), "massive_channel": ("channel", 1)}

    def residual(self, view: ResidualView) -> None:
        """One block."""
        x_BN = view.x_BTD.float().flatten(1)
        magnitude_BN = x_BN.abs()
        largest_B, index_B = magnitude_BN.max(dim=1)
        where = {"layer": view.layer} | ({} if view.stack is None else {"stack": view.stack})
        self.add("massive_max", largest_B, **where)
        self.add("massive_ratio", largest_B / magnitude_BN.median(dim=1).values, **where)
        n_channels = view.x_BTD.shape[2]
        for metric, place_B in (
            ("massive_position", index_B // n_channels),
            ("massive_channel", index_B % n_channels),
        ):
            self.add_place(metric, place_B.masked_fill(largest_B.isnan(), -1), **where)
        square_BN = (x_BN - x_BN.mean(dim=1, keepdim=True)).square()
        self.add("residual_kurtosis", square_BN.square().mean(dim=1) / square_BN.mean(dim=1).square(), **where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """M-Act, the mean over layers of the maximum; the largest ratio of any layer; where the largest is, and which
        layers have more than half of it; the mean kurtosis."""
        out = over_layers(rows, "massive_max") + over_layers(rows, "massive_ratio", "max")
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
        return out + over_layers(rows, "residual_kurtosis")
