"""The kinds of test that a claim of others may have: every number is computed from the files of a result's page.

A test gives a number with its 95% interval, and the claim says in which region the true one lies: supported where the whole
interval lies in it, refuted where it lies outside, else undecided. One run has no interval over seeds and decides nothing; nor do
cells without room for a difference (`room.py`). That two things are alike is asked with an interval of 90%: that it lies within
bounds is what two one-sided tests at 5% ask. Numbers whose interval a file states are in `stated_tests.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from .anomalies.readings import SINK
from .both_ways import over_cells_and_seeds
from .claim_rows import Groups, by_seed, differences, effects, less, numbers
from .room import Room, has_room
from .shares import exact_interval
from .student import estimate, interval
from .verdicts import SILENT_UNITS, number, places

ALIKE = 0.9  # confidence of an interval that is to lie within bounds
ALL = ("*",)
T = TypeVar("T")


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
    beside: str = "",
    room: Room | None = None,
) -> Test:
    """The mean over seeds of arm minus `than`, Student's t; `keeping` of the seeds in which the arm has a sink. `cell`: of several
    that the file has. `room` is asked of the sizes of what both do `beside` a third arm."""

    def test(folder: Path) -> Measured:
        runs = by_seed(folder, file, column, (arm, than), cell)
        seeds = [s for s in runs[arm] if s in runs[than]]
        if keeping:
            mass = by_seed(folder, "seeds.csv", "first_token_mass", (arm,), cell)[arm]
            seeds = [s for s in seeds if mass.get(s, 0.0) > SINK]
        if room is not None:
            third = by_seed(folder, file, column, (beside,), cell)[beside]
            sizes = [abs(fmean(runs[a][s] - third[s] for s in seeds if s in third)) for a in (arm, than)]
            if not has_room(sizes, room):
                said = " and ".join(number(x, places(x / 10)) for x in sizes)
                return Measured(nan, nan, nan, f"no room: they differ from {beside} by {said}", unit)
        return mean_over({"": {s: runs[arm][s] - runs[than][s] for s in seeds}}, unit, confidence)

    return test


def over_share(column: str, arm: str, than: str, share: float, unit: str = "", *, cell: str = "") -> Test:
    """The mean over seeds of arm minus this share of `than`, Student's t: below 0 where the arm has less than that share of it.
    `cell`: of several that the file has."""

    def test(folder: Path) -> Measured:
        runs = by_seed(folder, "seeds.csv", column, (arm, than), cell)
        both = {s: x - share * runs[than][s] for s, x in runs[arm].items() if s in runs[than]}
        m = mean_over({"": both}, unit)
        one, other = (fmean(runs[a][s] for s in both) for a in (arm, than))
        return replace(
            m, over=f"{m.over}; means {number(one, places(one / 10))} and {number(other, places(other / 10))}"
        )

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
    where: Sequence[Room] = (),
) -> Test:
    """An arm's effect in a study's effects.csv: over its cells and the seeds that they share where there are several, else over
    seeds; `as_ratio` of the two means, of one run each; in the cells that have what `where` needs of arm and baseline."""

    def test(folder: Path) -> Measured:
        found, n_cells = effects(folder, metric, arm, cells), 0
        for room in where:
            means = _means(effects(folder, room.number, arm, cells))
            found, n_cells = _with(found, means, room), n_cells or len(found)
            if not found:
                return _without(room, n_cells, unit)
        if as_ratio:
            (row,) = found.values()
            n, ratio = len(differences(row)), float(row["arm_mean"]) / float(row["baseline_mean"])
            return Measured(ratio, nan, nan, "one seed" if n == 1 else f"means of {n} seeds", unit)
        return mean_over({c: differences(r) for c, r in found.items()}, unit, of=n_cells, words=_words(where))

    return test


def effect_gap(
    metric: str,
    arm: str,
    than: str,
    unit: str = "",
    *,
    cells: Sequence[str] = ALL,
    confidence: float = 0.95,
    room: Room | None = None,
    moved: Room | None = None,
) -> Test:
    """The effect of one arm minus that of another, seed by seed: arm minus `than`, where both have the baseline's seeds; in the
    cells where the arms have `room`, and the sizes of their effects on the baseline have room to differ (`moved`)."""

    def test(folder: Path) -> Measured:
        of = [effects(folder, metric, a, cells) for a in (arm, than)]
        one, other = ({c: differences(r) for c, r in found.items()} for found in of)
        pairs, n_cells = less(one, other), 0
        for needed, column in ((room, "arm_mean"), (moved, "")):
            if needed is None or not pairs:
                continue
            means = {
                c: [float(f[c][column]) if column else abs(fmean(differences(f[c]).values())) for f in of]
                for c in pairs
            }
            n_cells = n_cells or len(pairs)
            pairs = _with(pairs, means, needed)
            if not pairs:
                return _without(needed, n_cells, unit)
        return mean_over(pairs, unit, confidence, of=n_cells, words=_words([r for r in (room, moved) if r]))

    return test


def level(name: str, arm: str, unit: str = "", *, cells: Sequence[str] = ALL) -> Test:
    """A number of an arm's runs in the archive (`archived.NUMBERS`), over cells and seeds."""
    return lambda folder: mean_over(numbers(folder, name, arm, cells), unit)


def gap(
    name: str, arm: str, than: str, unit: str = "", *, cells: Sequence[str] = ALL, where: Sequence[Room] = ()
) -> Test:
    """Arm minus `than`, paired by seed, of a number of runs in the archive; in the cells that have what `where` needs."""

    def test(folder: Path) -> Measured:
        pairs, n_cells = less(*(numbers(folder, name, a, cells) for a in (arm, than))), 0
        for room in where:
            of = [numbers(folder, room.number, a, cells) for a in (arm, than)]
            means = {c: [fmean(found[c].values()) for found in of] for c in pairs if all(c in found for found in of)}
            pairs, n_cells = _with(pairs, means, room), n_cells or len(pairs)
            if not pairs:
                return _without(room, n_cells, unit)
        return mean_over(pairs, unit, of=n_cells, words=_words(where))

    return test


def elsewhere(page: str, test: Test) -> Test:
    """A control that another page has."""

    def there(folder: Path) -> Measured:
        home = folder.parent / page
        return test(home) if home.is_dir() else Measured(nan, nan, nan, f"is of {page}, which is not here")

    return there


def _means(found: Mapping[str, Mapping[str, str]]) -> dict[str, list[float]]:
    return {c: [float(r[side]) for side in ("baseline_mean", "arm_mean")] for c, r in found.items()}


def _with(found: Mapping[str, T], means: Mapping[str, Sequence[float]], room: Room) -> dict[str, T]:
    return {c: x for c, x in found.items() if c in means and has_room(means[c], room)}


def _without(room: Room, n_cells: int, unit: str) -> Measured:
    cells = f"{n_cells} cell{'s' * (n_cells != 1)}"
    return Measured(nan, nan, nan, f"no room: 0 of {cells} {room.words} ({room.number})", unit)


def _words(where: Sequence[Room]) -> str:
    return " and ".join(dict.fromkeys(room.words for room in where))


def mean_over(groups: Groups, unit: str = "", confidence: float = 0.95, *, of: int = 0, words: str = "") -> Measured:
    """The mean over cells and the seeds that they share, over the seeds of one cell, or of one seed; `of` how many cells there
    were before those `words` were chosen."""
    n_seeds = max((len(d) for d in groups.values()), default=0)
    cells = f"{len(groups)} of {of} cells {words}," if of else f"{len(groups)} cell{'s' * (len(groups) > 1)} of"
    seeds = f"{n_seeds} seed{'s' * (n_seeds != 1)}" if n_seeds != 1 else "one seed"
    over = f"{cells} {seeds}" if "" not in groups else seeds
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
        said = over if of else over.replace(" of ", " and ")
        return Measured(e.mean, nan, nan, f"the same in each of {said}", unit)
    said = over if confidence == 0.95 else f"{over}, interval of {confidence:.0%}"
    return Measured(e.mean, *interval(e, confidence), said, unit)
