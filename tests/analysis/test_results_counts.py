"""The front page of the results, and the page behind it, count what was registered and confirmed as the files do, a test once;
what was seen again and not registered is what the pack has."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from scipy import stats

from gatelab.analysis.packed import read_pack
from gatelab.analysis.registration import EFFECT

RESULTS = Path(__file__).parents[2] / "docs" / "results"
WORSE, GONE = "worse-than-none", "removed-but-worse"


def lines(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as read:
        yield from csv.DictReader(read)


def registered() -> dict[str, list[dict[str, Any]]]:
    """{study: its registered claims}, those of every pack that has some."""
    packs = {file.parent.name: read_pack(file) for file in sorted(RESULTS.glob("*/folder.parquet"))}
    return {name: p.study["confirmation.json"]["claims"] for name, p in packs.items() if "confirmation.json" in p.study}


def twice(study: str, claims: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """(cell, arm) of which two registered claims are one test: that the loss is worse, and that it is worse in the seeds whose
    sink is gone, where it is gone in every fresh seed (first-token mass over 0.3 without the gate, not with it)."""
    rules = {(c["cell"], c["arm"], c["rule"]) for c in claims}
    both = {(cell, arm) for cell, arm, rule in rules if rule == GONE and (cell, arm, WORSE) in rules}
    if not both:
        return set()
    mass = {
        (r["cell"], r["arm"], r["seed"]): float(r["first_token_mass"])
        for r in lines(RESULTS / study / "fresh-seeds.csv")
    }
    seeds = {cell: {s for c, _, s in mass if c == cell} for cell, _ in both}
    return {
        (cell, arm) for cell, arm in both if all(mass[cell, "none", s] > 0.3 >= mass[cell, arm, s] for s in seeds[cell])
    }


def test_the_registered_and_the_confirmed_are_those_of_the_files():
    claims = registered()
    again = {study: twice(study, of) for study, of in claims.items()}
    n = sum(map(len, claims.values()))
    effects = [c for of in claims.values() for c in of if c["rule"] == EFFECT]
    held = [(file.parent.name, row) for file in sorted(RESULTS.glob("*/confirmed.csv")) for row in lines(file)]
    once = [r for study, r in held if r["rule"] != GONE or (r["cell"], r["arm"]) not in again[study]]
    held_effects = sum(r["rule"] == EFFECT for r in once)
    n_tests = n - sum(map(len, again.values()))
    counted = [
        len(once), n_tests, len(once) - held_effects, n_tests - len(effects), held_effects, len(effects), n
    ]  # fmt: skip
    for name in ("README", "pages"):
        page = " ".join((RESULTS / f"{name}.md").read_text(encoding="utf-8").split())
        said = re.search(
            r"(\d+) of (\d+) registered claims .*?, (\d+) of (\d+) anomalies and (\d+) of (\d+) effects .*?(\d+) were registered",
            page,
        )
        assert [int(x) for x in said.groups()] == counted, name


def by_pairs(cell: str, arm: str, *, fresh: bool) -> np.ndarray:
    """Held-out loss of the model after the last step, arm minus no gate, of the seeds 5 to 12 or those before."""
    file = RESULTS / "tasks-by-architecture" / "folder.parquet"
    rows = duckdb.execute(
        """SELECT a.value - b.value FROM read_parquet($1) a JOIN read_parquet($1) b USING (cell, seed, metric, step)
           WHERE cell = $2 AND a.arm = $3 AND b.arm = 'none' AND metric = 'val_loss' AND step = 6000 AND (seed >= 5) = $4
           AND a.domain IS NULL AND b.domain IS NULL AND a.intervention IS NULL AND b.intervention IS NULL""",
        [str(file), cell, arm, fresh],
    )
    return np.array([x for (x,) in rows.fetchall()])


def test_what_was_seen_again_is_in_the_pack():
    text = (RESULTS / "tasks-by-architecture.md").read_text(encoding="utf-8").split("## Seen again", 1)[1]
    found = [[w.strip(" *") for w in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")][2:10]
    arms = {"G1 headwise": "sdpa-headwise", "G1 elementwise": "sdpa-elementwise", "G2": "value-elementwise"}
    p = []
    for where, *numbers, higher, _, _ in found:
        task, architecture, arm = re.fullmatch(r"`(\w+)` ([\w-]+), (.+)", where.replace("*", "")).groups()
        for fresh, said in zip((False, True), numbers, strict=True):
            x = by_pairs(f"1m {architecture} {task}", arms[arm], fresh=fresh)
            assert len(x) == (8 if fresh else 5)
            low, high = stats.t.interval(0.95, len(x) - 1, x.mean(), stats.sem(x))
            stated = [float(w.replace("−", "-")) for w in re.findall(r"[+−][\d.]+", said)]
            assert stated == [round(v, 2) for v in (x.mean(), low, high)], (where, fresh)
        assert higher == f"{(x > 0).sum()} of 8"
        p.append(stats.ttest_1samp(x, 0).pvalue)
    order = np.argsort(p)
    holm = np.maximum.accumulate([min(1.0, (len(p) - i) * p[k]) for i, k in enumerate(order)])
    for k, adjusted in zip(order, holm, strict=True):
        assert [float(w) for w in found[k][-2:]] == pytest.approx([p[k], adjusted], rel=0.15)
