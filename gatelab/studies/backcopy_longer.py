"""Does a gate that starts open end the sink of Bigram-Backcopy if it is trained longer? One point of `backcopy-phases`, at one, two
and four times its steps.

    gatelab run backcopy-longer
"""

from gatelab import Study
from gatelab.config import override
from gatelab.studies.backcopy_phases import cell, recipe

STEPS = (1000, 2000, 4000)

study = Study(
    name="backcopy-longer",
    question="In Bigram-Backcopy with a token that always comes first, one layer and AdamW at 0.002, does a sink that a gate from "
    "0.95 leaves standing after 1,000 steps end with more training?",
    cells={f"{steps}-steps": override(cell(2e-3, 1, bos=True), {"train.tokens": steps * 8 * 64}) for steps in STEPS},
    about={f"{steps}-steps": f"{steps:,} steps of 8 sequences of 64 tokens." for steps in STEPS},
    arms=tuple(arm for arm in recipe().arms if arm.name in ("none", "elementwise-half", "elementwise-open")),
    seeds=12,
    primary=("val_loss", "first_token_mass", "value_drain", "massive_max"),
)
