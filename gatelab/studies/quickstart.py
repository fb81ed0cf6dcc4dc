"""The first study: two cells, four arms, three seeds, about three minutes on two CPU cores. Copy it to write your own."""

from gatelab import Arm, BigramBackcopy, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Text, TrainConfig

# The smallest setting in which softmax attention is known to form a sink and a value drain (arXiv 2410.13835).
toy = Run(
    model=ModelConfig(
        d_model=64, n_layers=1, n_heads=1, norm="layer", norm_eps=1e-5, positions="learned", mlp="relu", init="fan-in"
    ),
    data=BigramBackcopy(),
    optim=OptimConfig(lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4, schedule="constant", warmup=0, clip=None),
    train=TrainConfig(tokens=8 * 64 * 1000, batch_size=8, seq_len=64),
    probe=ProbeConfig(times=5, skip_queries=8),
)
text = Run(
    model=ModelConfig(d_model=64, n_layers=3, n_heads=2),
    data=Text(paths="stdlib", tokenizer="bpe:1024"),
    optim=OptimConfig(lr=3e-3),
    train=TrainConfig(tokens=480_000, batch_size=8, seq_len=128),
    probe=ProbeConfig(times=5),
)

study = Study(
    name="quickstart",
    question="What does a gate after attention do to the loss, the attention sink and the largest activations, "
    "against no gate and against a control that is not a gate?",
    cells={"bigram-backcopy": toy, "text": text},
    about={
        "bigram-backcopy": "A one-layer, one-head toy whose control is known to form a sink: "
        "most tokens need nothing from attention. Batch and steps were chosen on these very seeds so that the control "
        "forms one in each; confirm with seed=8..15.",
        "text": "A small language model on real code and prose.",
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"}, "headwise gate"),
        Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "elementwise gate"),
        Arm("sink-logit", {"model.softmax": "sink-logit"}, "learned sink logit", control=True),
    ),
    seeds=3,
    primary=("val_loss", "first_token_mass", "value_drain", "massive_max"),
)
