"""Where in depth does a gate after attention do what it does, what comes first in training, and is it through the sink?

Bigram-Backcopy with three layers of one head: the gate in all of them, in the first or in the last alone, and starting open. Looks
at every fiftieth step say in which order sink, value drain, massive activation and shut gate come. The cards read both:

    gatelab run backcopy-depth
    gatelab find runs/… --explain 3-layer-bos-lr0.002 --edit
"""

from gatelab import Arm, Study
from gatelab.config import override
from gatelab.studies.backcopy_phases import GATES, cell

GATE = GATES["headwise"]

study = Study(
    name="backcopy-depth",
    question="In three layers of Bigram-Backcopy, in which third does a gate after attention lower the loss or end the sink; what "
    "comes first, sink, value drain, massive activation or shut gate; and does the gate act through the sink?",
    cells={"3-layer-bos-lr0.002": override(cell(2e-3, 3, bos=True), {"probe.times": 20, "probe.sequences": 32})},
    about={"3-layer-bos-lr0.002": "Three layers of one head, BOS at position 0, AdamW at a constant 0.002, 20 looks."},
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("headwise", {"model.gate": f"{GATE}-around=0.5"}, "headwise gate from 0.5, in every layer"),
        Arm("headwise-open", {"model.gate": f"{GATE}-around=0.95"}, "headwise gate from 0.95, in every layer"),
        Arm(
            "first-third",
            {"model.gate": f"{GATE}-around=0.5", "model.gate_layers": "first-third"},
            "headwise gate from 0.5, in the first layer alone",
            control=True,
        ),
        Arm(
            "last-third",
            {"model.gate": f"{GATE}-around=0.5", "model.gate_layers": "last-third"},
            "headwise gate from 0.5, in the last layer alone",
            control=True,
        ),
    ),
    seeds=16,
    primary=("val_loss", "first_token_mass", "value_drain", "massive_max"),
)
