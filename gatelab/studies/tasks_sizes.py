"""At which size does each of the fifteen tasks give signal? Decoders of 1.3 and 10.4 million weights, all tasks at default knobs.

What a task measures nothing of below some size is no task for a study below it. As in `tasks-by-architecture`, of which six tasks
are these at 1.3 million weights; its mixtures and other architectures are not repeated. All runs of a size and an arm are of one
shape:

    gatelab run tasks-sizes arm=none execution.group=45

These 90 runs are told of in docs/results/tasks-sizes.md; those of the other arm were not made.
"""

from gatelab import Study, override
from gatelab.config import Run
from gatelab.studies.gates_on_tasks import ARMS
from gatelab.studies.tasks_by_architecture import cell
from gatelab.tasks import TASKS

SIZES = {"1m": {}, "10m": {"model.d_model": 384, "model.n_layers": 5, "model.n_heads": 6}}


def _cell(task: str, size: str) -> Run:
    return override(cell(task, "1m", "dense", lr=1e-3, tokens=24_576_000), SIZES[size])


study = Study(
    name="tasks-sizes",
    question="At which of two sizes does a decoder learn each task, and does a headwise gate after attention change that?",
    cells={f"{size} {task}": _cell(task, size) for size in SIZES for task in TASKS},
    about={f"{size} {task}": f"The task {task}, dense, {size}, AdamW at 0.001." for size in SIZES for task in TASKS},
    arms=tuple(arm for arm in ARMS if arm.name in ("none", "sdpa-headwise")),
    seeds=3,
    match_unit=8,
    primary=("val_loss", "task_accuracy@1x"),
)
