"""The study of the soak: small runs of Bigram-Backcopy that come to an end, that diverge half-way, and that cannot begin.

    gatelab run benchmarks/soak_study.py --out DIR seed=0..9      as `soak.py` does, which first puts DAMAGED there

Ten cells and two arms, so 20 runs a seed. Together they write all that a run's folder may hold: rows of two stacks and of experts,
what is watched at training steps, weights that other runs wait for. Each saves three times a second.
"""

from gatelab import Arm, BigramBackcopy, Execution, ModelConfig, OptimConfig, ProbeConfig, Run, Study, TrainConfig
from gatelab.config import MoE

STEPS = 300
# The name of a run that is said to be done, and whose weights are no weights.
DAMAGED = "badbadbadbad"
# What the runs of a cell come to, where it is not `done`.
ENDS = {"wild": "diverged", "broken": "failed"}

_plain = Run(
    model=ModelConfig(d_model=32, n_layers=2, n_heads=2),
    data=BigramBackcopy(),
    optim=OptimConfig(lr=2e-3),
    train=TrainConfig(tokens=STEPS * 8 * 32, batch_size=8, seq_len=32),
    probe=ProbeConfig(times=4, sequences=8, eval_sequences=8),
)


def _with(**changes: object) -> Run:
    return _plain.model_copy(update=changes)


study = Study(
    name="soak",
    question="Does every run end as it should, whatever is killed?",
    cells={
        "plain": _plain,
        "later": _plain,
        "deep": _with(model=ModelConfig(d_model=32, n_layers=3, n_heads=2)),
        "watched": _with(probe=ProbeConfig(times=2, sequences=8, eval_sequences=8, watch=3)),
        "experts": _with(
            model=ModelConfig(d_model=32, n_layers=2, n_heads=2, moe=MoE(n_experts=4, top_k=2, d_expert=16))
        ),
        "encoder": _with(model=ModelConfig(arch="encoder", d_model=32, n_layers=2, n_heads=2)),
        "two-stacks": _with(model=ModelConfig(arch="encoder-decoder", d_model=32, n_layers=1, n_heads=2)),
        "clipped": _with(optim=OptimConfig(lr=2e-3, qk_clip=10.0)),
        "wild": _with(optim=OptimConfig(lr=100.0, clip=None, warmup=1.0, schedule="constant")),
        "broken": _with(init_from=DAMAGED),
    },
    arms=(Arm("none", {"model.gate": "none"}), Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"})),
    seeds=10,
    match=None,
    follows={"later": "plain"},
    # One run a process: a run that shared its steps with another would be equal to rounding only.
    execution=Execution(device="cpu", slots=2, group=1, checkpoint_s=0.3, lost_retries=3),
)
