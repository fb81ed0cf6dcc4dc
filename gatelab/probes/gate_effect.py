"""What the gate on the attention output does: how much of the output it lets through, how much of the sink.

Notable: openness weighs the scores by the energy of what they gate, so that it compares gates of any granularity,
activation and form, and models whose gate is not known (1 without a gate). Both measures are this laboratory's own.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ..config.gate import GateSpec
from ..ops.attention_stats import FirstKey, Output, Statistic
from ..ops.gate_apply import apply_gate, gate_scores
from ..record import Row
from .probe import AttentionView, Gates, Probe, mean_of, over_layers


class GateEffect(Probe):
    """The gate at the site `sdpa`, by head, over the queries of the probe `sinks`.

    A gate on the log-sum-exp is left out: what it was given is not all that it reads. So is the openness of an elementwise
    gate behind an output map.
    """

    name = "gate_effect"
    metrics: ClassVar = {"gate_openness": "share", "effective_sink": "share"}
    statistics: ClassVar = (FirstKey,)

    def asks(self, gates: Gates) -> tuple[type[Statistic], ...]:
        """Nothing without a gate; the output for one that does not treat all of a head's channels alike."""
        if not _is_readable(gates):
            return ()
        return (FirstKey, Output) if _needs_output(gates["sdpa"][0]) else (FirstKey,)

    def attention(self, view: AttentionView) -> None:
        """One layer: per head, and the layer's mean over heads."""
        if not _is_readable(view.gates) or min(view.q_BTHK.shape[1], view.k_BSGK.shape[1]) < 2:
            return
        spec, logits_BTHK = view.gates["sdpa"]
        counted_BT = view.counted_BT(self.config.skip_queries)
        where = view.where | {"site": "sdpa"}
        if spec.form == "mul":
            size_BTH = gate_scores(logits_BTHK, spec).float().abs().mean(dim=-1)
            sink_BHT = view.of(FirstKey).mass_BHT * size_BTH.transpose(1, 2)
            self.add_heads("effective_sink", mean_of(sink_BHT, counted_BT), where | {"length": counted_BT.shape[1]})
        if _needs_output(spec) and view.is_mapped:
            return
        open_BHT = _openness(view, spec, logits_BTHK)
        self.add_heads("gate_openness", _mean(open_BHT, counted_BT), where)
        if view.domain_BT is not None:
            for i, domain in enumerate(self.domains):
                of_domain_BH = _mean(open_BHT, counted_BT & (view.domain_BT == i))
                self.add("gate_openness", of_domain_BH.nanmean(dim=1), **where, domain=domain)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return [row for metric in self.metrics for row in over_layers(rows, metric)]


def _is_readable(gates: Gates) -> bool:
    return "sdpa" in gates and gates["sdpa"][0].source != "lse"


def _needs_output(spec: GateSpec) -> bool:
    return spec.granularity == "elementwise" or spec.form != "mul"


def _openness(view: AttentionView, spec: GateSpec, logits_BTHK: Tensor) -> Tensor:
    """⟨y′, y⟩ / ⟨y, y⟩, [B, H, T]; y′ the gated output of a head."""
    if not _needs_output(spec):
        shape = view.q_BTHK.shape[:3]
        return gate_scores(logits_BTHK, spec).float().squeeze(-1).expand(shape).transpose(1, 2)
    y_BTHK = view.normaliser.finish(view.of(Output).y_BTHK, view.learned or {}, view.heads)
    gated_BTHK = apply_gate(y_BTHK, logits_BTHK.float(), spec)
    return ((gated_BTHK * y_BTHK).sum(-1) / y_BTHK.square().sum(-1)).transpose(1, 2)


def _mean(value_BHT: Tensor, selected_BT: Tensor) -> Tensor:
    """Mean over the selected queries whose output is not 0."""
    return value_BHT.masked_fill(~selected_BT[:, None], torch.nan).nanmean(dim=-1)
