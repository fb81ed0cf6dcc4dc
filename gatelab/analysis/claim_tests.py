"""The kinds of test that a claim of others may have: every number is computed from the files of a result's page.

A test gives a number with its 95% interval, and the claim says in which region the true one lies: supported where the whole
interval lies in it, refuted where it lies outside, else undecided. One run has no interval over seeds and decides nothing.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path

from ..store import StoreError
from ..study.metrics import SOLVED
from .both_ways import over_cells_and_seeds
from .shares import exact_interval
from .student import estimate, interval
from .verdicts import SILENT_UNITS, number, places

SINK = 0.3  # first-token mass above which a run shows a sink


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its 95% interval (nan: none), and what it varies over."""

    value: float
    low: float
    high: float
    over: str
    unit: str = ""

    def __str__(self) -> str:
        if not isfinite(self.value):
            return self.over
        has = isfinite(self.high - self.low)
        digits = places((self.high - self.low) / 2 if has else abs(self.value) / 10)
        span = f" [{number(self.low, digits)}, {number(self.high, digits)}]" if has else ""
        unit = "" if self.unit in SILENT_UNITS else f" {self.unit}"
        return f"{number(self.value, digits)}{span}{unit}, {self.over}".replace("-", "−")


Test = Callable[[Path], Measured]
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Region:
    """Where the claim says that the number lies."""

    low: float = -inf
    high: float = inf

    def verdict(self, m: Measured) -> str:
        if self.low < m.low and m.high < self.high:
            return "supported"
        return "refuted" if m.high <= self.low or m.low >= self.high else "undecided"


def share_with_sink(arm: str, *, among: str = "", lost: bool = False, cell: str = "") -> Test:
    """The share of an arm's seeds with a sink (without one: `lost`), of all or of those in which the arm `among` has one;
    Clopper and Pearson's interval. `cell`: of several that the file has."""

    def test(folder: Path) -> Measured:
        runs = _by_seed(folder, "seeds.csv", "first_token_mass", (arm, among or arm), cell)
        asked = [s for s, mass in runs[among or arm].items() if s in runs[arm] and (not among or mass > SINK)]
        if not asked:
            return Measured(nan, nan, nan, f"no seed in which {among} has a sink")
        k = sum((runs[arm][s] > SINK) is not lost for s in asked)
        return Measured(k / len(asked), *exact_interval(k, len(asked)), f"{k} of {len(asked)} seeds")

    return test


def difference(column: str, arm: str, than: str, unit: str = "") -> Test:
    """The mean over seeds of arm minus `than`, Student's t."""

    def test(folder: Path) -> Measured:
        runs = _by_seed(folder, "seeds.csv", column, (arm, than))
        e = estimate([value - runs[than][s] for s, value in runs[arm].items() if s in runs[than]])
        return Measured(e.mean, *interval(e, 0.95), f"{e.n} seeds", unit)

    return test


def between(column: str, arm: str, than: str, pairs: Sequence[tuple[str, str]], unit: str = "") -> Test:
    """How much more arm minus `than` is in the first cell of each pair than in the second, over pairs and the seeds that they
    share."""

    def test(folder: Path) -> Measured:
        groups: dict[str, dict[int, float]] = {}
        for there, here in pairs:
            one, other = (_by_seed(folder, "seeds.csv", column, (arm, than), cell) for cell in (there, here))
            seeds = set.intersection(*(set(runs[a]) for runs in (one, other) for a in (arm, than)))
            groups[there] = {s: one[arm][s] - one[than][s] - other[arm][s] + other[than][s] for s in sorted(seeds)}
        e = over_cells_and_seeds(groups, scale=1.0)
        n_seeds = max(len(d) for d in groups.values())
        return Measured(e.mean, *interval(e, 0.95), f"{len(groups)} pairs of cells, {n_seeds} seeds", unit)

    return test


def effect(metric: str, arm: str, unit: str = "", *, as_ratio: bool = False, where_solved: bool = False) -> Test:
    """An arm's effect in a study's effects.csv: over its cells and the seeds that they share where there are several, else over
    seeds; `as_ratio` of the two means, of one run each; `where_solved` in the cells whose task both arms have at the length of
    training, in the mean over seeds."""

    def test(folder: Path) -> Measured:
        rows = _rows(folder, "effects.csv", {"metric": metric, "arm": arm})
        if where_solved:
            accuracy = _rows(folder, "effects.csv", {"metric": "task_accuracy@1x", "arm": arm})
            solved = {r["cell"] for r in accuracy if min(float(r["baseline_mean"]), float(r["arm_mean"])) >= SOLVED}
            rows = [r for r in rows if r["cell"] in solved]
            if not rows:
                return Measured(nan, nan, nan, "no cell whose task both learn", unit)
        groups = {
            r["cell"]: dict(zip(map(int, r["seeds"].split(";")), map(float, r["differences"].split(";")), strict=True))
            for r in rows
        }
        n_seeds = max(len(d) for d in groups.values())
        if n_seeds < 2:
            mean, base = (float(rows[0][k]) for k in ("arm_mean", "baseline_mean"))
            return Measured(mean / base if as_ratio else mean - base, nan, nan, "one seed", unit)
        e = (
            over_cells_and_seeds(groups, scale=1.0)
            if len(groups) > 1
            else estimate([*groups[rows[0]["cell"]].values()])
        )
        cells = f"{len(groups)} cell{'s' if len(groups) > 1 else ''}"
        if e.sigma == 0:
            return Measured(e.mean, nan, nan, f"the same in each of {cells} and {n_seeds} seeds", unit)
        return Measured(e.mean, *interval(e, 0.95), f"{cells} of {n_seeds} seeds", unit)

    return test


def stated(file: str, where: Row, over: str, unit: str = "nats") -> Test:
    """A number whose interval the file has: columns `mean` or `loss_change`, `low` and `high` or those of the change."""

    def test(folder: Path) -> Measured:
        (row,) = _rows(folder, file, where)
        value = row.get("mean") or row["loss_change"]
        low, high = (row.get(side) or row[f"loss_change_{side}"] for side in ("low", "high"))
        return Measured(float(value), float(low), float(high), over, unit)

    return test


def excess(file: str, where: Row, control: Row, over: str) -> Test:
    """One stated number minus another; its interval is the widest that both intervals allow, since they are not paired."""
    one, other = stated(file, where, over), stated(file, control, over)

    def test(folder: Path) -> Measured:
        a, b = one(folder), other(folder)
        return Measured(a.value - b.value, a.low - b.high, a.high - b.low, over, a.unit)

    return test


def quotient(file: str, where: Row, than: Row) -> Test:
    """One run's value over another's: no interval."""

    def test(folder: Path) -> Measured:
        (a,), (b,) = _rows(folder, file, where), _rows(folder, file, than)
        return Measured(float(a["value"]) / float(b["value"]), nan, nan, "one seed")

    return test


def _by_seed(folder: Path, file: str, column: str, arms: Sequence[str], cell: str = "") -> dict[str, dict[int, float]]:
    """{arm: {seed: value}} of these arms, in a cell or of a file that has one."""
    out: dict[str, dict[int, float]] = {}
    for row in _rows(folder, file, {"cell": cell} if cell else {}):
        if column not in row:
            raise StoreError(f"{folder / file}: has no column {column}; the claims of `--claims` read it")
        if not row[column] or row["arm"] not in arms:
            continue
        of_arm, seed = out.setdefault(row["arm"], {}), int(row["seed"])
        if seed in of_arm:
            raise StoreError(
                f"{folder / file}: has {row['arm']}, seed {seed} twice; name one of its cells in the claim"
            )
        of_arm[seed] = float(row[column])
    if missing := [arm for arm in arms if arm not in out]:
        raise StoreError(f"{folder / file}: has no row of arm={missing[0]}; the claims of `--claims` read it")
    return out


def _rows(folder: Path, file: str, where: Row) -> list[Row]:
    """The rows whose columns have these values; numbers are compared as numbers."""
    path = folder / file
    if not path.is_file():
        raise StoreError(f"{path}: is missing; `--claims` reads a folder like docs/results, with a folder a page")
    with path.open(encoding="utf-8", newline="") as lines:
        found = [row for row in csv.DictReader(lines) if all(_same(row.get(k, ""), v) for k, v in where.items())]
    if not found:
        asked = ", ".join(f"{k}={v}" for k, v in where.items())
        raise StoreError(f"{path}: has no row of {asked or 'any kind'}; the claims of `--claims` read it")
    return found


def _same(a: str, b: str) -> bool:
    if a == b:
        return True
    try:
        return float(a) == float(b)
    except ValueError:
        return False
