"""What gates gain early: models whose attention begins at half its output, beside gates, on a text of yours.

A gate that starts around one half halves what attention adds to the residual stream. Here the output projection of an ungated
model is multiplied by one half before the first step, and that of a headwise gate by two; the rest of a model is as ever.

    python benchmarks/output_scale.py --paths train.bin --val-paths val.bin --seeds 0 1 2 --out early.csv
    python benchmarks/output_scale.py --size 33m --device cuda …  # the short run of text-rates at 1e-3
"""

import argparse
import csv
import sys
from pathlib import Path
from statistics import fmean

import torch

from gatelab.config import Execution, ModelConfig, OptimConfig, Run, Text, TrainConfig, override
from gatelab.studies.text_rates import study
from gatelab.train.group import Group
from gatelab.train.loop import train

# arm -> its gate, and what its output projections are multiplied by before the first step
ARMS = {
    "none": ("none", 1.0),
    "none, half": ("none", 0.5),
    "none, quarter": ("none", 0.25),
    "headwise": ("paper/g1-headwise", 1.0),
    "static": ("paper/g1-input-independent", 1.0),
    "headwise, twice": ("paper/g1-headwise", 2.0),
}
_EVERY = 10
_RATE = "prose lr0.001"


def small(steps: int) -> Run:
    """A million weights beside the table, 2,048 tokens a step."""
    return Run(
        model=ModelConfig(d_model=128, n_layers=4, n_heads=2, tied_embeddings=True),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, schedule="cosine", warmup=0.05, final=0.1),
        train=TrainConfig(tokens=8 * 256 * steps, batch_size=8, seq_len=256),
    )


def of_study(steps: int) -> Run:
    """33 million weights, 65,536 tokens a step; gates are weights more here."""
    cell = study.cells[_RATE]
    return override(cell, {"train.tokens": cell.train.tokens_per_step * steps})


SIZES = {"small": (small, "off"), "33m": (of_study, "auto")}


def losses(runs: list[Run], scales: list[float], execution: Execution) -> list[list[float]]:
    """Of each run the cross-entropy of each step's own batch, nats a token."""
    group = Group(runs, execution)
    with torch.no_grad():
        for member, scale in zip(group.members, scales, strict=True):
            for name, weight in member.model.named_parameters():
                if name.endswith("o_proj.weight"):
                    weight.mul_(scale)
    return [list(of_runs) for of_runs in zip(*(step.loss for step in train(group)), strict=True)]


def main() -> None:
    """A line an arm and seed as it comes; the file holds means of ten steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", required=True, help="token shards, as data.paths of a run")
    parser.add_argument("--val-paths", required=True)
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.steps < _EVERY:
        sys.exit(f"--steps {given.steps}: a mean is of {_EVERY} steps; ask that many at least")
    torch.set_num_threads(1)
    made, compiled = SIZES[given.size]
    base = override(made(given.steps), {"data": Text(paths=given.paths, val_paths=given.val_paths)})
    execution = Execution(device=given.device, compile=compiled)
    with given.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["arm", "seed", "step", "train_loss"])
        for gate in dict.fromkeys(ARMS[arm][0] for arm in given.arms):
            # Arms of one shape train as one stack where it is a GPU that they train on.
            members = [(arm, seed) for arm in given.arms if ARMS[arm][0] == gate for seed in given.seeds]
            runs = [override(base, {"model.gate": gate, "seed": seed}) for _, seed in members]
            found = losses(runs, [ARMS[arm][1] for arm, _ in members], execution)
            for (arm, seed), of_run in zip(members, found, strict=True):
                means = {n: fmean(of_run[n - _EVERY : n]) for n in range(_EVERY, given.steps + 1, _EVERY)}
                table.writerows([arm, seed, n, f"{mean:.4f}"] for n, mean in means.items())
                file.flush()
                print(f"{arm:16} seed {seed}: {means[max(means)]:.4f} nats after {max(means)} steps", flush=True)


if __name__ == "__main__":
    main()
