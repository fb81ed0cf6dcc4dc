"""Do the gains confirmed in `tasks-by-architecture` stay when each arm has its own best learning rate? Three cells.

That study trained every arm at one rate, the best of an ungated pilot, so that a gate may have gained what a rate would. Here the
settings whose loss a gate lowered are trained at a third of that rate and at three times it too, on seeds on which nothing else
was run. Runs of all rates and seeds of an arm are of one shape, and on a GPU one stack of 15, or with that of another task:

    gatelab run tasks-rates execution.group=30
"""

from collections.abc import Sequence

from gatelab import Study
from gatelab.studies.gates_on_tasks import ARMS
from gatelab.studies.tasks_by_architecture import cell

RATES = (3e-4, 1e-3, 3e-3)
SETTINGS = (("encoder", "select"), ("encoder", "identifier"), ("experts", "track"))
QUESTION = "Does a gate after attention change what a model learns of a task when each arm is trained at the best of three rates?"
FRESH = tuple(range(13, 18))  # the screen has 0 to 4, its confirmation 5 to 12


def recipe(settings: Sequence[tuple[str, str]], *, name: str, question: str = QUESTION) -> Study:
    """Settings of that study, (architecture, task) each, at the three rates."""
    points = {f"{where} {task} lr{rate:g}": (task, where, rate) for where, task in settings for rate in RATES}
    return Study(
        name=name,
        question=question,
        cells={n: cell(task, "1m", where, lr=rate, tokens=24_576_000) for n, (task, where, rate) in points.items()},
        about={n: f"The task {task}, {where}, 1m, AdamW at {rate:g}." for n, (task, where, rate) in points.items()},
        arms=tuple(arm for arm in ARMS if arm.name in ("none", "sdpa-headwise", "sdpa-elementwise")),
        seeds=FRESH,
        match_unit=8,
        primary=("val_loss", "task_accuracy@1x"),
    )


study = recipe(
    SETTINGS,
    name="tasks-rates",
    question="Where a gate after attention lowered the loss of a task, does it still when each arm is trained at the best of three "
    "learning rates?",
)
