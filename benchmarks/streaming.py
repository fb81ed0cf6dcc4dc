"""What it costs to keep the last tokens alone, with the first ones or without, in the trained pair of the tests' fixtures.

    python benchmarks/streaming.py [--out FILE.csv]

Held-out loss of the second half of 64 sequences of 256 tokens, read token by token, less that with all keys; paired over
sequences, with 95% intervals.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from torch import Tensor

from gatelab.evals.changes import interval
from gatelab.models.generate import Keep, streaming_losses

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import gated_pair

KEEPS = tuple(Keep(first=first, last=kept - first) for kept in (16, 32, 64, 128) for first in (0, 1, 4))


def measured(arm: str) -> Iterator[tuple[str, str, float, float, float, float]]:
    """Arm, what was kept, loss, and its change with its interval."""

    def second_half(losses_BT: Tensor) -> list[float]:
        return losses_BT[:, losses_BT.shape[1] // 2 :].mean(dim=1).tolist()

    found = streaming_losses(gated_pair.trained(arm), gated_pair.heldout(64), [Keep(), *KEEPS])
    whole = second_half(found["all"])
    for slug, losses_BT in found.items():
        own = second_half(losses_BT)
        change = [a - b for a, b in zip(own, whole, strict=True)]
        yield arm, slug, fmean(own), fmean(change), *interval(change)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for arm in ("none", "g1-elementwise"):
        for row in measured(arm):
            rows.append([f"{v:.5f}" if isinstance(v, float) else v for v in row])
            print("{:16} {:18} {} nats, {} ({} to {})".format(*rows[-1]), flush=True)
    if given.out is not None:
        with given.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["arm", "kept", "loss", "change", "low", "high"], *rows])


if __name__ == "__main__":
    main()
