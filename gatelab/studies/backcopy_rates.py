"""Which learning rates does Bigram-Backcopy bear with a gate after attention and without, and which is best? Twelve rates, by
doublings.

One layer with a BOS, as in `backcopy-phases`; seeds on which nothing else was run. In a pilot (CPU, two other seeds, 500 steps)
every arm ended below the loss of its untrained weights at 0.256 and above it at 1.024, so that the ladder ends there. On a GPU the
192 runs of a gate train as one stack:

    gatelab run backcopy-rates execution.group=192 execution.slots=3

The claims of the ledger read it from the pack of its folder, docs/results/backcopy-rates/folder.parquet, which keeps the held-out
loss of step 0: a run that ends above it is lost, as is one that diverges.
"""

from gatelab import Study
from gatelab.studies.backcopy_phases import cell, recipe

RATES = tuple(5e-4 * 2**k for k in range(12))
ARMS = tuple(arm for arm in recipe().arms if arm.name in ("none", "headwise-half", "elementwise-half"))
FRESH = tuple(range(256, 272))  # backcopy-key has those before

study = Study(
    name="backcopy-rates",
    question="In Bigram-Backcopy, does a gate after attention raise the largest learning rate at which no run is lost, and does it "
    "move the best one?",
    cells={f"lr{rate:g}": cell(rate, 1, bos=True) for rate in RATES},
    about={f"lr{rate:g}": f"One layer of one head, BOS at position 0, AdamW at a constant {rate:g}." for rate in RATES},
    arms=ARMS,
    seeds=FRESH,
    primary=("val_loss",),
)
