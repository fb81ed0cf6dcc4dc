"""How even the gradient is over a model's blocks: `layer_grad_norm` of finished runs, on their own held-out batches.

    python benchmarks/gradients.py runs/backcopy-depth --arms none headwise headwise-open --seeds 0 1 2 3 4 5 6 7 --out FILE.csv

Eight held-out batches of the run's own batch size and objective, in float32, at the weights that training ended with. `block_0`, …:
the geometric mean over batches of the 2-norm of a block's gradients; `spread`: over blocks, the standard deviation (n − 1) of their
natural logarithms.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from stored_runs import members

from gatelab.data import IGNORED, objective_heldout
from gatelab.probes.training import gradient_rows
from gatelab.train.group import Member
from gatelab.train.objectives import logits_of

BATCHES = 8


def measured(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[list[object]]:
    """Arm, seed, spread, and the norm of every block."""
    for arm, seed, member in members(folder, arms, seeds):
        log_NL = np.log([norms(member, i) for i in range(BATCHES)])
        yield [arm, seed, log_NL.mean(axis=0).std(ddof=1), *np.exp(log_NL.mean(axis=0))]


def norms(member: Member, number: int) -> list[float]:
    """The gradient's norm by block, of one held-out batch."""
    run, model = member.run, member.model
    batch = objective_heldout(member.source, run.resolved_objective, number, run.train.batch_size, run.train.seq_len)
    inputs_BT, targets_BT = torch.from_numpy(batch.inputs_BT), torch.from_numpy(batch.targets_BT)
    model.zero_grad()
    logits_BTV = logits_of(model, inputs_BT, None, None, None).float()
    F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED).backward()
    return [r.value for r in gradient_rows(model) if r.metric == "layer_grad_norm" and r.stage is None]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for arm, seed, spread, *by_block in measured(given.study, given.arms, given.seeds):
        rows.append([arm, seed, f"{spread:.5f}", *(f"{v:.6f}" for v in by_block)])
        print(f"{arm}, seed {seed}: spread {spread:.3f}, blocks {', '.join(f'{v:.4f}' for v in by_block)}", flush=True)
    if given.out is not None:
        columns = ["arm", "seed", "spread", *(f"block_{i}" for i in range(len(rows[0]) - 3))]
        with given.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])


if __name__ == "__main__":
    main()
