"""What do gates gain in the other cells of `tasks-by-architecture` when each arm has its own best learning rate? 21 cells.

That study trained every arm at one rate. `tasks-rates` asks of the three settings whose loss a gate lowered there; here all others
of 1.3 million weights are, so that every one of its 24 has been asked. Three arms at three rates on the seeds of `tasks-rates`, of
which nothing was run in these cells: 945 runs, and by the 19 runs a GPU-minute of `tasks-by-architecture` 50 minutes of one H200
(the 135 of `tasks-rates`, beside another study, took eleven). It goes on where it was left:

    gatelab run tasks-rates-others execution.group=30

Or a seed at a time, `gatelab run tasks-rates-others seed=13 execution.group=9`, and so on into the same folder.
"""

from gatelab.studies.tasks_by_architecture import ARCHITECTURES, TASKS
from gatelab.studies.tasks_rates import SETTINGS, recipe

OTHERS = tuple((where, task) for where in ARCHITECTURES for task in TASKS if (where, task) not in SETTINGS)

study = recipe(OTHERS, name="tasks-rates-others")
