"""The best learning rate of a curve: between the rates that were run, with an interval over seeds.

The vertex of the parabola, over log2 of the rate, through the lowest mean loss and the two beside it. Both of its coefficients
are means over seeds of what each seed has, so their ratio has Fieller's interval (J. R. Stat. Soc. B 16:175, 1954), by Student's
t; it is unbounded where the curve may be flat. A lowest point at an end of the range has no optimum inside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite, log2, nan

import numpy as np

from ..record import Finding
from .best_rate import LOSS
from .paired import Outcome
from .student import critical_t

Losses = Mapping[float, Mapping[int, float]]  # {rate: {seed: held-out loss}}


@dataclass(frozen=True, slots=True)
class Optimum:
    """`lowest` is the rate with the lowest mean of those run; `end` of the range, empty, 'low' or 'high'. `best` is the vertex,
    and `low` to `high` cover it (95%), 0 and inf where they are not bounded; nan where the lowest is at an end, or a rate beside
    it lacks `seeds`, of which there are `n`: an interval takes two."""

    lowest: float
    end: str
    best: float = nan
    low: float = nan
    high: float = nan
    n: int = 0


def optimum(losses: Losses) -> Optimum | None:
    """Of the losses at three rates or more; None of fewer."""
    rates = sorted(rate for rate, of_seed in losses.items() if of_seed)
    if len(rates) < 3:
        return None
    means = [float(np.mean([*losses[rate].values()])) for rate in rates]
    i = min(range(len(rates)), key=means.__getitem__)
    end = "low" if i == 0 else "high" if i == len(rates) - 1 else ""
    if end:
        return Optimum(rates[i], end)
    beside = rates[i - 1 : i + 2]
    shared = set.intersection(*(set(losses[r]) for r in beside))
    seeds = sorted(s for s in shared if all(isfinite(losses[r][s]) for r in beside))
    y = np.array([[losses[r][s] for s in seeds] for r in beside])
    if not seeds:
        return Optimum(rates[i], "")
    bend, slope, _ = np.polyfit([log2(r / beside[1]) for r in beside], y, 2)
    if not bend.mean() > 1e-12:
        return Optimum(rates[i], "", n=len(seeds))
    low, high = _fieller(slope, 2 * bend)
    return Optimum(
        rates[i], "", *(beside[1] * 2.0**u for u in (-slope.mean() / (2 * bend.mean()), low, high)), len(seeds)
    )


def _fieller(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The u for which the mean over seeds of a + b·u may be zero, at 95%; all where they are no interval."""
    n = len(a)
    if n < 2:
        return -inf, inf
    t2 = critical_t(n - 1, 0.05) ** 2
    (aa, ab), (_, bb) = np.cov(a, b) / n
    square, cross, rest = b.mean() ** 2 - t2 * bb, a.mean() * b.mean() - t2 * ab, a.mean() ** 2 - t2 * aa
    if square <= 0:
        return -inf, inf
    root = max(cross**2 - square * rest, 0.0) ** 0.5
    return float((-cross - root) / square), float((-cross + root) / square)


def seed_losses(outcomes: Iterable[Outcome], findings: Iterable[Finding]) -> dict[tuple[str, str], dict[int, float]]:
    """{(cell, arm): {seed: held-out loss}} of the runs that are done, of the seeds whose findings are told."""
    told: dict[str, set[int]] = {}
    for f in (f for f in findings if f.metric == LOSS):
        told.setdefault(f.cell, set()).update(f.seeds)
    out: dict[tuple[str, str], dict[int, float]] = {}
    for o in outcomes:
        if o.metric == LOSS and o.usable and o.seed in told.get(o.cell, ()):
            out.setdefault((o.cell, o.arm), {})[o.seed] = o.value
    return out
