"""Effects over cells: the pooled effect, how much it differs between cells, and on what (size, depth, rate, task) it depends.

The differences of the pairs are responses of a linear model: a block a seed, and the factors in which cells differ. A
factor is tested against what the cells do beyond all factors where three degrees of freedom are left for that, because
cells that differ for other reasons would otherwise make any factor significant; else against seeds, which then speaks of
these very cells. A factor's levels are tested as such, numbers too: an effect that bends with the learning rate is on no line.

Cells in which most runs of the arm or of the baseline are lost (lost.py) are left out: what stands there are differences
between trainings that failed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isfinite, log2, nan, sqrt
from typing import Any

import numpy as np

from .anomalies.evidence import Evidence
from .both_ways import over_cells_and_seeds
from .lost import lost_at
from .student import critical_t, interval, p_two_sided, q_values

LEFT_OVER = 3  # degrees of freedom of cells beyond the factors that a test against them needs


@dataclass(frozen=True, slots=True)
class Pooled:
    """The mean over cells of an arm's effect, each cell counting once; the interval and `p` are of that mean when other
    cells of the kind, or other seeds, are drawn (t over cells, or over the seeds that they share: the wider). `between` is
    the cells' own standard deviation (0 at least), `within` that of a pair, `p_between` of the F test that all cells have
    one effect, F of `df` and `df_error` degrees of freedom. `left_out` {cell: why} has no part in it."""

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
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Level:
    """The fitted effect at one level of a factor, the other factors and seeds at their average."""

    value: str
    n_cells: int
    effect: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Change:
    """The fitted effect at one level minus that at `start`, with the interval of this one difference."""

    start: str
    end: str
    effect: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Dependence:
    """Whether an arm's effect depends on a factor: the partial F test over all its levels; `against` is cells or seeds.

    `changes` are those between each two levels, of numbers from the smaller to the larger. Of a factor that is a positive
    number `slope` is the change of the effect a doubling of the line that fits best, with its 95% interval, and `p_bend` the p
    of the F test that the levels lie on that line: small where the slope does not tell what the levels do, nan of two levels.
    `left_out` {cell: why} has no part in it."""

    arm: str
    reading: str
    unit: str
    factor: str
    levels: list[Level]
    slope: float
    slope_low: float
    slope_high: float
    p_bend: float
    f: float
    df: float
    df_error: float
    p: float
    against: str
    q: float = nan
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The factor in a few words, where many keys differ alike."""
        keys = self.factor.split(" = ")
        return " = ".join(keys) if len(keys) < 4 else f"{keys[0]} = {keys[1]} = {len(keys) - 2} more"

    @property
    def flips(self) -> bool:
        """Whether the intervals of two levels lie on either side of zero."""
        return any(x.high < 0 for x in self.levels) and any(x.low > 0 for x in self.levels)

    @property
    def furthest(self) -> float:
        """How far apart two levels may be: the furthest end of the changes' intervals. Each being of 95%, that two levels are
        further apart has a chance of 2.5% at most: of the two that are, one end of one interval would have to miss."""
        return max((max(abs(c.low), abs(c.high)) for c in self.changes), default=nan)


Groups = Mapping[str, Mapping[int, float]]  # {cell: {seed: difference}}


def pooled(evidence: Evidence, reading: str, arm: str, confidence: float = 0.95) -> Pooled | None:
    """None of fewer than two cells with two pairs, or where half of the cells lack the reading; without the cells in which most
    runs are lost."""
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
        left_out(evidence, reading, arm),
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
            without = left_out(evidence, reading, arm)
            found += [
                replace(d, arm=arm, reading=reading, unit=unit, left_out=without)
                for d in fit(groups, factors, confidence)
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
    """{cell: {seed: arm minus baseline}} of the cells with two pairs, without those in which most runs are lost; empty where
    those are fewer than two, or half of the others at most, nothing may be pooled, or seeds of a bimodal metric change regime,
    whose mean describes no run: a mean over what is left would not be of the study."""
    out = {}
    without = left_out(evidence, reading, arm)
    cells = [c for c in evidence.cells if c not in without]
    for cell in cells if reading in evidence.readings and not evidence.not_pooled else ():
        pairs = evidence.pairs(reading, cell, arm)
        if pairs.changes is not None:
            return {}
        if (cell, arm) not in evidence.refused and len(pairs.seeds) >= 2:
            out[cell] = dict(zip(pairs.seeds, pairs.differences.tolist(), strict=True))
    return out if len(out) >= 2 and 2 * len(out) > len(cells) else {}


def left_out(evidence: Evidence, reading: str, arm: str) -> dict[str, str]:
    """{cell: why} of the cells whose comparison has no part in what is said over cells: most runs of the arm or of the baseline
    are lost. None of a reading that is of such runs."""
    why = {c: lost_at(evidence.lost, reading, c, evidence.baseline, arm) for c in evidence.cells}
    return {cell: ", ".join(found) for cell, found in why.items() if found}


class _Model:
    """The design: a row a pair; `factors` {name: {cell: level}}."""

    def __init__(self, groups: Groups, factors: Mapping[str, Mapping[str, Any]]) -> None:
        self.factors, self.cells = factors, list(groups)
        rows = [(cell, seed, d) for cell, values in groups.items() for seed, d in values.items()]
        self.y = np.array([d for _, _, d in rows])
        seeds = sorted({seed for _, seed, _ in rows})
        self.blocks = np.array([[float(seed == s) for s in seeds] for _, seed, _ in rows])
        self.of_row = [cell for cell, _, _ in rows]
        place = [self.cells.index(cell) for cell in self.of_row]
        self.by_cell = {name: _columns([levels[c] for c in self.cells]) for name, levels in factors.items()}
        self.columns = {name: values[place] for name, values in self.by_cell.items()}
        self.full = self._design(factors)
        self.inverse = np.linalg.pinv(self.full.T @ self.full)
        self.beta = self.inverse @ self.full.T @ self.y
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
        found = Dependence("", "", "", name, [], nan, nan, nan, nan, nan, df, self.df, nan, self.against)
        if df < self.columns[name].shape[1]:
            return replace(found, notes=[f"{name} cannot be told from the other factors in these cells"])
        if not self.error > 1e-20 * float((self.y**2).max()):  # up to rounding
            return replace(found, notes=["no spread is left to test against"])
        f = (rss - self.rss) / df / self.error
        of_cells = [self.factors[name][c] for c in self.cells]
        is_scale = _is_scale(self.factors[name].values())
        values = list(dict.fromkeys(of_cells))
        values = sorted(values) if is_scale else values
        at = {v: self._at(name, self.by_cell[name][of_cells.index(v)]) for v in values}
        levels = [Level(str(v), of_cells.count(v), *self._contrast(at[v], confidence)) for v in values]
        changes = [
            Change(str(a), str(b), *self._contrast(at[b] - at[a], confidence)) for a, b in combinations(values, 2)
        ]
        slope, low, high, p_bend = self._line(name, confidence) if is_scale else (nan,) * 4
        return replace(
            found, levels=levels, changes=changes, slope=slope, slope_low=low, slope_high=high, p_bend=p_bend, f=f,
            p=_p_f(f, df, self.df),
        )  # fmt: skip

    def _line(self, name: str, confidence: float) -> tuple[float, float, float, float]:
        """The slope over log2 of a factor beside all levels of the others, with its interval, and the p of what the levels do
        beyond that line; nan where there are two."""
        by_cell = dict(zip(self.cells, (log2(self.factors[name][c]) for c in self.cells), strict=True))
        x = np.array([by_cell[cell] for cell in self.of_row])
        others = self._design([other for other in self.factors if other != name])
        x = x - others @ np.linalg.lstsq(others, x, rcond=None)[0]
        square = float(x @ x)
        slope = float(x @ self.y) / square
        half = critical_t(self.df, 1 - confidence) * sqrt(self.error / square)
        rss, rank = _residual(np.column_stack([others, x]), self.y)
        df = self.rank - rank
        p_bend = _p_f(max(0.0, rss - self.rss) / df / self.error, df, self.df) if df else nan
        return slope, slope - half, slope + half, p_bend

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
        value = float(weights @ self.beta)
        half = critical_t(self.df, 1 - confidence) * sqrt(self.error * float(weights @ self.inverse @ weights))
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
    """A dummy for each level but the first."""
    different = list(dict.fromkeys(levels))[1:]
    return np.array([[float(v == other) for other in different] for v in levels])


def _residual(design: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Residual sum of squares and rank of the least-squares fit."""
    beta, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(((y - design @ beta) ** 2).sum()), int(rank)


def _p_f(f: float, df: float, df_error: float) -> float:
    from scipy.special import fdtrc

    return float(fdtrc(df, df_error, f))
