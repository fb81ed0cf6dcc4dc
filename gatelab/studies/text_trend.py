"""Do loss, first-token attention and the largest activations at 126 million weights go on as at 33? Two seeds: a trend, no test.

gatelab run text-trend data.paths=a.bin.xz,b.bin.xz data.val_paths=val.bin
"""

from gatelab import Study, override
from gatelab.studies.sinks_on_text import study as small
from gatelab.studies.sinks_on_text import text

study = Study(
    name="text-trend",
    question="At 126 million weights, do the first-token sink, the largest activations and the loss differ with an elementwise "
    "gate as they do at 33 million?",
    cells={
        "126m": override(
            text,
            {
                "model.d_model": 768, "model.n_layers": 16, "model.n_heads": 6, "model.d_ff": 2048,
                "optim.lr": 6e-4, "optim.warmup": 200 / 4000, "train.tokens": 4000 * 65_536, "probe.times": 4,
            },
        )
    },
    about={"126m": "16 layers, 6 heads of 128, context 1024, 262 million tokens, BOS at position 0, no q/k-norm."},
    arms=small.arms,
    seeds=2,
    match_unit=8,
)  # fmt: skip
