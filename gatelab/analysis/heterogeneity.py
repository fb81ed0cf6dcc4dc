"""Effects over cells: the pooled effect, how much it differs between cells, and on what (size, depth, rate, task) it depends.

The differences of the pairs are responses of a linear model: a block a seed, and the factors in which cells differ. A
factor is tested against what the cells do beyond all factors where three degrees of freedom are left for that, because
cells that differ for other reasons would otherwise make any factor significant; else against seeds, which then speaks of
these very cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, log2, nan, sqrt
from typing import Any

import numpy as np

from .anomalies.evidence import Evidence
from .both_ways import over_cells_and_seeds
from .student import interval, p_two_sided, q_values

LEFT_OVER = 3  # degrees of freedom of cells beyond the factors that a test against them needs


@dataclass(frozen=True, slots=True)
class Pooled:
    """The mean over cells of an arm's effect, each cell counting once; the interval and `p` are of that mean when other
    cells of the kind, or other seeds, are drawn (t over cells, or over the seeds that they share: the wider). `between` is
    the cells' own standard deviation (0 at least), `within` that of a pair, `p_between` of the F test that all cells have
    one effect, F of `df` and `df_error` degrees of freedom."""

    arm: str
    reading: str
    unit: str
    n_cells: int
    n_pairs: int
    effect: float
    low: float
    high: float
    p: float
    between: float
    within: float
    p_between: float
    f: float = nan
    df: int = 0
    df_error: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """The fitted effect at one level of a factor, the other factors and seeds at their average."""

    value: str
    n_cells: int
    effect: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Dependence:
    """Whether an arm's effect depends on a factor: the partial F test. `slope` is the change of the effect a doubling of a
    factor that is a positive number (nan of other factors), with its 95% interval; `against` is cells or seeds."""

    arm: str
    reading: str
    unit: str
    factor: str
    levels: list[Level]
    slope: float
    slope_low: float
    slope_high: float
    f: float
    df: float
    df_error: float
    p: float
    against: str
    q: float = nan
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The factor in a few words, where many keys differ alike."""
        keys = self.factor.split(" = ")
        return " = ".join(keys) if len(keys) < 4 else f"{keys[0]} = {keys[1]} = {len(keys) - 2} more"

    @property
    def flips(self) -> bool:
        """Whether the intervals of two levels lie on either side of zero."""
        return any(x.high < 0 for x in self.levels) and any(x.low > 0 for x in self.levels)


Groups = Mapping[str, Mapping[int, float]]  # {cell: {seed: difference}}


def pooled(evidence: Evidence, reading: str, arm: str, confidence: float = 0.95) -> Pooled | None:
    """None of fewer than two cells with two pairs, or where half of the cells lack the reading."""
    by_cell = differences(evidence, reading, arm)
    if not by_cell:
        return None
    groups = [np.array(list(d.values())) for d in by_cell.values()]
    e = over_cells_and_seeds(by_cell)
    low, high = interval(e, confidence) if e.sigma > 0 else (nan, nan)
    n = np.array([len(d) for d in groups])
    df_within = int(n.sum() - len(n))
    within = sum(float(((d - d.mean()) ** 2).sum()) for d in groups) / df_within
    grand = float(np.concatenate(groups).mean())
    between = sum(len(d) * (d.mean() - grand) ** 2 for d in groups) / (len(n) - 1)
    # The pairs a cell that make the mean squares of unequal cells comparable.
    pairs_a_cell = (n.sum() - (n**2).sum() / n.sum()) / (len(n) - 1)
    f = between / within if within > 0 else nan
    return Pooled(
        arm, reading, evidence.readings[reading].unit, len(n), int(n.sum()), e.mean, low, high,
        p_two_sided(e) if e.sigma > 0 else nan, sqrt(max(0.0, (between - within) / pairs_a_cell)), sqrt(within),
        _p_f(f, len(n) - 1, df_within) if within > 0 else nan, f, len(n) - 1, df_within,
    )  # fmt: skip


def dependences(
    evidence: Evidence, factors: Mapping[str, Mapping[str, Any]], readings: Sequence[str], confidence: float = 0.95
) -> list[Dependence]:
    """Every reading × arm × factor, with q over all of them.

    Args:
        factors: {factor: {cell: level}}, a level in every cell; factors that split the cells alike are one, named by all.
    """
    found = []
    for reading in readings:
        for arm in evidence.arms:
            groups = differences(evidence, reading, arm)
            unit = evidence.readings[reading].unit if groups else ""
            found += [
                replace(d, arm=arm, reading=reading, unit=unit) for d in fit(groups, factors, confidence) if groups
            ]
    tested = [i for i, d in enumerate(found) if isfinite(d.p)]
    if tested:
        for i, q in zip(tested, q_values([found[i].p for i in tested]), strict=True):
            found[i] = replace(found[i], q=float(q))
    return found


def fit(groups: Groups, factors: Mapping[str, Mapping[str, Any]], confidence: float = 0.95) -> list[Dependence]:
    """One linear model of the differences on all factors, with a block a seed; a finding a factor.

    A factor that the others explain has no test, and a note says so.
    """
    if not groups:
        return []
    model = _Model(groups, merged(factors, list(groups)))
    return [model.dependence(name, confidence) for name in model.factors]


def differences(evidence: Evidence, reading: str, arm: str) -> dict[str, dict[int, float]]:
    """{cell: {seed: arm minus baseline}} of the cells with two pairs; empty where those are fewer than two, or half of the
    cells at most, nothing may be pooled, or seeds of a bimodal metric change regime, whose mean describes no run: a mean over
    what is left would not be of the study."""
    out = {}
    for cell in evidence.cells if reading in evidence.readings and not evidence.not_pooled else ():
        pairs = evidence.pairs(reading, cell, arm)
        if pairs.changes is not None:
            return {}
        if (cell, arm) not in evidence.refused and len(pairs.seeds) >= 2:
            out[cell] = dict(zip(pairs.seeds, pairs.differences.tolist(), strict=True))
    return out if len(out) >= 2 and 2 * len(out) > len(evidence.cells) else {}


class _Model:
    """The design: a row a pair; `factors` {name: {cell: level}}."""

    def __init__(self, groups: Groups, factors: Mapping[str, Mapping[str, Any]]) -> None:
        self.factors, self.cells = factors, list(groups)
        rows = [(cell, seed, d) for cell, values in groups.items() for seed, d in values.items()]
        self.y = np.array([d for _, _, d in rows])
        seeds = sorted({seed for _, seed, _ in rows})
        self.blocks = np.array([[float(seed == s) for s in seeds] for _, seed, _ in rows])
        place = [self.cells.index(cell) for cell, _, _ in rows]
        self.by_cell = {name: _columns([levels[c] for c in self.cells]) for name, levels in factors.items()}
        self.columns = {name: values[place] for name, values in self.by_cell.items()}
        self.full = self._design(factors)
        self.rss, self.rank = _residual(self.full, self.y)
        rss_cells, rank_cells = _residual(np.hstack([self.blocks, np.eye(len(self.cells))[place]]), self.y)
        left_over = rank_cells - self.rank
        if left_over >= LEFT_OVER:
            self.against, self.df, self.error = "cells", left_over, (self.rss - rss_cells) / left_over
        else:
            self.against, self.df = "seeds", len(self.y) - rank_cells
            self.error = rss_cells / self.df if self.df > 0 else nan

    def dependence(self, name: str, confidence: float) -> Dependence:
        """The partial F test of one factor; reading, arm and unit are the caller's to add."""
        rss, rank = _residual(self._design([other for other in self.factors if other != name]), self.y)
        df = self.rank - rank
        found = Dependence("", "", "", name, [], nan, nan, nan, nan, df, self.df, nan, self.against)
        if df < self.columns[name].shape[1]:
            return replace(found, notes=[f"{name} cannot be told from the other factors in these cells"])
        if not self.error > 1e-20 * float((self.y**2).max()):  # up to rounding
            return replace(found, notes=["no spread is left to test against"])
        f = (rss - self.rss) / df / self.error
        of_cells = [self.factors[name][c] for c in self.cells]
        levels = []
        for level in dict.fromkeys(of_cells):
            at = self._at(name, self.by_cell[name][of_cells.index(level)])
            levels.append(Level(str(level), of_cells.count(level), *self._contrast(at, confidence)))
        slope = (nan, nan, nan)
        if _is_scale(self.factors[name].values()):
            unit = np.zeros(self.full.shape[1])
            unit[self._first(name)] = 1
            slope = self._contrast(unit, confidence)
        return replace(
            found, levels=levels, slope=slope[0], slope_low=slope[1], slope_high=slope[2], f=f, p=_p_f(f, df, self.df)
        )

    def _design(self, names: Any) -> np.ndarray:
        return np.hstack([self.blocks, *(self.columns[name] for name in names)])

    def _first(self, name: str) -> int:
        """The first column of a factor in the full design."""
        before = list(self.factors)[: list(self.factors).index(name)]
        return self.blocks.shape[1] + sum(self.columns[other].shape[1] for other in before)

    def _at(self, name: str, row: np.ndarray) -> np.ndarray:
        """The mean row of the design with this factor's columns replaced."""
        out, first = self.full.mean(axis=0), self._first(name)
        out[first : first + len(row)] = row
        return out

    def _contrast(self, weights: np.ndarray, confidence: float) -> tuple[float, float, float]:
        """A combination of the coefficients with its interval."""
        from scipy.special import stdtrit

        inverse = np.linalg.pinv(self.full.T @ self.full)
        value = float(weights @ inverse @ self.full.T @ self.y)
        half = float(stdtrit(self.df, 0.5 + confidence / 2)) * sqrt(self.error * float(weights @ inverse @ weights))
        return value, value - half, value + half


def merged(factors: Mapping[str, Mapping[str, Any]], cells: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The factors that vary among the cells; those that split them alike as one, with the first one's levels."""
    split: dict[tuple[int, ...], list[str]] = {}
    for name, levels in factors.items():
        values = [levels[c] for c in cells]
        pattern = tuple(values.index(v) for v in values)
        if len(set(pattern)) > 1:
            split.setdefault(pattern, []).append(name)
    return {" = ".join(names): {c: factors[names[0]][c] for c in cells} for names in split.values()}


def _is_scale(levels: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in levels)


def _columns(levels: list[Any]) -> np.ndarray:
    """log2 of a positive number, so that a slope is that of a doubling; else a dummy for each level but the first."""
    if _is_scale(levels):
        return np.array([[log2(v)] for v in levels])
    different = list(dict.fromkeys(levels))[1:]
    return np.array([[float(v == other) for other in different] for v in levels])


def _residual(design: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Residual sum of squares and rank of the least-squares fit."""
    beta, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(((y - design @ beta) ** 2).sum()), int(rank)


def _p_f(f: float, df: float, df_error: float) -> float:
    from scipy.special import fdtrc

    return float(fdtrc(df, df_error, f))
