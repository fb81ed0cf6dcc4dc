"""What tasks say of the sizes at which they give signal is what docs/results/tasks-sizes measured."""

import csv
from pathlib import Path

import pytest
from scipy.stats import binomtest

from gatelab.tasks import TASKS, open_task

STORED = Path(__file__).parents[2] / "docs" / "results" / "tasks-sizes" / "lengths.csv"
ITEMS = 66


def n_above_guessing(task: str, size: str) -> int:
    """Seeds of three whose exact interval of items lies above guessing. Copying is what `needle` asks; of `conflict`, half are
    right of who always says what was learned."""
    with STORED.open() as file:
        rows = [r for r in csv.DictReader(file) if (r["task"], r["size"]) == (task, size)]
    assert len(rows) == 3
    out = 0
    for row in rows:
        chance, copying, right = (float(row[f"{k}_128"]) for k in ("chance", "copying", "right"))
        low = binomtest(round(right * ITEMS), ITEMS).proportion_ci().low
        out += low > {"needle": chance, "conflict": 0.5}.get(task, max(chance, copying))
    return out


@pytest.mark.parametrize("name", TASKS)
def test_what_is_said_is_what_was_measured(name: str):
    said, (small, large) = open_task(name).signal, (n_above_guessing(name, size) for size in ("1m", "10m"))
    assert "24.6M tokens" in said and "1.3M" in said and "10.4M" in said
    assert said.startswith("not ") == (small == large == 0)
    assert ("two seeds of three" in said) == (small == 2)
    assert said.endswith("not at 10.4M") == (small > 0 and large == 0)
    assert (said.startswith(("1.3M and 10.4M", "in part at 1.3M and 10.4M")) or "in part at 10.4M" in said) == (
        large == 3
    )
