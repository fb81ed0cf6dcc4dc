"""Does a gate help a model to live through a change of its positions? The long-context recipe of arXiv 2505.06708, 4.4.

Three cells, each going on from the weights of the one before:

    short       sequences of 4096 tokens, RoPE base 10,000
    long        80B tokens more at 32,768, RoPE base 1,000,000
    stretched   no training: YaRN by 4, looked at with 131,072 tokens

The paper prints neither the batch and learning rate of the continuation nor YaRN's factor: the ones here are ours, and 4
follows from the lengths. As it stands, this is weeks of a cluster. `recipe` makes the same three cells of any size:

    from gatelab.studies.paper_long_context import recipe
    study = recipe(ModelConfig(d_model=256, n_layers=4, n_heads=2, rope_theta=1e4), Text(), short=256, tokens=(10**8, 10**7))
"""

from gatelab import Arm, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Text, TrainConfig, override
from gatelab.config.data import Data
from gatelab.models.ladder import SIZES

LONG_THETA = 1_000_000.0
FOLLOWS: dict[str, str | tuple[str, str]] = {"long": "short", "stretched": "long"}


def recipe(
    model: ModelConfig,
    data: Data,
    *,
    short: int,
    tokens: tuple[int, int],
    lengths: tuple[int, int] = (8, 32),
    batch_tokens: int = 65_536,
    lr: tuple[float, float] = (1e-3, 1e-4),
    name: str = "long-context",
    seeds: int = 3,
) -> Study:
    """The three cells for a model and a text, with no gate and with the elementwise gate.

    Args:
        model: without max_seq_len and scaling, which the cells state.
        short: tokens of a sequence at first.
        lengths: how many times as many then, and how many with YaRN.
        tokens: of the first training and of the continuation.
        batch_tokens: of a step, in both.
        lr: the highest rate of the first training and that of the continuation.
    """
    base = Run(
        model=model.model_copy(update={"max_seq_len": None}),
        data=data,
        optim=OptimConfig(lr=lr[0], weight_decay=0.1),
        train=TrainConfig(tokens=tokens[0], batch_size=max(1, batch_tokens // short), seq_len=short),
        probe=ProbeConfig(times=4, sequences=16, eval_sequences=64),
    )
    cells = stages(base, tokens=tokens[1], lengths=lengths, batch_tokens=batch_tokens, lr=lr[1])
    return Study(
        name=name,
        question="After a change of its positions, which model loses less: the one with or without an elementwise gate?",
        cells=cells,
        about=about(cells),
        arms=(
            Arm("none", {"model.gate": "none"}, "no gate"),
            Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "elementwise gate"),
        ),
        seeds=seeds,
        follows=FOLLOWS,
        match_unit=8,
    )


def stages(base: Run, *, tokens: int, lengths: tuple[int, int], batch_tokens: int, lr: float) -> dict[str, Run]:
    """The cell `base`, its continuation on as many `tokens` at the first of the `lengths` with a new RoPE base, and these weights
    with YaRN at the second, which are not trained."""
    short = base.train.seq_len
    then, stretched_to = (times * short for times in lengths)
    long = override(
        base,
        {
            "model.rope_theta": LONG_THETA,
            "optim.lr": lr,
            "train.tokens": tokens,
            "train.batch_size": max(1, batch_tokens // then),
            "train.seq_len": then,
        },
    )
    yarn = {"kind": "yarn", "factor": lengths[1] / lengths[0], "original_seq_len": then}
    stretched = override(
        long,
        {
            "model.rope_scaling": yarn,
            "train.tokens": 0,
            "train.batch_size": 1,
            "train.seq_len": stretched_to,
            "probe.times": 1,
            "probe.sequences": 2,
            "probe.eval_sequences": 8,
        },
    )
    return {"short": base, "long": long, "stretched": stretched}


def about(cells: dict[str, Run]) -> dict[str, str]:
    """A sentence a stage."""
    first, then, to = (run.train.seq_len for run in cells.values())
    return {
        "short": f"Trained at {first:,} tokens.",
        "long": f"Gone on from the short one: {then:,} tokens, RoPE base 1,000,000.",
        "stretched": f"The long one's weights with YaRN by {to / then:g}, looked at with {to:,} tokens; not trained.",
    }


study = recipe(
    SIZES["paper/1.7b-28l"].model,
    Text(paths="train.bin", val_paths="val.bin", dtype="uint32"),
    short=4096,
    tokens=(3_500_000_000_000, 80_000_000_000),
    batch_tokens=2048 * 4096,
    lr=(4.5e-3, 4.5e-4),
    name="paper-long-context",
    seeds=1,
)
