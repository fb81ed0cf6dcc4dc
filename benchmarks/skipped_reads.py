"""What reads of keys and values a trained gate saves where it is shut, and what leaving them out costs.

    python benchmarks/skipped_reads.py --out FILE.csv
    python benchmarks/skipped_reads.py --out FILE.csv --study runs/backcopy-depth --arms headwise headwise-open --seeds 0 1 2 3

Without a study the pair of one million weights of the tests' fixtures, by the largest and by the mean score of a head's channels;
with one its finished runs that have their weights, over their own held-out sequences. Shares and changes in nats are over 64
sequences, with 95% intervals over them.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from stored_runs import members
from torch import nn

from gatelab.data import objective_heldout
from gatelab.evals.skipped_reads import Channels, skipped_reads

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import gated_pair

N = 64
COLUMNS = (
    "arm", "seed", "threshold", "heads_skipped", "reads_skipped", "reads_skipped_low", "reads_skipped_high",
    "control_reads_skipped", "loss", "loss_change", "loss_change_low", "loss_change_high", "control_change", "control_change_low",
    "control_change_high", "excess", "excess_low", "excess_high",
)  # fmt: skip


def of_pair() -> Iterator[list[object]]:
    """The elementwise gate of the fixtures."""
    model, documents = gated_pair.trained("g1-elementwise"), gated_pair.heldout(N)[:, :256].tolist()
    for channels in ("max", "mean"):
        for levels in measured(model, documents, channels):
            yield [f"g1-elementwise-{channels}", 0, *levels]


def of_study(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[list[object]]:
    """Every run of these arms and seeds."""
    for arm, seed, member in members(folder, arms, seeds):
        run, source = member.run, member.source
        batches = [objective_heldout(source, run.resolved_objective, i, 1, run.train.seq_len) for i in range(N)]
        for levels in measured(member.model, [b.inputs_BT[0].tolist() for b in batches], "max"):
            yield [arm, seed, *levels]


def measured(model: nn.Module, documents: Sequence[Sequence[int]], channels: Channels) -> Iterator[list[float]]:
    """A row a threshold, from its second column on."""
    found = skipped_reads(model, documents, channels=channels)
    for s in found.levels:
        changes = [v for c in (s.change, s.control, s.excess) for v in (c.mean, c.low, c.high)]
        yield [s.threshold, s.heads, s.reads, s.reads_low, s.reads_high, s.control_reads, found.loss, *changes]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path)
    parser.add_argument("--arms", nargs="+", default=["headwise"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for row in of_pair() if given.study is None else of_study(given.study, given.arms, given.seeds):
        arm, seed, threshold, *numbers = row
        rows.append([arm, seed, f"{threshold:g}", *(f"{v:.5f}" for v in numbers)])
        print(f"{arm}, seed {seed}, below {threshold:g}: {numbers[1]:.1%} of the bytes, {numbers[6]:+.5f} nats")
    if given.out is not None:
        with given.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
