"""The companion of two studies of tasks: exactly their confirmed comparisons, alike but for seeds and looks; its stacks."""

import csv
from pathlib import Path

from gatelab.analysis.sights import setting
from gatelab.config import canonical
from gatelab.studies import (
    citing_causes,
    gates_on_tasks,
    tasks_by_architecture,
    tasks_causes,
    tasks_rates,
    tasks_rates_others,
    tasks_sizes,
)
from gatelab.studies.tasks_cards import LOOKS, __doc__, study
from gatelab.study.grouping import shape_of
from gatelab.study.plan import make_plan

RESULTS = Path(__file__).parents[2] / "docs" / "results"
AS_RUN = {"train.batch_size": [32], "train.tokens": [12_288_000]}  # gates-on-tasks.md
RUNS = make_plan(study).runs


def test_its_comparisons_are_those_that_were_confirmed():
    confirmed = set()
    for name in ("gates-on-tasks", "tasks-by-architecture"):
        with (RESULTS / name / "confirmed.csv").open(encoding="utf-8") as lines:
            confirmed |= {(line["cell"], line["arm"]) for line in csv.DictReader(lines)}
    assert {(p.cell, p.arm) for p in RUNS if p.arm != "none"} == confirmed and len(confirmed) == 21
    assert {p.cell for p in RUNS if p.arm == "none"} == {cell for cell, _ in confirmed}
    assert len(RUNS) == (21 + 12) * 3 == 99 and "99 runs" in __doc__
    assert sum(not p.cell.startswith("1m") for p in RUNS) == 39


def test_they_are_those_runs_on_other_seeds_looked_at_at_every_tenth():
    before = {
        (p.cell, p.arm): setting(canonical(p.run))
        for there in (gates_on_tasks.study.changed(AS_RUN), tasks_by_architecture.study)
        for p in make_plan(there.changed({"seed": [0]})).runs
    }
    for p in RUNS:
        steps = p.run.train.tokens // p.run.train.tokens_per_step
        assert setting(canonical(p.run)) == before[p.cell, p.arm] is not None
        assert p.run.probe_steps() == list(range(0, steps + 1, steps // LOOKS)) and p.run.ask.every == steps // LOOKS
    others = (citing_causes, gates_on_tasks, tasks_by_architecture, tasks_causes, tasks_rates, tasks_rates_others)
    used = {s for other in (*others, tasks_sizes) for s in other.study.seed_values}
    assert not {*used, *range(5, 13)} & set(study.seeds)


def test_cells_of_a_shape_share_their_stacks():
    shapes: dict[str, list[str]] = {}
    for p in RUNS:
        shapes.setdefault(str(shape_of(canonical(p.run))), []).append(p.cell)
    assert len(shapes) == 16 and "16 shapes" in __doc__ and max(map(len, shapes.values())) == 12
    assert sum(not cells[0].startswith("1m") for cells in shapes.values()) == 4
