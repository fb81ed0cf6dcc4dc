"""Gate scores: how open the gates are, how that spreads, and which gates never move."""

from typing import ClassVar

import torch

from ..ops.attention_stats import N_BINS, OPEN, SHUT, Gates, Scores, SiteScores, Statistic
from ..record import Row
from .probe import AttentionView, Probe, over_layers

# A gate whose scores deviate by less does not move.
STILL = 0.05


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

    def asks(self, gates: Gates) -> tuple[type[Statistic], ...]:
        """Nothing without a gate."""
        return (Scores,) if gates else ()

    def attention(self, view: AttentionView) -> None:
        """Every gate of one layer."""
        if not view.last.gates or view.is_short:
            return
        for site, scores in view.of(Scores).sites.items():
            where = view.where | {"site": site}
            for metric, sum_BH, at in (
                ("gate_mean", scores.sum_BH, where),
                ("gate_below", scores.shut_BH, where | {"threshold": SHUT}),
                ("gate_above", scores.open_BH, where | {"threshold": OPEN}),
            ):
                self.add_heads(metric, sum_BH / scores.n, at)
            if view.domain_BT is not None:
                mean_BT = scores.mean_BTH.mean(dim=2)
                for i, domain in enumerate(self.domains):
                    selected_BT = (view.domain_BT == i).float()
                    self.add("gate_mean", (mean_BT * selected_BT).sum(1) / selected_BT.sum(1), **where, domain=domain)
            share_BN = scores.histogram_BN / scores.histogram_BN.sum(dim=1, keepdim=True)
            self.add_bins("gate_histogram", share_BN[:, :N_BINS], where)
            self._constancy(scores, where)

    def summaries(self, rows: list[Row]) -> list[Row]:
        """Means over layers."""
        return over_layers(rows, [metric for metric in self.metrics if metric != "gate_histogram"])

    def _constancy(self, scores: SiteScores, where: dict[str, object]) -> None:
        """Sparsity of the scores' sizes, and whether a head's gate stays where it is."""
        root = scores.n**0.5
        # 0/0 of one score alone, and of scores that are all 0, is not a number and makes no row.
        hoyer_BH = (
            (root - scores.size_BH / scores.square_BH.sqrt()) / (root - 1)
            if scores.n > 1
            else scores.sum_BH * torch.nan
        )
        self.add_heads("gate_hoyer", hoyer_BH.masked_fill(~hoyer_BH.isfinite(), torch.nan), where)
        mean_BH = scores.size_BH / scores.n
        deviation_BH = (scores.square_BH / scores.n - mean_BH.square()).clamp(min=0).sqrt()
        is_still_BH = deviation_BH < STILL
        self.add("gate_dead", (is_still_BH & (mean_BH < SHUT)).float().mean(dim=1), **where, threshold=SHUT)
        self.add("gate_stuck_open", (is_still_BH & (mean_BH > OPEN)).float().mean(dim=1), **where, threshold=OPEN)
