"""Why do gates after attention lower the loss of three tasks of `tasks-by-architecture`? Seven arms, each of which answers one
question.

That study confirmed that a headwise gate lowers the loss of an encoder's `select` and `identifier`, and of `track` with experts. A
gate that starts around one half also halves what attention adds when training begins, reads the token, and is in every layer. Here
are the ungated model begun smaller (`init=scaled`: what writes to the residual stream, attention and feed-forward layer alike, over
the root of eight), the gate without the token, the gate in one half of the layers alone, and the gate begun open. A run differs
from one of that study in its seed, and is looked at ten times, so that cards have curves. 126 runs on seeds of which nothing else
was run; what differs in shape are gate and architecture, so that a stack holds both tasks of the encoder:

    gatelab run tasks-causes execution.group=12
    gatelab find runs/tasks-causes --explain 'encoder select'

What is judged is registered in gatelab/analysis/hypotheses.py: `small-start`, `reads-token`, `first-layers`, `last-layers`. Whether
the gain is one of the learning rate is what `tasks-rates` is for.
"""

from gatelab import Arm, Study, override
from gatelab.studies.tasks_by_architecture import cell
from gatelab.studies.tasks_rates import SETTINGS

FRESH = tuple(range(18, 24))  # the screen has 0 to 4, its confirmation 5 to 12, tasks-rates 13 to 17
LOOKS = 10  # in 6,000 steps; items are asked at the same steps
GATE = "sdpa-headwise"

# What each asks is said above; of four layers.
ARMS = (
    Arm("none", {"model.gate": "none"}, "no gate"),
    Arm(
        "scaled",
        {"model.gate": "none", "model.init": "scaled"},
        "no gate; what writes to the residual stream begins at 0.35",
        control=True,
    ),
    Arm(
        "static",
        {"model.gate": "sdpa-headwise-static"},
        "headwise gate from 0.5 that is the same for every token",
        control=True,
    ),
    Arm("sdpa-headwise", {"model.gate": GATE}, "G1, headwise, in every layer"),
    Arm(
        "first-half",
        {"model.gate": GATE, "model.gate_layers": (0, 1)},
        "G1, headwise, in the first two layers of four alone",
        control=True,
    ),
    Arm(
        "last-half",
        {"model.gate": GATE, "model.gate_layers": (2, 3)},
        "G1, headwise, in the last two layers of four alone",
        control=True,
    ),
    Arm("open", {"model.gate": f"{GATE}-bias-around=0.95"}, "G1, headwise, begun at 0.95"),
)

study = Study(
    name="tasks-causes",
    question="Where a headwise gate after attention lowers the loss of a task, is it that attention begins with half its output, "
    "that the gate reads the token, or what it does in the first or the last layers?",
    cells={
        f"{where} {task}": override(
            cell(task, "1m", where, lr=1e-3, tokens=24_576_000), {"probe.times": LOOKS, "ask.every": 6000 // LOOKS}
        )
        for where, task in SETTINGS
    },
    about={
        f"{where} {task}": f"The task {task}, {where}, 1m, AdamW at 0.001, {LOOKS} looks." for where, task in SETTINGS
    },
    arms=ARMS,
    seeds=FRESH,
    match_unit=8,
    primary=("val_loss", "task_accuracy@1x"),
)
