"""The confirmed cells with seven arms: the two that were there are as they were, the seeds are new, and each other arm differs from
one of them in what it is for."""

from gatelab.analysis.causes import besides
from gatelab.analysis.sights import setting
from gatelab.config import canonical
from gatelab.studies import tasks_by_architecture, tasks_causes, tasks_rates
from gatelab.study.grouping import shape_of
from gatelab.study.plan import make_plan

PLANNED = {(p.cell, p.arm, p.run.seed): p.run for p in make_plan(tasks_causes.study).runs}


def test_a_run_differs_from_one_of_the_confirmed_study_in_its_seed_and_its_looks():
    there = {(p.cell, p.arm, p.run.seed): p.run for p in make_plan(tasks_by_architecture.study).runs}
    for where, task in tasks_rates.SETTINGS:
        for arm in ("none", "sdpa-headwise"):
            here, earlier = PLANNED[f"{where} {task}", arm, 18], there[f"1m {where} {task}", arm, 0]
            assert setting(canonical(here)) == setting(canonical(earlier)) is not None
            assert here.probe.times == 10 and here.ask.every * 10 == here.train.tokens // here.train.tokens_per_step


def test_no_seed_was_run_in_these_cells_before():
    assert min(tasks_causes.FRESH) > max(tasks_rates.FRESH) == 17
    assert len(PLANNED) == 126


def test_the_first_half_and_the_last_are_all_layers_and_each_arm_differs_in_one_thing():
    models = {
        arm: canonical(run)["model"]
        for (cell, arm, seed), run in PLANNED.items()
        if (cell, seed) == ("experts track", 18)
    }
    first, last = (models[f"{half}-half"]["gate_layers"] for half in ("first", "last"))
    assert sorted([*first, *last]) == list(range(models["none"]["n_layers"]))
    for arm, key, of in (
        ("scaled", "init", "none"),
        ("static", "gate", "sdpa-headwise"),
        ("first-half", "gate_layers", "sdpa-headwise"),
        ("last-half", "gate_layers", "sdpa-headwise"),
        ("open", "gate", "sdpa-headwise"),
    ):
        assert besides(models[arm], key) == besides(models[of], key)
        assert models[arm][key] != models[of][key]


def test_tasks_of_one_architecture_share_their_stacks():
    shapes = {(cell.split()[0], arm): shape_of(canonical(run)) for (cell, arm, _), run in PLANNED.items()}
    assert len({shape_of(canonical(run)) for run in PLANNED.values()}) == len(set(shapes.values())) <= 14
