"""What do the confirmed anomalies of `backcopy-phases` look like while they come about? The same cells and gates, looked at often.

The phase diagram looks at its runs before training and after it, and its archive keeps no histogram of gates. Here are its twelve
comparisons in which fresh seeds confirmed something (docs/results/backcopy-phases/confirmed.csv), with the ungated runs of their
cells, on seeds on which nothing else was run, and a look at every twentieth of training: losses, sinks, gate histograms and
first-token mass by layer and head. A run differs from one of the phase diagram in its seed and its looks alone, so the cards of
the atlas find it by what it is. 304 runs of ten shapes:

    gatelab run backcopy-cards execution.group=256 execution.slots=3

The archive of its folder keeps of each run run.json, environment.json, done.json and rows.jsonl to five digits: every row of the
last look, and of each look what cards draw: losses (those of training at looks alone), first-token mass, value drain, largest
activations, gate means and shares below a threshold of the model and by layer, gate histograms by layer, and first-token mass by
head.

It is a picture of what was confirmed, not another test of it: its cells were chosen for what was found in them.
"""

from gatelab import Study
from gatelab.config import override
from gatelab.studies.backcopy_phases import recipe

LOOKS = 20
FRESH = tuple(range(512, 528))  # backcopy-key has 0 to 255, the ladders of rates and widths 256 to 271

phases = recipe()
CONFIRMED = {
    "1-layer-bos-lr0.0005": ("headwise-open", "elementwise-open"),
    "1-layer-bos-lr0.002": ("elementwise-open",),
    "1-layer-bos-lr0.008": ("headwise-half",),
    "1-layer-plain-lr0.008": ("headwise-half", "headwise-open", "elementwise-half"),
    "2-layer-bos-lr0.0005": ("headwise-open", "elementwise-half", "elementwise-open"),
    "2-layer-bos-lr0.002": ("elementwise-open",),
    "2-layer-plain-lr0.008": ("headwise-half",),
}

study = Study(
    name="backcopy-cards",
    question="In the settings of Bigram-Backcopy in which a gate after attention was confirmed to leave the sink or to cost "
    "loss, when in training do loss, sink and gate part from those of no gate, and what do gates and attention look like then?",
    cells={cell: override(phases.cells[cell], {"probe.times": LOOKS}) for cell in CONFIRMED},
    about={cell: phases.about[cell] for cell in CONFIRMED},
    arms=phases.arms,
    only=CONFIRMED,
    seeds=FRESH,
    primary=phases.primary,
)
