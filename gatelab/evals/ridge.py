"""Ridge regression by normal equations that texts are streamed into, in float64: memory O(F²), whatever the text's length.

Notable: the same X'X serves all heads of a layer, sets of features and penalties; and what a fit's squared error is on other
documents is told by their equations, so a penalty is chosen without a second pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# What a fit reads -> which of the features (state x_ND, ln of how many other keys are seen, 1), besides the last.
READS = {
    "constant": slice(0, 0),
    "position": slice(-2, -1),
    "token": slice(0, -2),
    "token+position": slice(0, -1),
}
# Of features of variance 1, so that 1 halves the slope of a feature that is alone.
PENALTIES = tuple(10.0**e for e in range(-6, 2))


def features(x_TD: Tensor, n_others_T: Tensor) -> Tensor:
    """What fits read, [..., T, D + 2] in float64. Of even logits the LSE of the others is the ln of their number."""
    position_T1 = n_others_T.double().clamp(min=1).log()[:, None].expand(*x_TD.shape[:-1], 1)
    return torch.cat([x_TD.double(), position_T1, torch.ones_like(position_T1)], dim=-1)


class Equations:
    """Sums over the queries seen: normal equations of F features, the last of them 1, and H heads' logits y."""

    def __init__(self) -> None:
        self.n, self.xx_FF, self.xy_FH, self.yy_H, self.score_H = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, x_NF: Tensor, y_NH: Tensor) -> None:
        """Take in some queries."""
        self.n += len(x_NF)
        self.xx_FF = self.xx_FF + x_NF.T @ x_NF
        self.xy_FH = self.xy_FH + x_NF.T @ y_NH
        self.yy_H = self.yy_H + y_NH.square().sum(dim=0)
        self.score_H = self.score_H + y_NH.sigmoid().sum(dim=0)

    def __add__(self, other: "Equations") -> "Equations":
        out = Equations()
        for name, value in vars(self).items():
            setattr(out, name, value + getattr(other, name))
        return out

    def ridge(self, columns: slice, penalties: Sequence[float]) -> Tensor:
        """The weights [P, F, H] at each penalty of these features, of variance 1; the constant is not penalised."""
        mean_F, mean_H = self.xx_FF[-1] / self.n, self.xy_FH[-1] / self.n
        variance_F = self.xx_FF.diagonal() / self.n - mean_F.square()
        # A feature that is the same at all queries explains nothing, and its rounding errors would.
        is_flat_F = variance_F <= 1e-12 * self.xx_FF.diagonal() / self.n
        scale_C = torch.where(is_flat_F, torch.inf, variance_F.clamp(min=0).sqrt())[columns]
        xx_CC = (self.xx_FF / self.n - mean_F[:, None] * mean_F)[columns, columns] / scale_C / scale_C[:, None]
        xy_CH = (self.xy_FH / self.n - mean_F[:, None] * mean_H)[columns] / scale_C[:, None]
        level_C, basis_CC = torch.linalg.eigh(xx_CC)
        penalty_P11 = torch.tensor(penalties, dtype=torch.float64, device=mean_F.device)[:, None, None]
        slope_PCH = basis_CC @ ((basis_CC.T @ xy_CH) / (level_C.clamp(min=0)[:, None] + penalty_P11))
        weight_PFH = torch.zeros(len(penalties), *self.xy_FH.shape, dtype=torch.float64, device=mean_F.device)
        weight_PFH[:, columns] = slope_PCH / scale_C[:, None]
        weight_PFH[:, -1] = mean_H - torch.einsum("f,pfh->ph", mean_F[:-1], weight_PFH[:, :-1])
        return weight_PFH

    def squared_error(self, weight_PFH: Tensor) -> Tensor:
        """Σ (y − x·w)² of each penalty and head, [P, H]."""
        return self.yy_H + (weight_PFH * (self.xx_FF @ weight_PFH - 2 * self.xy_FH)).sum(dim=1)


def chosen(
    fitted: Equations, held_back: Equations, penalties: Sequence[float]
) -> tuple[Equations, dict[str, Tensor], dict[str, Tensor]]:
    """All equations; by what is read the weights [F, H] fitted to them, and the penalties [H] that erred least on those held
    back when fitted to the others."""
    both, weight_FH, penalty_H = fitted + held_back, {}, {}
    for reads, columns in READS.items():
        best_H = held_back.squared_error(fitted.ridge(columns, penalties)).argmin(dim=0)
        weight_PFH = both.ridge(columns, penalties)
        weight_FH[reads] = weight_PFH[best_H, :, torch.arange(len(best_H), device=best_H.device)].T
        penalty_H[reads] = torch.tensor(penalties, dtype=torch.float64)[best_H.cpu()]
    return both, weight_FH, penalty_H


class Errors:
    """Squared errors of a layer's fits over test documents, on logits and on scores."""

    def __init__(self, trained: Equations, weight_FH: dict[str, Tensor], penalty_H: dict[str, Tensor]):
        self.weight_FH, self.penalty_H, self.n = weight_FH, penalty_H, 0
        # The best constant of scores is their mean, not the sigmoid of the mean logit.
        self.mean_H = {"logit": trained.xy_FH[-1] / trained.n, "score": trained.score_H / trained.n}
        self.error_H: dict[tuple[str, str], Any] = {(r, s): 0.0 for r in READS for s in self.mean_H}
        self.sum_H: dict[str, Any] = dict.fromkeys(self.mean_H, 0.0)
        self.square_H: dict[str, Any] = dict.fromkeys(self.mean_H, 0.0)

    def add(self, x_NF: Tensor, y_NH: Tensor) -> None:
        """Take in some queries."""
        self.n += len(x_NF)
        true_NH = {"logit": y_NH, "score": y_NH.sigmoid()}
        for stage, mean_H in self.mean_H.items():
            # About a mean that is near, so that the variance is no difference of large numbers.
            self.sum_H[stage] = self.sum_H[stage] + (true_NH[stage] - mean_H).sum(dim=0)
            self.square_H[stage] = self.square_H[stage] + (true_NH[stage] - mean_H).square().sum(dim=0)
        for reads, weight_FH in self.weight_FH.items():
            logit_NH = x_NF @ weight_FH
            for stage, fit_NH in (("logit", logit_NH), ("score", logit_NH.sigmoid())):
                error_NH = true_NH[stage] - (self.mean_H[stage] if reads == "constant" else fit_NH)
                self.error_H[reads, stage] = self.error_H[reads, stage] + error_NH.square().sum(dim=0)

    @property
    def mean_score_H(self) -> Tensor:
        """The mean score of the queries seen."""
        return self.mean_H["score"] + self.sum_H["score"] / self.n

    def r2_H(self) -> dict[tuple[str, str], Tensor]:
        """By (what is read, `logit` or `score`): 1 − Σ error² / Σ (y − mean y)² of the queries seen; not-a-number where y is
        the same at all."""
        out = {}
        for (reads, stage), error_H in self.error_H.items():
            total_H = self.square_H[stage] - self.sum_H[stage].square() / self.n
            out[reads, stage] = torch.where(total_H > 0, 1 - error_H / total_H, torch.nan)
        return out
