"""Does a gate let a deep model learn at twice the rate? The 48-layer models of 1.7 billion weights of arXiv 2505.06708, Table 2,
rows 5 to 14.

48 layers of width 1,536, 16 query and 8 key/value heads of 128, 4,608 channels, q/k-norm, tied (Table 7); sequences of 4,096
tokens. Two budgets: 400 billion tokens in steps of 1,024 sequences, at 4e-3 and 8e-3, and 10^12 in steps of 4,096, at 5.3e-3 and
8e-3. A gate's weights are taken from the feed-forward layers, to the nearest eight channels; sandwich norm is the control that
survives 8e-3 too.

Not printed, and ours here: the data, the ids (Qwen3's), the rounding of the channels, and of the schedule all but its highest
rate: the mixture's warm-up of 1,000 steps and its cosine to 3e-5. Row 7's norm and row 9's headwise gate are in no other cell of
the paper's. None was run:

    gatelab plan paper-48-layers cell=400b arm=none --gpus 8..1024
    gatelab plan paper-48-layers --gpus 64 --device h200
"""

from gatelab import Arm, OptimConfig, ProbeConfig, Run, Study, Text, TrainConfig
from gatelab.models.ladder import SIZES


def recipe(tokens: int, batch_size: int, lr: float) -> Run:
    """The ungated model at a budget, a batch and a highest learning rate."""
    train = TrainConfig(tokens=tokens, batch_size=batch_size, seq_len=4096)
    return Run(
        model=SIZES["paper/1.7b-48l"].model,
        data=Text(paths="train.bin", val_paths="val.bin", dtype="uint32"),
        optim=OptimConfig(lr=lr, warmup=1000 / train.steps, final=3e-5 / lr),
        train=train,
        probe=ProbeConfig(times=4, sequences=16, eval_sequences=64),
    )


study = Study(
    name="paper-48-layers",
    question="In a dense model of 48 layers, does a gate lower the held-out loss at the learning rate that suits the baseline, and "
    "does it train at twice that rate, where arXiv 2505.06708 saw the baseline fail?",
    cells={
        "400b": recipe(400 * 10**9, 1024, 4e-3),
        "400b-8e-3": recipe(400 * 10**9, 1024, 8e-3),
        "1t": recipe(10**12, 4096, 5.3e-3),
        "1t-8e-3": recipe(10**12, 4096, 8e-3),
    },
    about={
        "400b": "400 billion tokens, 1,024 sequences a step, highest rate 4e-3.",
        "400b-8e-3": "The same at 8e-3.",
        "1t": "10^12 tokens, 4,096 sequences a step, highest rate 5.3e-3.",
        "1t-8e-3": "The same at 8e-3.",
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("sandwich", {"model.preset": "paper/sandwich"}, "sandwich norm", control=True),
        Arm("g1-elementwise", {"model.gate": "paper/g1-elementwise"}, "G1, elementwise"),
        Arm("g1-headwise", {"model.gate": "paper/g1-headwise"}, "G1, headwise"),
    ),
    only={
        "400b": ("g1-elementwise", "g1-headwise"),
        "400b-8e-3": ("sandwich", "g1-elementwise"),
        "1t": ("g1-elementwise",),
        "1t-8e-3": ("g1-elementwise",),
    },
    seeds=1,
    match_unit=8,
)
