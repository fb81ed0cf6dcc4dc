"""What reads of keys and values a trained gate saves where it is shut, and what leaving them out costs.

    python benchmarks/skipped_reads.py --out docs/results/skipped-reads/levels.csv
    python benchmarks/skipped_reads.py --study runs/backcopy-depth --arms headwise headwise-open --seeds 0 1 2 3 4 5 6 7 --out FILE

Without a study the pair of one million weights of the tests' fixtures, by the largest and by the mean score of a head's channels; with
one its finished runs that have their weights, over their own held-out sequences. Shares and changes in nats are over 64 sequences,
with 95% intervals over them.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gatelab.evals.skipped_reads import skipped_reads
from gatelab.lab.looking import heldout_texts, trained
from gatelab.store import RunFolder, StudyFolder

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import gated_pair

N = 64
COLUMNS = (
    "arm", "seed", "threshold", "heads_skipped", "reads_skipped", "reads_low", "reads_high", "control_reads", "loss", "loss_change",
    "loss_change_low", "loss_change_high", "control_change", "control_low", "control_high", "excess", "excess_low", "excess_high",
)  # fmt: skip


def of_pair() -> Iterator[list[object]]:
    """The elementwise gate of the fixtures."""
    model, documents = gated_pair.trained("g1-elementwise"), gated_pair.heldout(N)[:, :256].tolist()
    for channels in ("max", "mean"):
        for levels in measured(model, documents, channels):
            yield [f"g1-elementwise, {channels}", 0, *levels]


def of_study(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[list[object]]:
    """Every run of these arms and seeds."""
    for arm, seed, run in runs_of(folder, arms, seeds):
        _, member, _ = trained(run)
        for levels in measured(member.model, heldout_texts(member, N), "max"):
            yield [arm, seed, *levels]


def runs_of(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int, Path]]:
    """Arm, seed and folder of a study's runs that have their weights."""
    raise NotImplementedError


def measured(model: object, documents: Sequence[Sequence[int]], channels: str) -> Iterator[list[float]]:
    """A row a threshold."""
    found = skipped_reads(model, documents, channels=channels)
    for s in found.levels:
        yield [
            s.threshold, s.heads, s.reads, s.reads_low, s.reads_high, s.control_reads, found.loss,
            *(v for c in (s.change, s.control, s.excess) for v in (c.mean, c.low, c.high)),
        ]  # fmt: skip
