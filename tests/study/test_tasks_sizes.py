"""Every task at two sizes; the smaller is a cell of `tasks-by-architecture` where that has the task."""

from gatelab.config import canonical
from gatelab.studies import tasks_by_architecture, tasks_sizes
from gatelab.study.grouping import shape_of
from gatelab.study.plan import make_plan
from gatelab.tasks import TASKS


def test_every_task_is_asked_at_both_sizes():
    assert set(tasks_sizes.study.cells) == {f"{size} {task}" for size in ("1m", "10m") for task in TASKS}
    for task in tasks_by_architecture.TASKS:
        assert tasks_sizes.study.cells[f"1m {task}"] == tasks_by_architecture.study.cells[f"1m dense {task}"]


def test_runs_of_a_size_and_an_arm_are_of_one_shape():
    runs = make_plan(tasks_sizes.study).runs
    assert len(runs) == 180 and len({shape_of(canonical(p.run)) for p in runs}) == 4
