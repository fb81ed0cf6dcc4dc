"""Do gates change what a small model learns to find, and how far that reaches past the length of training? Five tasks.

Models of 1.3 million weights are trained at 128 tokens and asked at 128 to 1,024, as trained and with YaRN; each task at three
learning rates, so that no arm loses by a rate that suits another. Parts of it, smaller ones, and other tasks:

    gatelab run gates-on-tasks 'cell=bracket*' seed=0..1
    gatelab run gates-on-tasks 'cell=*0.001' train.tokens=2_000_000 --out runs/short

    from gatelab.studies.gates_on_tasks import recipe
    study = recipe(tasks=("needle",), rates=(1e-3,))
"""

from collections.abc import Sequence

from gatelab import Arm, AskConfig, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Tasks, TrainConfig

ARMS = (
    Arm("none", {"model.gate": "none"}, "no gate"),
    Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"}, "G1, headwise"),
    Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "G1, elementwise"),
    Arm("value-elementwise", {"model.gate": "value-elementwise"}, "G2, on the values"),
    Arm("sink-logit", {"model.softmax": "sink-logit"}, "a learned sink logit, no gate", control=True),
)


def recipe(
    tasks: Sequence[str] = ("bracket", "mqar", "cite", "track", "select"),
    rates: Sequence[float] = (3e-4, 1e-3, 3e-3),
    *,
    name: str = "gates-on-tasks",
) -> Study:
    """A cell a task and learning rate, called `task lr`."""
    base = Run(
        model=ModelConfig(d_model=128, n_layers=4, n_heads=4, tied_embeddings=True),
        optim=OptimConfig(weight_decay=0.1, schedule="cosine", warmup=0.05, final=0.1),
        train=TrainConfig(tokens=3000 * 64 * 128, batch_size=64, seq_len=128),
        probe=ProbeConfig(times=2, sequences=16, eval_sequences=64),
        ask=AskConfig(every=100, stretch=("none", "yarn")),
    )
    cells = {
        f"{task} {lr:g}": base.model_copy(
            update={"data": Tasks(names=(task,)), "optim": base.optim.model_copy(update={"lr": lr})}
        )
        for task in tasks
        for lr in rates
    }
    return Study(
        name=name,
        question="Does a gate after attention, or on the values, change what a model of a million weights learns to find in a "
        "text, and how far beyond the length of its training it still finds it?",
        cells=cells,
        about={f"{task} {lr:g}": f"The task {task} at learning rate {lr:g}." for task in tasks for lr in rates},
        arms=ARMS,
        seeds=5,
        match_unit=8,
        primary=("task_accuracy@1x", "task_accuracy@8x"),
    )


study = recipe()
