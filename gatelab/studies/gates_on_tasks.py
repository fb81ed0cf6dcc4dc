"""Do gates change what a small model learns to find, and how far that reaches past the length of training? Five tasks, two sizes.

Models of 1.3 and 10.4 million weights are trained at 128 tokens and asked at 128 to 1,024, as trained and with YaRN; each task at
several learning rates, so that no arm loses by a rate that suits another. A cell without a size is one of 1.3 million weights, and
`easy` ones ask what small models did not learn in 24.6 million tokens of fewer pieces: four pairs, two documents, two chains of
one hop. Runs of a size and an arm are of one shape, whatever their task, rate and seed. Parts of it, smaller ones, and other tasks:

    gatelab run gates-on-tasks 'cell=[!1e]*' execution.group=25
    gatelab run gates-on-tasks 'cell=10m*0.001'
    gatelab run gates-on-tasks 'cell=easy*'
    gatelab run gates-on-tasks 'cell=bracket*' seed=0..1
    gatelab run gates-on-tasks 'cell=[!1e]*0.001' train.tokens=2_000_000 --out runs/short

    from gatelab.studies.gates_on_tasks import recipe
    study = recipe(tasks=("needle",), sizes={"1m": (1e-3,)})
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from gatelab import Arm, AskConfig, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Tasks, TrainConfig

ARMS = (
    Arm("none", {"model.gate": "none"}, "no gate"),
    Arm("sdpa-headwise", {"model.gate": "sdpa-headwise"}, "G1, headwise"),
    Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "G1, elementwise"),
    Arm("value-elementwise", {"model.gate": "value-elementwise"}, "G2, on the values"),
    Arm("sink-logit", {"model.softmax": "sink-logit"}, "a learned sink logit, no gate", control=True),
)
# Width, layers, heads.
SIZES = {"1m": (128, 4, 4), "10m": (384, 5, 6)}
_WEIGHTS = {"1m": "1.3 million weights", "10m": "10.4 million weights"}
# Knobs of the tasks that have easy cells, and what they make of them.
EASY = {
    "mqar": ({"distractors": 3}, "four pairs"),
    "cite": ({"distractors": 1}, "two documents"),
    "track": ({"hardness": 1, "distractors": 1}, "two chains of one hop"),
}


def recipe(
    tasks: Sequence[str] = ("bracket", "mqar", "cite", "track", "select"),
    sizes: Mapping[str, Sequence[float]] = MappingProxyType({"1m": (3e-4, 1e-3, 3e-3), "10m": (3e-4, 1e-3)}),
    easy: Sequence[float] = (1e-3, 3e-3),
    *,
    name: str = "gates-on-tasks",
) -> Study:
    """A cell a size, task and learning rate, called `10m task lr`, of 1.3 million weights `task lr`, and `easy task lr` of those
    tasks that have one. `sizes` are {size: rates}, `easy` the rates of easy cells."""
    points = {
        f"{'' if size == '1m' else f'{size} '}{task} {lr:g}": (size, task, lr, {}, "")
        for size, rates in sizes.items()
        for task in tasks
        for lr in rates
    } | {f"easy {task} {lr:g}": ("1m", task, lr, *EASY[task]) for task in tasks if task in EASY for lr in easy}
    return Study(
        name=name,
        question="Does a gate after attention, or on the values, change what a model of one or ten million weights learns to find "
        "in a text, and how far beyond the length of its training it still finds it?",
        cells={cell: _run(size, task, lr, knobs) for cell, (size, task, lr, knobs, _) in points.items()},
        about={
            cell: f"The task {task}{f' of {what}' if what else ''} at learning rate {lr:g}, {_WEIGHTS[size]}."
            for cell, (size, task, lr, _, what) in points.items()
        },
        arms=ARMS,
        seeds=5,
        match_unit=8,
        primary=("task_accuracy@1x", "task_accuracy@8x"),
    )


def _run(size: str, task: str, lr: float, knobs: Mapping[str, int]) -> Run:
    width, layers, heads = SIZES[size]
    return Run(
        model=ModelConfig(d_model=width, n_layers=layers, n_heads=heads, tied_embeddings=True),
        data=Tasks(names=(task,), **knobs),
        optim=OptimConfig(lr=lr, weight_decay=0.1, schedule="cosine", warmup=0.05, final=0.1),
        train=TrainConfig(tokens=3000 * 64 * 128, batch_size=64, seq_len=128),
        probe=ProbeConfig(times=2, sequences=16, eval_sequences=64),
        ask=AskConfig(every=100, stretch=("none", "yarn")),
    )


study = recipe()
