"""Which gates keep natural-text sinks from forming? Seven arms of one pair each: a pilot of the paper's ordering.

The setting is that of `sinks-on-text`; about three minutes an arm on one H200. Give it a corpus of your own:

    gatelab run gates-on-text data.paths=a.bin.xz,b.bin.xz data.val_paths=val.bin
"""

from gatelab import Arm, Study, override
from gatelab.studies.sinks_on_text import text

study = Study(
    name="gates-on-text",
    question="On real text, which gates lower first-token attention, the largest activations and the held-out loss, and "
    "is their order that of arXiv 2505.06708?",
    # 4000 steps; the warm-up stays at 200.
    cells={"text": override(text, {"train.tokens": 4000 * 65_536, "optim.warmup": 200 / 4000, "probe.times": 4})},
    about={
        "text": "A decoder of 33 million weights, 8 layers, 4 heads of 128, context 1024, BOS at position 0, no q/k-norm."
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("g1-elementwise", {"model.gate": "paper/g1-elementwise"}, "G1, elementwise"),
        Arm("g1-headwise", {"model.gate": "paper/g1-headwise"}, "G1, headwise"),
        Arm("g2-elementwise", {"model.gate": "paper/g2-elementwise"}, "G2, on the values"),
        Arm("g1-ns-sigmoid", {"model.gate": "paper/g1-ns-sigmoid"}, "G1, never below one half"),
        Arm("g1-static", {"model.gate": "paper/g1-input-independent"}, "G1, input-independent", control=True),
        Arm("sink-logit", {"model.softmax": "sink-logit"}, "a learned sink logit, no gate", control=True),
    ),
    seeds=1,
    match_unit=8,
)
