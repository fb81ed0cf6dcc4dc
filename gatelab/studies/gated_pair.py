"""A pair of about one million weights, without and with G1 gates: small enough to be kept and looked at in tests.

Trained on English text in a vocabulary of 2,048, for as long as sinks take to form; a few minutes on one H100:

    gatelab run gated-pair data.paths=train.bin.xz data.val_paths=val.bin
"""

from gatelab import Arm, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Text, TrainConfig

study = Study(
    name="gated-pair",
    question="In a model of one million weights, does a first-token sink form on text, and does a gate after attention "
    "keep it from forming?",
    cells={
        "small": Run(
            model=ModelConfig(d_model=128, n_layers=6, n_heads=2, d_ff=192, tied_embeddings=True),
            data=Text(paths="train.bin", val_paths="val.bin"),
            optim=OptimConfig(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, schedule="cosine", warmup=0.02, final=0.1),
            train=TrainConfig(tokens=8000 * 65_536, batch_size=256, seq_len=256),
            probe=ProbeConfig(times=8, sequences=32, eval_sequences=256),
        )
    },
    about={"small": "A decoder of one million weights, 6 layers, 2 heads of 64, context 256, BOS at position 0."},
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("g1-elementwise", {"model.gate": "paper/g1-elementwise"}, "G1, elementwise"),
    ),
    seeds=1,
    match_unit=8,
)
