"""Gate scores: how open the gates are, and how that spreads."""

from typing import ClassVar

import torch

from ..ops.gate_apply import gate_scores
from ..record import Row
from .probe import AttentionView, Probe, over_layers

N_BINS = 50


class GateScores(Probe):
    """Scores after the activation (and after averaging, when shared), over all tokens, by site.

    `gate_histogram` has 50 bins over [0, 1]; scores outside of it are in no bin, so its shares then sum to less than
    one.
    """

    name = "gate_scores"
    metrics: ClassVar = {"gate_mean": "1", "gate_below": "share", "gate_above": "share", "gate_histogram": "share"}

    def attention(self, view: AttentionView) -> None:
        """Every gate of one layer."""
        for site, (spec, logits_BTHK) in view.gates.items():
            scores_BTHK = gate_scores(logits_BTHK, spec).float()
            where = view.where | {"site": site}
            measures = {
                ("gate_mean", None): scores_BTHK,
                ("gate_below", 0.1): (scores_BTHK < 0.1).float(),
                ("gate_above", 0.9): (scores_BTHK > 0.9).float(),
            }
            for (metric, threshold), value_BTHK in measures.items():
                at = where if threshold is None else where | {"threshold": threshold}
                self.add(metric, value_BTHK.mean(dim=(1, 2, 3)), **at)
                for head in range(value_BTHK.shape[2]):
                    self.add(metric, value_BTHK[:, :, head].mean(dim=(1, 2)), **at, head=head)
            if view.domain_BT is not None:
                mean_BT = scores_BTHK.mean(dim=(2, 3))
                for i, domain in enumerate(self.domains):
                    selected_BT = (view.domain_BT == i).float()
                    self.add("gate_mean", (mean_BT * selected_BT).sum(1) / selected_BT.sum(1), **where, domain=domain)
            self._histogram(scores_BTHK, where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return [r for metric in ("gate_mean", "gate_below", "gate_above") for r in over_layers(rows, metric)]

    def _histogram(self, scores_BTHK: torch.Tensor, where: dict[str, object]) -> None:
        flat_BN = scores_BTHK.flatten(1)
        index_BN = (flat_BN * N_BINS).floor().clamp(max=N_BINS - 1)
        index_BN = torch.where((flat_BN >= 0) & (flat_BN <= 1), index_BN, N_BINS).long()
        counts_BC = torch.zeros(len(flat_BN), N_BINS + 1, device=flat_BN.device)
        counts_BC.scatter_add_(1, index_BN, torch.ones_like(flat_BN))
        for i in range(N_BINS):
            self.add("gate_histogram", counts_BC[:, i] / flat_BN.shape[1], **where, bin=i)
