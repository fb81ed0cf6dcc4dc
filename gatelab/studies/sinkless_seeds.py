"""In how many seeds does Bigram-Backcopy form no sink, with a gate and without? Hundreds of seeds an arm, one stack each.

On a GPU the 256 seeds of an arm train in one process, and the three arms side by side:

    gatelab run sinkless-seeds execution.slots=3
"""

from gatelab import Arm, ProbeConfig, Study
from gatelab.config import override
from gatelab.studies.quickstart import toy

study = Study(
    name="sinkless-seeds",
    question="In what share of seeds does softmax attention form no sink in Bigram-Backcopy, and does a gate after attention "
    "change that share?",
    cells={"bigram-backcopy": override(toy, {"probe": ProbeConfig(times=1, sequences=64, skip_queries=8)})},
    about={
        "bigram-backcopy": "One layer, one head of 64 channels; most tokens need nothing from attention. 1,000 steps of 8 "
        "sequences of 64 tokens, as in quickstart, whose batch was chosen on seeds 0 to 2.",
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"}, "headwise gate"),
        Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "elementwise gate"),
    ),
    seeds=256,
    primary=("val_loss", "first_token_mass", "value_drain", "massive_max"),
)
