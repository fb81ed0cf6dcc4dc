"""What interventions did to a loss, as values: changes with intervals, dose–response curves, rows, lines for a terminal.

Notable: intervals are over documents, never over tokens, which depend on one another: a bias-corrected and accelerated
bootstrap (BCa; Efron, J. Am. Stat. Assoc. 82:171, 1987), or Student's t below six documents, whose resamples are too few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt

import numpy as np

from ..probes.interventions import Intervention
from ..record import Row

CONFIDENCE = 0.95
# Fewer documents have fewer distinct resamples than a 95% interval needs.
_BOOTSTRAPPED, _RESAMPLES = 6, 9999


@dataclass(frozen=True)
class Change:
    """The mean over documents of the change in loss, in nats a token, at one dose, and its 95% interval (nan of one
    document, and of a loss that is no number); `changes` are the documents' own. `divergence` is the mean KL(untouched ‖
    edited), None if not asked for."""

    dose: float
    mean: float
    low: float
    high: float
    changes: tuple[float, ...]
    divergence: float | None = None


@dataclass(frozen=True)
class Curve:
    """The dose–response curve of an intervention, from dose 0, where nothing is changed, and that of its control."""

    intervention: Intervention
    control: Intervention
    changes: tuple[Change, ...]
    control_changes: tuple[Change, ...]


@dataclass(frozen=True)
class Effects:
    """`loss` is the untouched model's, a mean of documents' means in nats a token."""

    loss: float
    lengths: tuple[int, ...]
    curves: tuple[Curve, ...]

    @property
    def kind_of_interval(self) -> str:
        """How the intervals were made."""
        n = len(self.lengths)
        if n < 2:
            return "no interval from one document"
        kind = "BCa bootstrap" if n >= _BOOTSTRAPPED else "Student's t"
        return f"95% interval over {n} documents, {kind}"

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """`loss_change` with `_low` and `_high`, and `output_divergence`, of every intervention, dose and control."""
        length = self.lengths[0] if len(set(self.lengths)) == 1 else None
        rows = []
        for curve in self.curves:
            word = curve.intervention.at_dose(1).word  # the dose is a coordinate
            for name, changes in ((word, curve.changes), (f"control of {word}", curve.control_changes)):
                for c in changes:
                    values = {"loss_change": c.mean, "loss_change_low": c.low, "loss_change_high": c.high}
                    if c.divergence is not None:
                        values["output_divergence"] = c.divergence
                    rows += [
                        Row(run, step, "intervene", metric, v, "nats", intervention=name, dose=c.dose, length=length)
                        for metric, v in values.items()
                    ]
        return rows

    def lines(self) -> list[str]:
        """For a terminal: the untouched loss, and a line an intervention and dose."""
        out = [f"untouched: {self.loss:.4f} nats a token; changes with {self.kind_of_interval}"]
        for curve in self.curves:
            out.append(f"{curve.intervention.word}  (control: {curve.control.word})")
            controls = {c.dose: c for c in curve.control_changes}
            for c in curve.changes:
                control = f"   control {_shown(controls[c.dose])}" if c.dose in controls else ""
                out.append(f"  dose {c.dose:g}  {_shown(c)}{control}")
        return out


def interval(changes: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean: see above; nan of fewer than two numbers, or of any that is not finite."""
    changes, n = np.asarray(changes, dtype=float), len(changes)
    if n < 2 or not np.isfinite(changes).all():
        return nan, nan
    if np.ptp(changes) == 0:
        return float(changes[0]), float(changes[0])
    if n < _BOOTSTRAPPED:
        from scipy.special import stdtrit

        half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * changes.std(ddof=1) / sqrt(n)
        return float(changes.mean() - half), float(changes.mean() + half)
    from scipy.stats import bootstrap

    found = bootstrap(
        (changes,), np.mean, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE, method="BCa",
        random_state=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def ratio_interval(sums: Sequence[float], n: Sequence[int]) -> tuple[float, float]:
    """Of Σ sums / Σ n over documents: of the documents' shares in its error, to first order, about it."""
    ratio, mean_n = sum(sums) / sum(n), sum(n) / len(n)
    low, high = interval([(s - ratio * own) / mean_n for s, own in zip(sums, n, strict=True)])
    return ratio + low, ratio + high


def share_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean of scores from 0 to 1 over items: exact (Clopper and Pearson, Biometrika 26, 1934) where each
    is 0 or 1, which all being alike does not shrink to a point; as `interval` otherwise, cut at 0 and 1, beyond which Student's t
    of few may go."""
    if not len(scores) or not set(scores) <= {0, 1}:
        low, high = interval(scores)
        return (max(0.0, low), min(1.0, high)) if isfinite(low) else (low, high)
    from scipy.stats import binomtest

    found = binomtest(int(sum(scores)), len(scores)).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def _shown(change: Change) -> str:
    if not isfinite(change.mean):
        return f"{change.mean} (a pass went to infinity)"
    interval = f" [{change.low:+.4f}, {change.high:+.4f}]" if isfinite(change.low) else ""
    return f"{change.mean:+.4f} nats{interval}"
