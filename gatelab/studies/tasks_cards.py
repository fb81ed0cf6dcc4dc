"""What do the confirmed anomalies and gains of `gates-on-tasks` and `tasks-by-architecture` look like while they come about?

Those studies look at their runs before training and after it; of gate histograms the archive of the one has none, that of the
other those of one run a comparison. Here are the 21 comparisons in which fresh seeds confirmed something
(docs/results/gates-on-tasks/confirmed.csv, docs/results/tasks-by-architecture/confirmed.csv), with the ungated runs of their
cells, on seeds on which nothing else was run, and a look at every tenth of training: losses, sinks, gate histograms and
first-token mass by layer and head. Items are asked at these steps, at the length of training alone. Cells of `gates-on-tasks` are
as they were run there, with half its batch and tokens. A run differs from one of those in its seed and its looks alone, so the
cards of the atlas find it by what it is. 99 runs of 16 shapes, eight stacks side by side on one GPU:

    gatelab run tasks-cards execution.group=12 execution.slots=8 execution.gpu_share=0.12

The 39 runs of `gates-on-tasks` alone are `'cell=[!1]*'`, four stacks; the command above goes on from there.

It is a picture of what was confirmed, not another test of it: its cells were chosen for what was found in them.
"""

from gatelab import Run, Study, override
from gatelab.studies import gates_on_tasks, tasks_by_architecture
from gatelab.studies.gates_on_tasks import ARMS

LOOKS = 10
FRESH = (32, 33, 34)  # the screens have 0 to 4, what followed them 5 to 23

CONFIRMED = {
    "mqar 0.001": ("sdpa-headwise", "sdpa-elementwise", "value-elementwise"),
    "mqar 0.003": ("sdpa-headwise", "sdpa-elementwise", "value-elementwise"),
    "cite 0.001": ("sdpa-elementwise",),
    "track 0.001": ("sdpa-headwise", "value-elementwise"),
    "1m dense track": ("value-elementwise",),
    "1m dense conflict": ("sdpa-headwise",),
    "1m experts track": ("sdpa-headwise", "sdpa-elementwise", "value-elementwise"),
    "1m experts conflict": ("sdpa-headwise",),
    "1m encoder track": ("sdpa-headwise",),
    "1m encoder select": ("sdpa-headwise", "value-elementwise"),
    "1m encoder identifier": ("sdpa-headwise", "value-elementwise"),
    "1m encoder-decoder conflict": ("sdpa-headwise",),
}
_AS_RUN = {"train.batch_size": 32, "train.tokens": 12_288_000}  # cells of gates-on-tasks


def _looked_at(run: Run) -> Run:
    every = run.train.tokens // run.train.tokens_per_step // LOOKS
    asked = {"ask.items": 66, "ask.every": every, "ask.times": (1,), "ask.stretch": ("none",)}
    return override(run, {"probe.times": LOOKS, "probe.every": 10, **asked})


_there = {
    **{cell: override(run, _AS_RUN) for cell, run in gates_on_tasks.study.cells.items()},
    **tasks_by_architecture.study.cells,
}
_about = {**gates_on_tasks.study.about, **tasks_by_architecture.study.about}

study = Study(
    name="tasks-cards",
    question="In the tasks in which a gate was confirmed to shut, to stay open, to leave heads dead, to attend elsewhere or to "
    "change the loss, when in training does it part from no gate, and what do gates and attention look like then?",
    cells={cell: _looked_at(_there[cell]) for cell in CONFIRMED},
    about={cell: _about[cell] for cell in CONFIRMED},
    arms=tuple(arm for arm in ARMS if arm.name != "sink-logit"),
    only=CONFIRMED,
    seeds=FRESH,
    match_unit=8,
    primary=("val_loss", "task_accuracy@1x"),
)
