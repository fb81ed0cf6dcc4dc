"""Does what a gate after attention does to the loss of Bigram-Backcopy grow with the width? 32 to 256 channels, three rates each.

One layer of one head, as wide as the model, with a BOS. Learning rates go with 1/width from 0.002 at 64 channels, which is the best
of three in `backcopy-phases`; every width has that rate, half of it and twice, and each arm is judged at its own best. On a GPU the
48 runs of a width and gate train as one stack:

    gatelab run backcopy-widths execution.group=48 execution.slots=3
"""

from gatelab import Study
from gatelab.config import override
from gatelab.studies.backcopy_phases import cell
from gatelab.studies.backcopy_rates import ARMS, FRESH

WIDTHS = (32, 64, 128, 256)
FACTORS = (0.5, 1.0, 2.0)
POINTS = {f"width-{w}-lr{2e-3 * 64 / w * f:g}": (w, 2e-3 * 64 / w * f) for w in WIDTHS for f in FACTORS}

study = Study(
    name="backcopy-widths",
    question="In Bigram-Backcopy, does the effect of a gate after attention on the held-out loss grow with the width of the model?",
    cells={name: override(cell(rate, 1, bos=True), {"model.d_model": width}) for name, (width, rate) in POINTS.items()},
    about={
        name: f"One layer of one head of {width} channels, BOS at position 0, AdamW at a constant {rate:g}."
        for name, (width, rate) in POINTS.items()
    },
    arms=ARMS,
    seeds=FRESH,
    primary=("val_loss", "first_token_mass"),
)
