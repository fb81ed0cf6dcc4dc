"""Why do gates after attention harm learning to cite one of two documents? Eight arms, and three rates.

`gates-on-tasks` has the harm in its cell `easy cite 0.001`, of 12.3 million tokens: seeds 0 to 4 in the screen, 5 to 12 in the test
that confirmed it. A run here differs from one of those in its seed, of which nothing was run, and is looked at ten times. Each
arm answers one question: the ungated model begun smaller (`init=scaled`: what writes to the residual stream, over the root of
eight), the gate without the token, the gate begun open, the gate in one half of the layers alone. At a third and at three times
the rate the question is whether the harm is one of the learning rate, in runs of twice the tokens whether it is one of their
number. Runs of a shape share a stack, whatever their rate:

    gatelab run citing-causes 'cell=cite*' execution.group=24
    gatelab run citing-causes 'cell=longer*' execution.group=8
    gatelab find runs/citing-causes --explain 'cite 0.001'

Declared before its runs: held-out loss after the last step of `cite 0.001`, each of seven arms minus no gate within seeds,
Student's t over eight pairs, two-sided, Holm over the seven at 5%; the same of each gate at its own best of three rates beside no
gate at its own, over the two; the causes by the hypotheses `small-start`, `reads-token`, `first-layers`, `last-layers`, `own-rate`
and `training-length` of gatelab/analysis/hypotheses.py.
"""

from gatelab import Arm, Run, Study, override
from gatelab.studies.gates_on_tasks import recipe
from gatelab.studies.tasks_causes import ARMS

FRESH = tuple(range(13, 21))
LOOKS, STEPS = 10, 3000
RATES = (3e-4, 1e-3, 3e-3)
_THERE = recipe(tasks=("cite",), sizes={}, easy=RATES).cells


def _cell(lr: float, steps: int = STEPS) -> Run:
    looks = {"probe.times": LOOKS, "ask.every": steps // LOOKS, "ask.items": 66}
    return override(_THERE[f"easy cite {lr:g}"], {"train.batch_size": 32, "train.tokens": steps * 32 * 128, **looks})


study = Study(
    name="citing-causes",
    question="Where gates after attention harm learning to cite one of two documents, is it how attention begins, that the gate "
    "reads the token, some of the layers, the learning rate, or too little training?",
    cells={f"cite {lr:g}": _cell(lr) for lr in RATES} | {"longer cite 0.001": _cell(1e-3, 2 * STEPS)},
    about={f"cite {lr:g}": f"The task cite of two documents, AdamW at {lr:g}, {LOOKS} looks." for lr in RATES}
    | {"longer cite 0.001": f"The same at 0.001 with twice the tokens, {LOOKS} looks."},
    arms=(
        *ARMS[:4],
        Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "G1, elementwise, in every layer"),
        *ARMS[4:],
    ),
    only=dict.fromkeys(
        ("cite 0.0003", "cite 0.003", "longer cite 0.001"), ("scaled", "sdpa-headwise", "sdpa-elementwise")
    ),
    seeds=FRESH,
    match_unit=8,
    primary=("val_loss", "task_accuracy@1x"),
)
