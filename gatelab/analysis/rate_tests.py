"""Which learning rates an arm bears, which is its best, and whether a gate's effect grows with size, of ladders in an archive.

A run is **lost** at a rate where it diverges, or ends with a held-out loss above that of its own untrained weights. A seed bears
the rates below the first at which it is lost; an arm those below the first at which any seed is. A seed's best rate is the vertex
of the parabola through its lowest loss and the two beside it, over log2 of the rate: a rate between those that were run. A seed
whose lowest loss is at an end of the ladder, or beside a run that is lost, has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log2, nan
from pathlib import Path
from statistics import fmean

import numpy as np

from ..store import StoreError
from .archived import Kept, kept
from .best_rate import LOSS, at_best, settings
from .claim_rows import numbers
from .claim_tests import Measured, Test, mean_over, number, places
from .lost import is_lost
from .paired import Outcome
from .shares import exact_interval
from .student import estimate, interval


@dataclass(frozen=True, slots=True)
class Ladder:
    """One arm over learning rates, in ascending order: `losses` {rate: {seed: held-out loss at the end}}, infinite where the run is
    lost, of the seeds that have a finished run at every rate."""

    losses: Mapping[float, Mapping[int, float]]

    @property
    def seeds(self) -> list[int]:
        return list(next(iter(self.losses.values())))

    def lost(self, rate: float) -> tuple[int, float, float]:
        """How many runs are lost at the rate, and Clopper and Pearson's interval of their share."""
        k = sum(not isfinite(x) for x in self.losses[rate].values())
        return k, *exact_interval(k, len(self.seeds))

    def borne(self, seed: int | None = None) -> float:
        """The largest rate up to which the seed, or every seed, is not lost; 0 where the least is too much."""
        largest = 0.0
        for rate, of_seed in self.losses.items():
            if not all(isfinite(of_seed[s]) for s in (self.seeds if seed is None else [seed])):
                return largest
            largest = rate
        return largest

    def best(self, seed: int) -> float:
        """log2 of the seed's best rate; nan where it has none."""
        rates = list(self.losses)
        heights = [self.losses[rate][seed] for rate in rates]
        i = min(range(len(rates)), key=heights.__getitem__)
        if not 0 < i < len(rates) - 1:
            return nan
        return vertex([log2(r) for r in rates[i - 1 : i + 2]], heights[i - 1 : i + 2])


def vertex(x: list[float], y: list[float]) -> float:
    """Where the parabola through three points, the middle one the lowest, is lowest; nan where one is infinite or all are level."""
    if not all(map(isfinite, y)):
        return nan
    bend, slope, _ = np.polyfit(np.array(x) - x[1], y, 2)
    return x[1] - slope / (2 * bend) if bend > 1e-12 else nan


def ladder(runs: list[Kept], arm: str) -> Ladder:
    """Of an archive whose cells differ in the learning rate.

    Raises:
        StoreError: no run of the arm, a finished one without the loss of its untrained weights, or two of one rate and seed.
    """
    by_rate: dict[float, dict[int, float]] = {}
    for run in (r for r in runs if r.arm == arm and r.config):
        of_seed = by_rate.setdefault(run.config["optim"]["lr"], {})
        if run.seed in of_seed:
            raise StoreError(
                f"{arm}, seed {run.seed} has two runs at one learning rate; the cells must differ in it alone"
            )
        if run.status in ("done", "diverged"):
            of_seed[run.seed] = _end(run)
    seeds = sorted(set.intersection(*map(set, by_rate.values()))) if by_rate else []
    if not seeds:
        raise StoreError(
            f"{arm} has no seed with a finished run at every learning rate; `gatelab run` finishes a study"
        )
    return Ladder({rate: {s: by_rate[rate][s] for s in seeds} for rate in sorted(by_rate)})


def _end(run: Kept) -> float:
    looks = run.looks.get((LOSS,), {})
    if 0 not in looks:
        raise StoreError(
            f"{run.cell}, {run.arm}, seed {run.seed}: has no {LOSS} at step 0, which says whether a run is lost; keep those rows in"
            " the archive"
        )
    end = looks[max(looks)]
    return inf if is_lost(run.status, looks[0], end) else end


def at_own_rate(arm: str, than: str, cells: Sequence[str], unit: str = "nats") -> Test:
    """Arm minus `than` in the held-out loss, paired by seed, each in the one of the cells, which differ in the learning rate, where
    its mean is lowest; Student's t, which does not know that the cells were chosen."""

    def test(folder: Path) -> Measured:
        runs = {a: {c: s for c, s in numbers(folder, LOSS, a).items() if c in cells} for a in (arm, than)}
        if missing := [f"{a} in {c}" for a, of in runs.items() for c in cells if c not in of]:
            raise StoreError(
                f"{folder}: its archive has no finished run of {missing[0]}; the claims of `--claims` read it"
            )
        best = {a: min(of, key=lambda c: fmean(of[c].values())) for a, of in runs.items()}
        one, other = (runs[a][best[a]] for a in (arm, than))
        m = mean_over({"": {s: one[s] - other[s] for s in one if s in other}}, unit)
        return replace(m, over=f"{m.over}; best in {best[arm]}, and without in {best[than]}")

    return test


def bears_more(arm: str, than: str) -> Test:
    """Of the seeds, the share that bears a larger rate with the arm than with `than`; Clopper and Pearson's interval."""

    def test(folder: Path) -> Measured:
        runs = kept(folder)
        one, other = ladder(runs, arm), ladder(runs, than)
        if one.losses.keys() != other.losses.keys():
            raise StoreError(
                f"{arm} and {than} were not run at the same learning rates; `gatelab run` finishes a study"
            )
        largest = max(one.losses)
        # Of a seed that bears the largest rate with both the ladder is too short to tell.
        seeds = [s for s in one.seeds if s in other.seeds and not one.borne(s) == other.borne(s) == largest]
        if not seeds:
            return Measured(nan, nan, nan, f"every seed bears the largest rate with both; {_borne(one)}")
        k = sum(one.borne(s) > other.borne(s) for s in seeds)
        less = sum(one.borne(s) < other.borne(s) for s in seeds)
        over = f"{k} of {len(seeds)} seeds, a smaller one in {less}; {_borne(one)}"
        return Measured(k / len(seeds), *exact_interval(k, len(seeds)), over)

    return test


def borne(arm: str) -> Test:
    """The largest rate at which no run of the arm is lost, nor at any below it, and what is lost at the next."""

    def test(folder: Path) -> Measured:
        return Measured(nan, nan, nan, _borne(ladder(kept(folder), arm)))

    return test


def _borne(found: Ladder) -> str:
    n, largest = len(found.seeds), found.borne()
    said = (
        f"{largest:g} is borne by all {n} (lost: 0 to {found.lost(largest)[2]:.2f})"
        if largest
        else "no rate is borne by all"
    )
    beyond = min((rate for rate in found.losses if rate > largest), default=None)
    if beyond is None:
        return f"{said}, the largest that was run"
    k, low, high = found.lost(beyond)
    return f"{said}, at {beyond:g} {k} of {n} are lost [{low:.2f}, {high:.2f}]"


def best_rate(arm: str, than: str = "") -> Test:
    """log2 of a seed's best rate, arm minus `than`, in doublings; Student's t over the seeds that have both. Without `than` the
    geometric mean of the arm's best rates."""

    def test(folder: Path) -> Measured:
        runs = kept(folder)
        one = ladder(runs, arm)
        best = {s: one.best(s) for s in one.seeds}
        if than:
            other = ladder(runs, than)
            best = {s: best[s] - other.best(s) for s in best if s in other.seeds}
        found = [x for x in best.values() if isfinite(x)]
        if len(found) < 2:
            return Measured(nan, nan, nan, f"{len(found)} of {len(best)} seeds have a best rate inside the ladder")
        e = estimate(found)
        low, high = interval(e, 0.95)
        over = f"{e.n} of {len(best)} seeds"
        return Measured(e.mean, low, high, over, "doublings") if than else Measured(2**e.mean, 2**low, 2**high, over)

    return test


def slope_over_width(arm: str, than: str, unit: str = "nats a doubling") -> Test:
    """How much arm minus `than` changes in held-out loss with every doubling of the width: least squares over log2 of the width,
    seed by seed, Student's t over seeds. At every width each arm stands at its own best rate, by the mean over seeds."""

    def test(folder: Path) -> Measured:
        at = _by_width(kept(folder), arm, than)
        seeds = sorted(set.intersection(*map(set, at.values())))
        if len(at) < 3 or len(seeds) < 2:
            return Measured(nan, nan, nan, f"{len(at)} widths and {len(seeds)} seeds, too few for a slope", unit)
        x = [log2(width) for width in at]
        e = estimate([float(np.polyfit(x, [at[width][s] for width in at], 1)[0]) for s in seeds])
        return Measured(e.mean, *interval(e, 0.95), f"{len(at)} widths, {len(seeds)} seeds; {_ends(at)}", unit)

    return test


def at_smallest(arm: str, than: str, unit: str = "nats") -> Test:
    """Arm minus `than` in held-out loss at the smallest width, each at its own best rate."""

    def test(folder: Path) -> Measured:
        at = _by_width(kept(folder), arm, than)
        e = estimate([*at[min(at)].values()])
        return Measured(e.mean, *interval(e, 0.95), f"{e.n} seeds", unit)

    return test


def _by_width(runs: list[Kept], arm: str, than: str) -> dict[int, dict[int, float]]:
    """{width: {seed: arm minus than}}, in ascending order, of the widths with two pairs or more."""
    configs = {r.cell: r.config for r in runs if r.config}
    width = {cell: config["model"]["d_model"] for cell, config in configs.items()}
    found = settings(list(configs), {c: (str(width[c]), config["optim"]["lr"]) for c, config in configs.items()})
    outcomes = [Outcome(r.cell, r.arm, r.seed, LOSS, r.last(LOSS), r.status) for r in runs if r.arm in (arm, than)]
    losses: dict[tuple[str, str], dict[int, float]] = {}
    best = at_best(outcomes, found, baseline=than)
    for o in best.outcomes:
        if o.metric == LOSS and o.usable:
            losses.setdefault((o.cell, o.arm), {})[o.seed] = o.value
    out = {}
    for place in best.settings:
        one, other = (losses.get((place.name, a), {}) for a in (arm, than))
        out[width[next(iter(place.cells.values()))]] = {s: one[s] - other[s] for s in one if s in other}
    if all(len(pairs) < 2 for pairs in out.values()):
        raise StoreError(f"no width has two finished pairs of {arm} and {than}; `gatelab run` finishes a study")
    return {w: out[w] for w in sorted(out) if len(out[w]) > 1}


def _ends(at: Mapping[int, Mapping[int, float]]) -> str:
    said = []
    for width in (min(at), max(at)):
        e = estimate([*at[width].values()])
        said.append(f"{number(e.mean, places(e.error))} at {width}")
    return " and ".join(said)
