"""The shape of attention: entropy, the number of keys in focus, the largest logit.

Entropy as followed in training by arXiv 2303.06296 (entropy collapse), the largest logit by arXiv 2507.20534 (QK-Clip).
"""

from typing import ClassVar

import torch

from ..ops.attention_stats import FirstKey, LargestLogit, Spread
from ..record import Row
from .probe import AttentionView, Probe, over_layers


class Shape(Probe):
    """Attention of any kind, by head. Means are over the queries of the probe `sinks` that see more than one key."""

    name = "shape"
    metrics: ClassVar = {
        "attention_entropy": "nats",
        "attention_entropy_relative": "share",
        "attention_focus": "count",
        "max_logit": "1",
    }
    statistics: ClassVar = (FirstKey, Spread, LargestLogit)
    takes_layers = True

    def attention(self, view: AttentionView) -> None:
        """One layer: per head, and the layer's mean over heads, of logits the largest."""
        if view.is_short:
            return
        spread, n_seen_BT = view.of(Spread), view.of(FirstKey).n_seen_BT
        counted_BT = view.counted_BT(self.config.skip_queries) & (n_seen_BT > 1)
        where = view.where | {"length": view.n_queries}
        relative_BHT = spread.entropy_BHT / n_seen_BT.clamp(min=2).log()[:, None]
        shape_NBHT = torch.stack([spread.entropy_BHT, relative_BHT, spread.focus_BHT])
        # A query whose weights are all 0 has no shape.
        mean_NBH = shape_NBHT.masked_fill_(~counted_BT[:, None], torch.nan).nanmean(dim=-1)
        for metric, mean_BH in zip(
            ("attention_entropy", "attention_entropy_relative", "attention_focus"), mean_NBH, strict=True
        ):
            self.add_heads(metric, mean_BH, where)
        self.add_heads("max_logit", view.of(LargestLogit).largest_BH, where, reduce="max")

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers; the largest logit of any layer."""
        means = over_layers(rows, [metric for metric in self.metrics if metric != "max_logit"])
        return means + over_layers(rows, ["max_logit"], "max")
