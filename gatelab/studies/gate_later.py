"""What does a gate do that is inserted into a trained model? The continued-pretraining control of arXiv 2505.06708.

Its authors report that neither existing sinks nor quality change: a gate that starts as the identity hardly moves, and
one that starts at random costs what it has to recover. Two cells: `pretrained` has no gate in any arm that differs, and
in `continued` each arm goes on from its ungated weights.

    gatelab run gate-later data.paths=a.bin.xz,b.bin.xz data.val_paths=val.bin
"""

from gatelab import Arm, Study, override
from gatelab.studies.sinks_on_text import text

study = Study(
    name="gate-later",
    question="Does a gate that is inserted into a trained model lower its first-token attention or its held-out loss, "
    "against going on without one and against a gate from the start?",
    cells={
        "pretrained": override(text, {"train.tokens": 300_000_000}),
        "continued": override(text, {"train.tokens": 100_000_000, "optim.lr": 3e-4}),
    },
    about={
        "pretrained": "The setting of sinks-on-text, from scratch.",
        "continued": "Gone on from the ungated weights of `pretrained`, with what the arm inserts.",
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("as-identity", {"model.gate": "sdpa-elementwise-two_sigmoid-init=1"}, "2σ with zero weights: starts as 1"),
        Arm("at-random", {"model.gate": "sdpa-elementwise"}, "σ with random weights: starts around ½"),
    ),
    seeds=1,
    match=None,
    follows={"continued": ("pretrained", "none")},
)
