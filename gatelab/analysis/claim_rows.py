"""What the tests of claims read: rows of the CSV files beside a result's page, and numbers of the runs of its archive."""

import csv
from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path

from ..store import StoreError
from .archived import NUMBERS, OF_DIVERGED, kept

Row = dict[str, str]
Groups = dict[str, dict[int, float]]  # {cell: {seed: value}}


def rows(folder: Path, file: str, where: Row) -> list[Row]:
    """The rows whose columns have these values; numbers are compared as numbers.

    Raises:
        StoreError: the file is missing, or no row is so.
    """
    path = folder / file
    if not path.is_file():
        raise StoreError(f"{path}: is missing; `--claims` reads a folder like docs/results, with a folder a page")
    with path.open(encoding="utf-8", newline="") as lines:
        found = [row for row in csv.DictReader(lines) if all(_same(row.get(k, ""), v) for k, v in where.items())]
    if not found:
        asked = ", ".join(f"{k}={v}" for k, v in where.items())
        raise StoreError(f"{path}: has no row of {asked or 'any kind'}; the claims of `--claims` read it")
    return found


def by_seed(folder: Path, file: str, column: str, arms: Sequence[str], cell: str = "") -> dict[str, dict[int, float]]:
    """{arm: {seed: value}} of these arms, in a cell or of a file that has one."""
    out: dict[str, dict[int, float]] = {}
    for row in rows(folder, file, {"cell": cell} if cell else {}):
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


def effects(folder: Path, metric: str, arm: str, cells: Sequence[str] = ("*",)) -> dict[str, Row]:
    """{cell: row} of a study's effects.csv, of the cells that fit one of the patterns."""
    found = {
        r["cell"]: r for r in rows(folder, "effects.csv", {"metric": metric, "arm": arm}) if fits(r["cell"], cells)
    }
    if not found:
        raise StoreError(
            f"{folder / 'effects.csv'}: has no cell {' or '.join(cells)}; the claims of `--claims` read it"
        )
    return found


def differences(row: Row) -> dict[int, float]:
    """{seed: arm minus baseline}."""
    return dict(zip(map(int, row["seeds"].split(";")), map(float, row["differences"].split(";")), strict=True))


def numbers(folder: Path, number: str, arm: str, cells: Sequence[str] = ("*",)) -> Groups:
    """{cell: {seed: number}} of the finished runs of an archive that have it, of the cells that fit one of the patterns."""
    out: Groups = {}
    for run in kept(folder):
        is_ended = run.status == "done" or (number in OF_DIVERGED and run.status == "diverged")
        if run.arm == arm and is_ended and fits(run.cell, cells):
            value = NUMBERS[number](run)
            if isfinite(value):
                out.setdefault(run.cell, {})[run.seed] = value
    if not out:
        raise StoreError(
            f"{folder}: its archive has no {number} of a finished run of {arm} in {' or '.join(cells)}; the claims of `--claims`"
            " read it"
        )
    return out


def less(one: Groups, other: Groups) -> Groups:
    """One minus the other, of the cells and seeds that both have."""
    shared = {cell: one[cell].keys() & other[cell].keys() for cell in one if cell in other}
    return {c: {s: one[c][s] - other[c][s] for s in sorted(seeds)} for c, seeds in shared.items() if seeds}


def fits(cell: str, patterns: Sequence[str]) -> bool:
    """Whether a cell's name is one of the patterns, in which `*` stands for anything."""
    return any(fnmatchcase(cell, p) for p in patterns)


def _same(a: str, b: str) -> bool:
    if a == b:
        return True
    try:
        return float(a) == float(b)
    except ValueError:
        return False
