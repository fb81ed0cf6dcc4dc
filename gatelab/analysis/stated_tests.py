"""Tests of claims whose numbers a page's files state: counted, or with intervals over documents or sequences of one model."""

from math import nan
from pathlib import Path

from .claim_rows import Row, rows
from .claim_tests import Measured, Test, mean_over


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
            return mean_over({"": {seed: float(row.get(column, 0)) for seed, row in found.items()}}, unit)
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
