"""Do gates change what small models learn to find, by size, architecture and task? 48 cells, of which the odd ones are confirmed.

Two sizes, four architectures, six tasks: retrieval, tracking, citation, selection, code, faithfulness. Experts take the place of
the feed-forward layer with as many active channels. Screen, then confirm what looks odd on seeds that nothing was run on:

    gatelab run tasks-by-architecture 'cell=1m dense*'
    gatelab find runs/tasks-by-architecture --register --seeds 5..12
    gatelab run runs/tasks-by-architecture
"""

from collections.abc import Sequence

from gatelab import AskConfig, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Tasks, TrainConfig
from gatelab.studies.gates_on_tasks import ARMS

TASKS = {
    "needle": "retrieval",
    "track": "tracking",
    "cite": "citation",
    "select": "selection",
    "identifier": "code",
    "conflict": "faithfulness",
}
SIZES = {"1m": (128, 4), "5m": (256, 6)}  # width, layers
ARCHITECTURES = ("dense", "experts", "encoder", "encoder-decoder")
# What an architecture is trained to say of a task's text.
_OBJECTIVES = {"encoder": "answers", "encoder-decoder": "continuation"}


def cell(task: str, size: str, architecture: str, *, lr: float, tokens: int) -> Run:
    """One model on one task at 128 tokens."""
    width, layers = SIZES[size]
    fields: dict[str, object] = {"d_model": width, "n_layers": layers, "n_heads": 4, "tied_embeddings": True}
    if architecture == "experts":
        fields["moe"] = {"n_experts": 8, "top_k": 2, "d_expert": 4 * width // 3 // 8 * 8}
    elif architecture == "encoder-decoder":
        fields |= {"arch": architecture, "n_layers": layers // 2, "n_encoder_layers": layers // 2}
    elif architecture == "encoder":
        fields["arch"] = architecture
    return Run(
        model=ModelConfig(**fields),
        data=Tasks(names=(task,)),
        objective=_OBJECTIVES.get(architecture),
        optim=OptimConfig(lr=lr, weight_decay=0.1, schedule="cosine", warmup=0.05, final=0.1),
        train=TrainConfig(tokens=tokens, batch_size=32, seq_len=128),
        probe=ProbeConfig(times=1, sequences=16, eval_sequences=64, every=10),
        ask=AskConfig(items=66, every=1000),
    )


def recipe(
    tasks: Sequence[str] = tuple(TASKS),
    sizes: Sequence[str] = tuple(SIZES),
    architectures: Sequence[str] = ARCHITECTURES,
    *,
    lr: float = 1e-3,
    tokens: int = 24_576_000,
    seeds: int = 5,
) -> Study:
    """The study, or the part of it that is asked for."""
    points = [(s, a, t) for s in sizes for a in architectures for t in tasks]
    return Study(
        name="tasks-by-architecture",
        question="Does a gate after attention, or on the values, change what a model learns to find, and does that depend on its "
        "size, its architecture or the task?",
        cells={f"{s} {a} {t}": cell(t, s, a, lr=lr, tokens=tokens) for s, a, t in points},
        about={f"{s} {a} {t}": f"{TASKS.get(t, t)}: the task {t}, {a}, {s}." for s, a, t in points},
        arms=ARMS,
        seeds=seeds,
        match_unit=8,
        primary=("val_loss", "task_accuracy@1x"),
    )


study = recipe()
