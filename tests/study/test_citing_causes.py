"""The confirmed harm's cell on fresh seeds: a run differs from one of that cell in seed and looks, and each arm in one thing."""

from dataclasses import replace

from gatelab import override
from gatelab.analysis.causes import besides
from gatelab.analysis.sights import setting
from gatelab.config import canonical
from gatelab.studies import citing_causes, gates_on_tasks
from gatelab.study.plan import make_plan

PLANNED = {(p.cell, p.arm, p.run.seed): canonical(p.run) for p in make_plan(citing_causes.study).runs}
# As the screen and the test that confirmed the harm were run.
AS_RUN = {"train.batch_size": 32, "train.tokens": 12_288_000, "ask.items": 66, "ask.every": 500, "probe.times": 1}


def test_a_run_is_one_of_the_confirmed_cell_on_a_seed_that_was_not_run():
    there = gates_on_tasks.study
    cells = {f"cite {lr:g}": override(there.cells[f"easy cite {lr:g}"], AS_RUN) for lr in (1e-3, 3e-3)}
    earlier = {(p.cell, p.arm): canonical(p.run) for p in make_plan(replace(there, cells=cells, about={})).runs}
    for cell in cells:
        for arm in ("none", "sdpa-headwise", "sdpa-elementwise"):
            assert setting(PLANNED[cell, arm, 13]) == setting(earlier[cell, arm]) is not None
    assert min(citing_causes.FRESH) == 13 and len(PLANNED) == 160


def test_each_arm_differs_in_one_thing_and_halves_are_all_layers():
    models = {arm: run["model"] for (cell, arm, seed), run in PLANNED.items() if (cell, seed) == ("cite 0.001", 13)}
    assert len(models) == 8
    first, last = (models[f"{half}-half"]["gate_layers"] for half in ("first", "last"))
    assert [*first, *last] == list(range(models["none"]["n_layers"]))
    for arm, key, of in (
        ("scaled", "init", "none"),
        ("sdpa-headwise", "gate", "none"),
        ("static", "gate", "sdpa-headwise"),
        ("open", "gate", "sdpa-headwise"),
        ("first-half", "gate_layers", "sdpa-headwise"),
        ("last-half", "gate_layers", "sdpa-headwise"),
    ):
        assert besides(models[arm], key) == besides(models[of], key)
        assert models[arm][key] != models[of][key]
