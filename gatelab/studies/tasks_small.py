"""Retrieval and faithfulness in a model that a CPU trains in two minutes: a quarter of an hour from nothing to a page of items.

Two layers of two heads, 64 wide, on sequences of 64 tokens, asked at up to 512. It is the smallest study of tasks whose page has
every part: position curves, effective lengths, worst items that open, with attention and gate strips, and what is attended where
the answer is right. 12 runs of about 2 minutes of one core:

    gatelab run tasks-small
"""

from gatelab import Arm, AskConfig, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Tasks, TrainConfig

TASKS = {"needle": "retrieval", "conflict": "faithfulness to the context"}


def cell(task: str) -> Run:
    """1,000 steps of 32 sequences of 64 tokens."""
    return Run(
        model=ModelConfig(d_model=64, n_layers=2, n_heads=2, tied_embeddings=True),
        data=Tasks(names=(task,)),
        optim=OptimConfig(lr=3e-3, weight_decay=0.1, schedule="cosine", warmup=0.05, final=0.1),
        train=TrainConfig(tokens=2_048_000, batch_size=32, seq_len=64),
        probe=ProbeConfig(times=1, sequences=16, eval_sequences=64, every=10),
        ask=AskConfig(items=66, every=250),
    )


study = Study(
    name="tasks-small",
    question="In a model of two layers, does a gate after attention change what is found at the length trained on and beyond it, "
    "and where do attention and gate stand where the answer is right?",
    cells={task: cell(task) for task in TASKS},
    about={task: f"The task {task}: {what}." for task, what in TASKS.items()},
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("headwise", {"model.gate": "sdpa-headwise"}, "G1, headwise"),
    ),
    seeds=3,
    primary=("val_loss", "task_accuracy@1x"),
)
