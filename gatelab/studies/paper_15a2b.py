"""Which gates help a mixture of experts of 15 billion weights? The main experiment of arXiv 2505.06708, Table 1, row by row.

24 layers of width 2,048, 32 query and 4 key/value heads of 128, 8 of 128 experts of 768 channels a token, q/k-norm, untied
(Table 7); 100,000 steps of 1,024 sequences of 4,096 tokens, AdamW with 1,000 steps of warm-up to 2e-3 and a cosine to 3e-5.
Gates come on top of the baseline, which is not narrowed: rows 2 to 4 are what their weights could have been spent on instead.

Not printed, and ours here: the data, the ids (Qwen3's), the coefficients of the two router losses, AdamW's other settings, the
base of RoPE. The paper counts 2.54 billion active weights, which Table 7 does not add up to (2.0 here). One arm takes three days
of 64 H200s by plan; none was run:

    gatelab plan paper-15a2b arm=none --gpus 8..1024
    gatelab plan paper-15a2b --gpus 64 --device h200
"""

from gatelab import Arm, OptimConfig, ProbeConfig, Run, Study, Text, TrainConfig
from gatelab.models.ladder import SIZES

STEPS = 100_000

study = Study(
    name="paper-15a2b",
    question="In a mixture of experts of 15 billion weights, which gates lower the held-out loss, first-token attention and the "
    "largest activations, and is their order that of arXiv 2505.06708?",
    cells={
        "15a2b": Run(
            model=SIZES["paper/15a2b"].model,
            data=Text(paths="train.bin", val_paths="val.bin", dtype="uint32"),
            optim=OptimConfig(lr=2e-3, warmup=1000 / STEPS, final=3e-5 / 2e-3),
            train=TrainConfig(tokens=STEPS * 1024 * 4096, batch_size=1024, seq_len=4096),
            probe=ProbeConfig(times=4, sequences=16, eval_sequences=64),
        )
    },
    about={"15a2b": "8 of 128 experts, 24 layers, 4,096 tokens, 419 billion of them."},
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("kv8", {"model.preset": "paper/kv8"}, "8 key/value heads", control=True),
        Arm("q48", {"model.preset": "paper/q48"}, "48 query heads", control=True),
        Arm("more-experts", {"model.preset": "paper/more-experts"}, "4 experts more, all active", control=True),
        Arm("g1-elementwise", {"model.gate": "paper/g1-elementwise"}, "G1, elementwise"),
        Arm("g2-elementwise", {"model.gate": "paper/g2-elementwise"}, "G2, on the values"),
        Arm("g3-elementwise", {"model.gate": "paper/g3-elementwise"}, "G3, on the keys"),
        Arm("g4-elementwise", {"model.gate": "paper/g4-elementwise"}, "G4, on the queries"),
        Arm("g5", {"model.gate": "paper/g5"}, "G5, on the output"),
        Arm("g1-headwise", {"model.gate": "paper/g1-headwise"}, "G1, headwise"),
        Arm("g2-headwise", {"model.gate": "paper/g2-headwise"}, "G2, headwise"),
        Arm("g1-shared", {"model.gate": "paper/g1-shared"}, "G1, shared by heads"),
        Arm("g2-shared", {"model.gate": "paper/g2-shared"}, "G2, shared by heads"),
        Arm("g1-additive-silu", {"model.gate": "paper/g1-additive-silu"}, "G1, added, SiLU"),
        Arm("g1-silu", {"model.gate": "paper/g1-silu"}, "G1, SiLU"),
    ),
    seeds=1,
    match=None,
)
