"""What it saves to read a step's numbers when the next step has been begun: the same training, by turns with a host that waits for
every step and with one that does not.

    python benchmarks/step_reads.py --cases stack-64,33m --out reads.jsonl
    python benchmarks/step_reads.py --cases tiny --device cpu

One group, one generator and on a GPU one captured graph: what differs between turns is whether the trainer is told that every
step is looked at (`rests` of `gatelab.train.loop.train`). The consumer spends `--host-ms` on each step, as one does that writes
rows. A ratio is within a round, of a turn of each. On a CPU, which ends a step before it gives it back, the turns do the same.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from warm_training import Trained, begun, chosen, facts_of, wait

from gatelab.config.base import ConfigError
from gatelab.record import Step
from gatelab.train.group import Group
from gatelab.train.loop import train

_WARM = 10
_LEAST_STEPS = 3
CASES = {
    "64": Trained("64x4x2x256", 4096, 4, context=512, attention="auto"),
    "stack-64": Trained("64x4x2x256", 4096, 4, context=512, attention="auto", runs=64),
    "stack-512": Trained("512x8x8x8192", 8192, 9, attention="auto", runs=4),
    "33m": Trained("512x8x4x16384", 65_536, 12, attention="auto"),
    "33m-uncaptured": Trained("512x8x4x16384", 65_536, 12, attention="auto", is_captured=False),
    "moe-480m": Trained("moe-480m", 16_384, 19, attention="auto"),
    "tiny": Trained("16x1x2x64", 64, 1, context=16, attention="auto"),
}


@dataclass
class Rests:
    """The steps after which the group must stand: all, or none."""

    waits: bool = True

    def __contains__(self, step: object) -> bool:
        return self.waits


def ms_a_step(steps: Iterator[Step], group: Group, *, seconds: float, host_ms: float) -> float:
    """Of a turn, which begins and ends with nothing under way on the device: so many steps are computed as are given."""
    wait(group.device)
    start, n = time.perf_counter(), 0
    while n < _LEAST_STEPS or time.perf_counter() - start < seconds:
        next(steps)
        n += 1
        until = time.perf_counter() + host_ms / 1e3
        while time.perf_counter() < until:
            pass
    wait(group.device)
    return 1e3 * (time.perf_counter() - start) / n


def measured(name: str, given: argparse.Namespace) -> dict[str, object]:
    """A case's medians over rounds, and the ratios within them."""
    trained, rests = CASES[name], Rests()
    group, model = begun(trained, given.device)
    steps = train(group, rests)
    for _ in range(_WARM):
        next(steps)
    ms: dict[bool, list[float]] = {True: [], False: []}
    for i in range(given.rounds):
        for waits in (True, False)[:: -1 if i % 2 else 1]:
            rests.waits = waits
            next(steps)  # the first under another rule
            ms[waits].append(ms_a_step(steps, group, seconds=given.turn_s, host_ms=given.host_ms))
    ratios = sorted(w / a for w, a in zip(ms[True], ms[False], strict=True))
    return {
        "case": name, **vars(trained), **facts_of(group, model, trained), "host_ms": given.host_ms, "rounds": given.rounds,
        "waiting_ms": statistics.median(ms[True]), "ahead_ms": statistics.median(ms[False]),
        "ratio": statistics.median(ratios), "ratio_least": ratios[0], "ratio_most": ratios[-1],
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """A line a case; with --out JSON lines too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", default="64,stack-64,stack-512,33m,33m-uncaptured", help=f"some of {', '.join(CASES)}"
    )
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turn-s", type=float, default=0.8)
    parser.add_argument("--host-ms", type=float, default=0.2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA device here; take --device cpu")
    torch.set_num_threads(1)
    for name in chosen("--cases", given.cases, CASES):
        try:
            record = measured(name, given)
        except ConfigError as error:
            sys.exit(str(error))
        if given.out is not None:
            with given.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
        print(
            f"{name}: {record['device']}, ms a step waiting {record['waiting_ms']:.3f}, ahead {record['ahead_ms']:.3f}, ratio "
            f"{record['ratio']:.3f} ({record['ratio_least']:.3f} to {record['ratio_most']:.3f}), {given.rounds} rounds",
            flush=True,
        )


if __name__ == "__main__":
    main()
