"""Massive activations in the residual stream (arXiv 2402.17762): the largest magnitude, and against the median."""

from typing import ClassVar

from ..record import Row
from .probe import Probe, ResidualView, over_layers


class Massive(Probe):
    """Per block: max |x| over tokens and channels of a sequence, and that over the sequence's median |x|."""

    name = "massive"
    metrics: ClassVar = {"massive_max": "1", "massive_ratio": "ratio"}

    def residual(self, view: ResidualView) -> None:
        """One block."""
        magnitude_BN = view.x_BTD.float().abs().flatten(1)
        largest_B = magnitude_BN.max(dim=1).values
        where = {"layer": view.layer} | ({} if view.stack is None else {"stack": view.stack})
        self.add("massive_max", largest_B, **where)
        self.add("massive_ratio", largest_B / magnitude_BN.median(dim=1).values, **where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """M-Act, the mean over layers of the maximum; the largest ratio of any layer."""
        return over_layers(rows, "massive_max") + over_layers(rows, "massive_ratio", "max")
