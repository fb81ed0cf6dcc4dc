"""The record of the conformance suite: how each test ended in each place, as docs/scale.md shows it.

GATELAB_CONFORMANCE=1 python -m pytest -m "slow or not slow" tests/study/test_conformance.py     writes it, cell by cell
python tests/study/outcomes.py                                                                   prints its table
"""

import json
import os
import platform
import shutil
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from gatelab.study.code import code_hash

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "conformance_2026-11.json"
ASKED = "GATELAB_CONFORMANCE"
_PLACES = ("local", "fresh", "ray", "slurm")


def row_of(test: str) -> str:
    """A test's name in words."""
    return test.removeprefix("test_").replace("_", " ")


def read_record() -> dict[str, Any]:
    """`cells` by test and place: passed, failed, or why it was skipped; `versions` of what they ran on, the day and the package's
    digest of the last cell that was written."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def note(item: pytest.Item, report: pytest.TestReport) -> None:
    """Write down how a test of the suite ended in its place, when a run is asked to."""
    callspec = getattr(item, "callspec", None)
    kind = callspec.params.get("kind") if callspec is not None else None
    is_word = report.when == "call" or not report.passed
    if not os.environ.get(ASKED) or item.path.name != "test_conformance.py" or kind is None or not is_word:
        return
    record = read_record() if RECORD.exists() else {"cells": {}}
    names = [row_of(name) for name in vars(item.module) if name.startswith("test_")]
    why = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else report.outcome
    record["cells"].setdefault(row_of(item.originalname), {})[kind] = why
    cells = {row: record["cells"][row] for row in names if row in record["cells"]}
    record["cells"] = {row: {p: cell[p] for p in _PLACES if p in cell} for row, cell in cells.items()}
    record["versions"] = _versions()
    record["date"], record["code"] = date.today().isoformat(), code_hash()
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(record: dict[str, Any]) -> str:
    """As Markdown, with a footnote for each reason why there is nothing to test."""
    outcomes = [*dict.fromkeys(outcome for cell in record["cells"].values() for outcome in cell.values())]
    reasons = [outcome for outcome in outcomes if outcome not in ("passed", "failed")]
    marks = {"passed": "✓", "failed": "✗"} | {reason: f"n/a [^{i}]" for i, reason in enumerate(reasons, 1)}
    lines = [["test", *_PLACES], ["---"] * (1 + len(_PLACES))]
    lines += [[row, *(marks.get(cell.get(place), "") for place in _PLACES)] for row, cell in record["cells"].items()]
    notes = [f"[^{i}]: {reason}" for i, reason in enumerate(reasons, 1)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes]) + "\n"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if program := shutil.which("slurmctld", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        said = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stdout.split()
        found |= {"slurm": said[-1]} if said else {}
    return found


if __name__ == "__main__":
    print(table(read_record()), end="")
