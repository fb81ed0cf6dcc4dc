"""Why do gates after attention harm learning to cite one of two documents? Eight arms, small enough for a CPU.

`gates-on-tasks` has the harm in its cell `easy cite 0.001` (1.33 million weights, confirmed on fresh seeds). Two pairs of this
model of 0.37 million weights and half the length (64 channels, two layers, 64 tokens, 1,500 steps of 32) had it too, in seeds 0
and 1: held-out loss +0.31 and +0.77 nats with a headwise gate. Here are six seeds of which nothing was run. Each arm answers one
question: the ungated model begun smaller (`init=scaled`: what writes to the residual stream, over the root of four), the gate
without the token, the gate begun open, the gate in one of the two layers alone. At three times the rate the question is whether
the harm is one of the learning rate. About two hours of one core:

    gatelab run citing-causes
    gatelab find runs/citing-causes --explain 'cite 0.001'

Declared before its runs: held-out loss after the last step at 0.001, each of seven arms minus no gate within seeds, Student's t
over six pairs, two-sided, Holm over the seven at 5%; the causes by the hypotheses `small-start`, `reads-token`, `first-layers`,
`last-layers` and `own-rate` of gatelab/analysis/hypotheses.py.
"""

from gatelab import Arm, Study, override
from gatelab.studies.gates_on_tasks import recipe

FRESH = tuple(range(2, 8))
GATE = "sdpa-headwise"
_LARGE = recipe(tasks=("cite",), sizes={}, easy=(1e-3, 3e-3)).cells
_SMALL = {
    "model.d_model": 64,
    "model.n_layers": 2,
    "train.seq_len": 64,
    "train.batch_size": 32,
    "train.tokens": 1500 * 32 * 64,
    "probe.times": 5,
    "ask.every": 300,
    "ask.items": 66,
    "ask.stretch": ("none",),
}

study = Study(
    name="citing-causes",
    question="Where gates after attention harm learning to cite one of two documents, is it how attention begins, that the gate "
    "reads the token, one of the layers, or the learning rate?",
    cells={
        "cite 0.001": override(_LARGE["easy cite 0.001"], _SMALL),
        "cite 0.003": override(_LARGE["easy cite 0.003"], _SMALL),
    },
    about={
        "cite 0.001": "The task cite of two documents, two layers of 64 channels, AdamW at 0.001, five looks.",
        "cite 0.003": "The same at 0.003.",
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm(
            "scaled",
            {"model.gate": "none", "model.init": "scaled"},
            "no gate; what writes to the residual stream begins at 0.5",
            control=True,
        ),
        Arm(
            "static",
            {"model.gate": "sdpa-headwise-static"},
            "headwise gate from 0.5 that is the same for every token",
            control=True,
        ),
        Arm("sdpa-headwise", {"model.gate": GATE}, "G1, headwise, in both layers"),
        Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "G1, elementwise, in both layers"),
        Arm(
            "first-half",
            {"model.gate": GATE, "model.gate_layers": (0,)},
            "G1, headwise, in the first layer",
            control=True,
        ),
        Arm(
            "last-half",
            {"model.gate": GATE, "model.gate_layers": (1,)},
            "G1, headwise, in the last layer",
            control=True,
        ),
        Arm("open", {"model.gate": f"{GATE}-bias-around=0.95"}, "G1, headwise, begun at 0.95"),
    ),
    only={"cite 0.003": ("sdpa-headwise", "sdpa-elementwise")},
    seeds=FRESH,
    match_unit=8,
    primary=("val_loss", "task_accuracy@1x"),
)
