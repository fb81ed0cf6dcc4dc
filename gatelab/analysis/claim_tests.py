"""The kinds of test that a claim of others may have: every number is computed from the files of a result's page.

A test gives a number with its 95% interval, and the claim says in which region the true one lies: supported where the whole
interval lies in it, refuted where it lies outside, else undecided. One run has no interval over seeds and decides nothing. That two
things are alike is asked with an interval of 90%: that it lies within bounds is what two one-sided tests at 5% ask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean

from ..study.metrics import SOLVED
from .anomalies.readings import SINK
from .both_ways import over_cells_and_seeds
from .claim_rows import Groups, Row, by_seed, differences, effects, less, numbers, rows
from .shares import exact_interval
from .student import estimate, interval
from .verdicts import SILENT_UNITS, number, places

ALIKE = 0.9  # confidence of an interval that is to lie within bounds
ALL = ("*",)


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its 95% interval (nan: none; of no width: counted, not sampled), and what it varies over."""

    value: float
    low: float
    high: float
    over: str
    unit: str = ""

    def __str__(self) -> str:
        if not isfinite(self.value):
            return self.over
        has = self.high > self.low
        digits = places(
            (self.high - self.low) / 2 if has else abs(self.value) / (1000 if self.high == self.low else 10)
        )
        span = f" [{number(self.low, digits)}, {number(self.high, digits)}]" if has else ""
        unit = "" if self.unit in SILENT_UNITS else f" {self.unit}"
        return f"{number(self.value, digits)}{span}{unit}, {self.over}".replace("-", "−")


Test = Callable[[Path], Measured]


@dataclass(frozen=True, slots=True)
class Region:
    """Where the claim says that the number lies."""

    low: float = -inf
    high: float = inf

    def verdict(self, m: Measured) -> str:
        if self.low < m.low and m.high < self.high:
            return "supported"
        return "refuted" if m.high <= self.low or m.low >= self.high else "undecided"


@dataclass(frozen=True, slots=True)
class Claim:
    """`asks` says of what the number is and where it should lie; `beside` names the control and measures it alike. Where `page` has
    no folder the claim is `planned`: what makes its rows. Without a test it waits for a way to have them."""

    claim: str
    source: str
    page: str
    asks: str
    test: Test | None
    region: Region
    beside: tuple[str, Test] | None = None
    planned: str = ""


def share_with_sink(arm: str, *, among: str = "", lost: bool = False, cell: str = "") -> Test:
    """The share of an arm's seeds with a sink (without one: `lost`), of all or of those in which the arm `among` has one;
    Clopper and Pearson's interval. `cell`: of several that the file has."""

    def test(folder: Path) -> Measured:
        runs = by_seed(folder, "seeds.csv", "first_token_mass", (arm, among or arm), cell)
        asked = [s for s, mass in runs[among or arm].items() if s in runs[arm] and (not among or mass > SINK)]
        if not asked:
            return Measured(nan, nan, nan, f"no seed in which {among} has a sink")
        k = sum((runs[arm][s] > SINK) is not lost for s in asked)
        return Measured(k / len(asked), *exact_interval(k, len(asked)), f"{k} of {len(asked)} seeds")

    return test


def difference(
    column: str,
    arm: str,
    than: str,
    unit: str = "",
    *,
    cell: str = "",
    keeping: bool = False,
    confidence: float = 0.95,
    file: str = "seeds.csv",
) -> Test:
    """The mean over seeds of arm minus `than`, Student's t; `keeping` of the seeds in which the arm has a sink. `cell`: of several
    that the file has."""

    def test(folder: Path) -> Measured:
        runs = by_seed(folder, file, column, (arm, than), cell)
        seeds = [s for s in runs[arm] if s in runs[than]]
        if keeping:
            mass = by_seed(folder, "seeds.csv", "first_token_mass", (arm,), cell)[arm]
            seeds = [s for s in seeds if mass.get(s, 0.0) > SINK]
        return _mean({"": {s: runs[arm][s] - runs[than][s] for s in seeds}}, unit, confidence)

    return test


def between(column: str, arm: str, than: str, pairs: Sequence[tuple[str, str]], unit: str = "") -> Test:
    """How much more arm minus `than` is in the first cell of each pair than in the second, over pairs and the seeds that they
    share."""

    def test(folder: Path) -> Measured:
        groups: dict[str, dict[int, float]] = {}
        for there, here in pairs:
            one, other = (by_seed(folder, "seeds.csv", column, (arm, than), cell) for cell in (there, here))
            seeds = set.intersection(*(set(runs[a]) for runs in (one, other) for a in (arm, than)))
            groups[there] = {s: one[arm][s] - one[than][s] - other[arm][s] + other[than][s] for s in sorted(seeds)}
        e = over_cells_and_seeds(groups, scale=1.0)
        n_seeds = max(len(d) for d in groups.values())
        return Measured(e.mean, *interval(e, 0.95), f"{len(groups)} pairs of cells, {n_seeds} seeds", unit)

    return test


def effect(
    metric: str,
    arm: str,
    unit: str = "",
    *,
    cells: Sequence[str] = ALL,
    as_ratio: bool = False,
    where_solved: bool = False,
) -> Test:
    """An arm's effect in a study's effects.csv: over its cells and the seeds that they share where there are several, else over
    seeds; `as_ratio` of the two means, of one run each; `where_solved` in the cells whose task both arms have at the length of
    training, in the mean over seeds."""

    def test(folder: Path) -> Measured:
        found = effects(folder, metric, arm, cells)
        if where_solved:
            accuracy = effects(folder, "task_accuracy@1x", arm, cells)
            solved = {c for c, r in accuracy.items() if min(float(r["baseline_mean"]), float(r["arm_mean"])) >= SOLVED}
            found = {c: r for c, r in found.items() if c in solved}
            if not found:
                return Measured(nan, nan, nan, "no cell whose task both learn", unit)
        if as_ratio:
            (row,) = found.values()
            n, ratio = len(differences(row)), float(row["arm_mean"]) / float(row["baseline_mean"])
            return Measured(ratio, nan, nan, "one seed" if n == 1 else f"means of {n} seeds", unit)
        return _mean({c: differences(r) for c, r in found.items()}, unit)

    return test


def effect_gap(
    metric: str, arm: str, than: str, unit: str = "", *, cells: Sequence[str] = ALL, confidence: float = 0.95
) -> Test:
    """The effect of one arm minus that of another, seed by seed: arm minus `than`, where both have the baseline's seeds."""

    def test(folder: Path) -> Measured:
        one, other = ({c: differences(r) for c, r in effects(folder, metric, a, cells).items()} for a in (arm, than))
        return _mean(less(one, other), unit, confidence)

    return test


def level(name: str, arm: str, unit: str = "", *, cells: Sequence[str] = ALL) -> Test:
    """A number of an arm's runs in the archive (`archived.NUMBERS`), over cells and seeds."""
    return lambda folder: _mean(numbers(folder, name, arm, cells), unit)


def gap(name: str, arm: str, than: str, unit: str = "", *, cells: Sequence[str] = ALL, at_least: float = -inf) -> Test:
    """Arm minus `than`, paired by seed, of a number of runs in the archive; of cells in which the mean of either is `at_least`."""

    def test(folder: Path) -> Measured:
        one, other = (numbers(folder, name, a, cells) for a in (arm, than))
        pairs = less(one, other)
        reached = {c: d for c, d in pairs.items() if max(fmean(one[c].values()), fmean(other[c].values())) >= at_least}
        if pairs and not reached:
            return Measured(nan, nan, nan, f"no cell of {len(pairs)} in which either has {at_least:g}", unit)
        return _mean(reached, unit)

    return test


def cost(arm: str, than: str) -> Test:
    """The arithmetic of a token in training, over that of `than`, from runs.csv: counted, not sampled, the mean over cells."""

    def test(folder: Path) -> Measured:
        of = [
            {r["cell"]: float(r["flops"]) / float(r["tokens"]) for r in rows(folder, "runs.csv", {"arm": a})}
            for a in (arm, than)
        ]
        shared = of[0].keys() & of[1].keys()
        ratio = sum(of[0][c] / of[1][c] for c in shared) / len(shared)
        return Measured(ratio, ratio, ratio, "counted, not sampled")

    return test


def elsewhere(page: str, test: Test) -> Test:
    """A control that another page has."""

    def there(folder: Path) -> Measured:
        home = folder.parent / page
        return test(home) if home.is_dir() else Measured(nan, nan, nan, f"is of {page}, which is not here")

    return there


def stated(file: str, where: Row, over: str, unit: str = "nats") -> Test:
    """A number whose interval the file has: columns `mean` or `loss_change`, `low` and `high` or those of the change."""

    def test(folder: Path) -> Measured:
        (row,) = rows(folder, file, where)
        value = row.get("mean") or row["loss_change"]
        low, high = (row.get(side) or row[f"loss_change_{side}"] for side in ("low", "high"))
        return Measured(float(value), float(low), float(high), over, unit)

    return test


def unread(file: str, arm: str, at_most: float, column: str = "reads_skipped", unit: str = "") -> Test:
    """A column at the threshold at which the largest share of the bytes is left unread, of those whose change in loss lies below
    `at_most` with its interval (of none 0); of one model with the file's interval, else the mean over seeds."""

    def test(folder: Path) -> Measured:
        found: dict[int, Row] = {}
        for row in rows(folder, file, {"arm": arm}):
            seed, share = int(row["seed"]), float(row["reads_skipped"])
            best = float(found.setdefault(seed, {}).get("reads_skipped", 0))
            if float(row["loss_change_high"]) < at_most and share > best:
                found[seed] = row
        if len(found) > 1:
            return _mean({"": {seed: float(row.get(column, 0)) for seed, row in found.items()}}, unit)
        (row,) = found.values()
        if not row:
            return Measured(0.0, nan, nan, "no threshold that costs so little", unit)
        low, high = (float(row[f"{column}_{side}"]) for side in ("low", "high"))
        return Measured(float(row[column]), low, high, "sequences of one model", unit)

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
        (a,), (b,) = rows(folder, file, where), rows(folder, file, than)
        return Measured(float(a["value"]) / float(b["value"]), nan, nan, "one seed")

    return test


def _mean(groups: Groups, unit: str = "", confidence: float = 0.95) -> Measured:
    """The mean over cells and the seeds that they share, over the seeds of one cell, or of one seed."""
    n_seeds = max((len(d) for d in groups.values()), default=0)
    cells = f"{len(groups)} cell{'s' * (len(groups) > 1)}"
    seeds = f"{n_seeds} seed{'s' * (n_seeds != 1)}" if n_seeds != 1 else "one seed"
    over = f"{cells} of {seeds}" if "" not in groups else seeds
    if n_seeds == 0:
        return Measured(nan, nan, nan, "no seed that has it", unit)
    if n_seeds == 1:
        value = sum(v for d in groups.values() for v in d.values()) / len(groups)
        return Measured(value, nan, nan, seeds, unit)
    e = (
        over_cells_and_seeds(groups, scale=1.0)
        if len(groups) > 1
        else estimate([*next(iter(groups.values())).values()])
    )
    if e.sigma == 0:
        return Measured(e.mean, nan, nan, f"the same in each of {over.replace(' of ', ' and ')}", unit)
    said = over if confidence == 0.95 else f"{over}, interval of {confidence:.0%}"
    return Measured(e.mean, *interval(e, confidence), said, unit)
