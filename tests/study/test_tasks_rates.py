"""The confirmed cells at three rates: their middle one is the cell as it was, and the seeds are new."""

from gatelab.config import canonical
from gatelab.studies import tasks_by_architecture, tasks_rates, tasks_rates_others
from gatelab.study.grouping import shape_of
from gatelab.study.plan import make_plan


def test_the_middle_rate_is_the_cell_that_was_confirmed():
    for architecture, task in tasks_rates.SETTINGS:
        middle = tasks_rates.study.cells[f"{architecture} {task} lr0.001"]
        assert middle == tasks_by_architecture.study.cells[f"1m {architecture} {task}"]
    assert min(tasks_rates.study.seeds) == 13  # 0 to 4 are the screen's, 5 to 12 its confirmation's


def test_all_rates_and_seeds_of_an_arm_are_of_one_shape():
    runs = make_plan(tasks_rates.study).runs
    assert len(runs) == 135 and len({p.fingerprint for p in runs}) == 135
    assert len({shape_of(canonical(p.run)) for p in runs}) == 6  # tasks of one architecture share theirs


def test_the_others_are_the_rest_of_its_smaller_models_on_the_same_seeds_and_rates():
    others = tasks_rates_others.study
    runs = make_plan(others).runs
    assert len(runs) == 945 and "945 runs" in tasks_rates_others.__doc__ and round(945 / 19) == 50
    there = {f"{where} {task}" for where, task in (*tasks_rates.SETTINGS, *tasks_rates_others.OTHERS)}
    assert there == {name.removeprefix("1m ") for name in tasks_by_architecture.study.cells if name.startswith("1m ")}
    assert {p.fingerprint for p in runs}.isdisjoint(p.fingerprint for p in make_plan(tasks_rates.study).runs)
    for where, task in tasks_rates_others.OTHERS:
        assert others.cells[f"{where} {task} lr0.001"] == tasks_by_architecture.study.cells[f"1m {where} {task}"]
    assert others.seeds == tasks_rates.study.seeds and others.arms == tasks_rates.study.arms
