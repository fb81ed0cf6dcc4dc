"""How much of what a gate gains early on text is the scale of attention's output when training begins? 33 million weights.

A gate that starts around one half halves what attention writes to the residual stream; the ungated model of `text-rates` writes it
whole, with weights of one size in all layers. Here both are also begun with what writes to the residual stream divided by the root
of the number of layers that do (`init=scaled`, as GPT-2), and the ungated model's attention by two alone is what
`benchmarks/output_scale.py --size 33m` trains. The short run of that study, at its rate of 0.001:

    gatelab run text-start data.paths=train_a.bin.xz data.val_paths=val.bin train.tokens=39321600 execution.group=6
"""

from gatelab import Arm, Study, override
from gatelab.studies.text_rates import study as rates

STARTS = {"normal": "weights begin with one size", "scaled": "what writes to the residual stream begins at a quarter"}

study = Study(
    name="text-start",
    question="On real text, does a gate after attention lower the held-out loss of a short run whichever way weights are begun?",
    cells={f"prose {init}": override(rates.cells["prose lr0.001"], {"model.init": init}) for init in STARTS},
    about={f"prose {init}": f"33 million weights, old prose, AdamW at 0.001; {what}." for init, what in STARTS.items()},
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("g1-headwise", {"model.gate": "paper/g1-headwise"}, "G1, headwise"),
    ),
    seeds=3,
    match_unit=8,
)
