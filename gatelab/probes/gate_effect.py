"""What the gate on the attention output does: how much of the output it lets through, how much of the sink.

Notable: openness weighs the scores by the energy of what they gate, so that it compares gates of any granularity,
activation and form. Without a gate, or of a family whose gate is not known, there are no rows. Both measures are this
laboratory's own.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ..ops.attention_stats import Effect, FirstKey, Gates, Scores, Statistic
from ..record import Row
from .probe import AttentionView, Probe, mean_of, over_layers


class GateEffect(Probe):
    """The gate at the site `sdpa`, by head, over the queries of the probe `sinks`.

    A gate on the log-sum-exp is left out: what it was given is not all that it reads. So is the openness of an elementwise
    gate behind an output map.
    """

    name = "gate_effect"
    metrics: ClassVar = {"gate_openness": "share", "effective_sink": "share"}
    statistics: ClassVar = (FirstKey, Effect, Scores)

    def asks(self, gates: Gates) -> tuple[type[Statistic], ...]:
        """Nothing without a gate that can be read."""
        return self.statistics if _is_readable(gates) else ()

    def attention(self, view: AttentionView) -> None:
        """One layer: per head, and the layer's mean over heads."""
        if not _is_readable(view.last.gates) or view.is_short:
            return
        counted_BT = view.counted_BT(self.config.skip_queries)
        where = view.where | {"site": "sdpa"}
        if view.last.gates["sdpa"][0].form == "mul":
            size_BTH = view.of(Scores).sites["sdpa"].mean_size_BTH
            sink_BHT = view.of(FirstKey).mass_BHT * size_BTH.transpose(1, 2)
            self.add_heads("effective_sink", mean_of(sink_BHT, counted_BT), where | {"length": view.n_queries})
        open_BHT = view.of(Effect).openness_BHT
        if open_BHT is None:
            return
        self.add_heads("gate_openness", _mean(open_BHT, counted_BT), where)
        if view.domain_BT is not None:
            for i, domain in enumerate(self.domains):
                of_domain_BH = _mean(open_BHT, counted_BT & (view.domain_BT == i))
                self.add("gate_openness", of_domain_BH.nanmean(dim=1), **where, domain=domain)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return over_layers(rows, self.metrics)


def _is_readable(gates: Gates) -> bool:
    return "sdpa" in gates and gates["sdpa"][0].source != "lse"


def _mean(value_BHT: Tensor, selected_BT: Tensor) -> Tensor:
    """Mean over the selected queries whose output is not 0."""
    return value_BHT.masked_fill(~selected_BT[:, None], torch.nan).nanmean(dim=-1)
