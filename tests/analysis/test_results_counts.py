"""The front page of the results counts what was confirmed as the files beside it do."""

import csv
import re
from pathlib import Path

from gatelab.analysis.stages import EFFECT

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_confirmed_claims_are_those_of_the_files():
    rows = []
    for file in sorted(RESULTS.glob("*/confirmed.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            rows += list(csv.DictReader(lines))
    effects = sum(row["rule"] == EFFECT for row in rows)
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) of (\d+) registered claims .*?, (\d+) of (\d+) anomalies and (\d+) of (\d+) effects", page)
    counts = [int(x) for x in said.groups()]
    assert counts[::2] == [len(rows), len(rows) - effects, effects]
    assert counts[1] == counts[3] + counts[5]
