"""How long the host makes the batches of a stack's step: of M runs of one text, each with a seed of its own.

    python benchmarks/batches.py [--steps 41]

Random tokens in one file, one thread, no model. Median of the steps, quartiles, for the stacks of `training_turns.py`; a GPU's step
of the same stack is what to compare with.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch
from training_turns import BLOCKS
from warm_training import Trained, planned

from gatelab.bench.train import _runs
from gatelab.data import open_source
from gatelab.train.feed import Feed
from gatelab.train.stack import StackedBatch

STACKS = [t for width in (64, 128, 256, 512) for t in BLOCKS[f"stack-{width}"].trained if t.runs > 1]
_WARM_STEPS = 3


def times_ms(trained: Trained, n_steps: int) -> list[float]:
    """Of each step, from nothing to the tensors of all runs."""
    runs, _ = _runs(*planned(trained, "cpu"))
    source = open_source(runs[0].data)
    feed = Feed([SimpleNamespace(run=run.resolved(source.vocab_size), source=source) for run in runs])
    found = []
    for step in range(_WARM_STEPS + n_steps):
        start = time.perf_counter()
        StackedBatch(feed.at(step), trained.runs, torch.device("cpu"))
        found.append(1e3 * (time.perf_counter() - start))
    return found[_WARM_STEPS:]


def main() -> None:
    """One row a stack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=41)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| stack | ms a step, median (quartiles) |\n|---|---|")
    for trained in STACKS:
        lower, median, upper = statistics.quantiles(times_ms(trained, given.steps), n=4, method="inclusive")
        print(
            f"| {trained.runs} × {trained.tokens:,} tokens, {trained.size} | {median:.2f} ({lower:.2f} to {upper:.2f}) |"
        )


if __name__ == "__main__":
    main()
