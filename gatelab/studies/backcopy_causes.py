"""What in a gate ends the sink of Bigram-Backcopy, and what in it costs loss at a large learning rate? Parts of gates, other ways.

A gate multiplies (non-linearity between W_V and W_O), may shut (sparsity), and depends on the query. Arms have some of the three:
never below one half, a norm a head, SiLU, and a gate that is the same for every token; and two that take the sink's place
without a gate, a learned logit and a learned key. Three cells of `backcopy-phases`:

    gatelab run backcopy-causes
    gatelab find runs/… --explain 1-layer-bos-lr0.002
"""

from gatelab import Arm, Study
from gatelab.studies.backcopy_phases import GATES, cell

POINTS = {"bos-lr0.002": (2e-3, True), "bos-lr0.008": (8e-3, True), "plain-lr0.008": (8e-3, False)}

study = Study(
    name="backcopy-causes",
    question="In Bigram-Backcopy, which part of a gate after attention ends the sink, and which costs loss at a large learning "
    "rate: that it multiplies, that it may shut, or that it depends on the query?",
    cells={f"1-layer-{name}": cell(rate, 1, bos=bos) for name, (rate, bos) in POINTS.items()},
    about={
        f"1-layer-{name}": f"One layer, one head, {'BOS' if bos else 'an ordinary token'} at position 0, AdamW at {rate:g}."
        for name, (rate, bos) in POINTS.items()
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("headwise", {"model.gate": f"{GATES['headwise']}-around=0.5"}, "headwise gate from 0.5: all three"),
        Arm(
            "elementwise", {"model.gate": f"{GATES['elementwise']}-around=0.5"}, "elementwise gate from 0.5: all three"
        ),
        Arm("ns-sigmoid", {"model.gate": "paper/g1-ns-sigmoid"}, "never below one half: no sparsity"),
        Arm(
            "rmsnorm",
            {"model.gate": "none", "model.output_map": "rms"},
            "a norm a head: non-linear, nothing that shuts",
        ),
        Arm("silu", {"model.gate": "paper/g1-silu"}, "SiLU in the place of the sigmoid: no bound above"),
        Arm("static", {"model.gate": "paper/g1-input-independent"}, "the same for every token", control=True),
        Arm("sink-logit", {"model.softmax": "sink-logit"}, "a learned sink logit, no gate", control=True),
        Arm("key-bias", {"model.softmax": "key-bias"}, "a learned key without a value, no gate", control=True),
    ),
    seeds=16,
    primary=("val_loss", "first_token_mass", "value_drain", "massive_max"),
)
