"""Gate scores: how open the gates are, how that spreads, and which gates never move."""

from typing import ClassVar

import torch

from ..ops.gate_apply import gate_scores
from ..record import Row
from .probe import AttentionView, Probe, over_layers

N_BINS = 50
# A score below is shut, above open; a gate whose scores deviate by less does not move.
SHUT, OPEN, STILL = 0.1, 0.9, 0.05


class GateScores(Probe):
    """Scores after the activation (and after averaging, when shared), over all tokens, by site.

    `gate_histogram` has 50 bins over [0, 1]; scores outside of it are in no bin, so its shares then sum to less than
    one.
    """

    name = "gate_scores"
    metrics: ClassVar = {
        "gate_mean": "1",
        "gate_below": "share",
        "gate_above": "share",
        "gate_histogram": "share",
        "gate_hoyer": "1",
        "gate_dead": "share",
        "gate_stuck_open": "share",
    }

    def attention(self, view: AttentionView) -> None:
        """Every gate of one layer."""
        for site, (spec, logits_BTHK) in view.gates.items():
            scores_BTHK = gate_scores(logits_BTHK, spec).float()
            where = view.where | {"site": site}
            measures = {
                ("gate_mean", None): scores_BTHK,
                ("gate_below", SHUT): (scores_BTHK < SHUT).float(),
                ("gate_above", OPEN): (scores_BTHK > OPEN).float(),
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
            self._constancy(scores_BTHK.abs().transpose(1, 2).flatten(2), where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return [r for metric in self.metrics if metric != "gate_histogram" for r in over_layers(rows, metric)]

    def _constancy(self, size_BHN: torch.Tensor, where: dict[str, object]) -> None:
        """Sparsity of the scores' sizes, and whether a head's gate stays where it is."""
        root = size_BHN.shape[2] ** 0.5
        # 0/0 of one score alone, and of scores that are all 0, is not a number and makes no row.
        one_norm_BH, two_norm_BH = size_BHN.sum(dim=2), size_BHN.norm(dim=2)
        hoyer_BH = (root - one_norm_BH / two_norm_BH) / (root - 1)
        self.add_heads("gate_hoyer", hoyer_BH.masked_fill(~hoyer_BH.isfinite(), torch.nan), where)
        deviation_BH, mean_BH = torch.std_mean(size_BHN, dim=2, correction=0)
        is_still_BH = deviation_BH < STILL
        self.add("gate_dead", (is_still_BH & (mean_BH < SHUT)).float().mean(dim=1), **where, threshold=SHUT)
        self.add("gate_stuck_open", (is_still_BH & (mean_BH > OPEN)).float().mean(dim=1), **where, threshold=OPEN)

    def _histogram(self, scores_BTHK: torch.Tensor, where: dict[str, object]) -> None:
        flat_BN = scores_BTHK.flatten(1)
        index_BN = (flat_BN * N_BINS).floor().clamp(max=N_BINS - 1)
        index_BN = torch.where((flat_BN >= 0) & (flat_BN <= 1), index_BN, N_BINS).long()
        counts_BC = torch.zeros(len(flat_BN), N_BINS + 1, device=flat_BN.device)
        counts_BC.scatter_add_(1, index_BN, torch.ones_like(flat_BN))
        for i in range(N_BINS):
            self.add("gate_histogram", counts_BC[:, i] / flat_BN.shape[1], **where, bin=i)
