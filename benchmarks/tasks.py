"""How fast items of tasks are made, a core: the NumPy sampler beside the pure-Python definition, and a training batch.

python benchmarks/tasks.py [LENGTH] [OUT.json]
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gatelab.config import Tasks
from gatelab.data import open_source
from gatelab.tasks import TASKS, Knobs, open_task

GOAL = 20_000  # items a second and core, at 512 tokens
N_ITEMS, N_DEFINED, TIMES = 1024, 20, 7


def rates(make: Callable[[int], object], n: int) -> list[float]:
    """Items a CPU second, of `TIMES` calls for other items each, after one that is not counted; the least first."""
    make(0)
    found = []
    for i in range(1, TIMES + 1):
        start = time.process_time()
        make(i * n)
        found.append(n / (time.process_time() - start))
    return sorted(found)


def measure(name: str, length: int) -> dict[str, object]:
    """One task: medians, and least to most of the sampler."""
    task, knobs = open_task(name), Knobs(length=length)
    source = open_source(Tasks(names=(name,)))
    sampled = rates(lambda first: task.batch(knobs, first, N_ITEMS), N_ITEMS)
    defined = rates(lambda first: [task.item(knobs, first + i) for i in range(N_DEFINED)], N_DEFINED)
    batches = rates(lambda first: source.train_batch(0, first // N_ITEMS, N_ITEMS, length), N_ITEMS)
    return {
        "task": name,
        "sampled": statistics.median(sampled),
        "least": sampled[0],
        "most": sampled[-1],
        "defined": statistics.median(defined),
        "batches": statistics.median(batches),
    }


def main(length: int = 512, out: Path | None = None) -> None:
    found = [measure(name, length) for name in TASKS]
    print(f"items a CPU second, {length} tokens, median of {TIMES}; goal {GOAL:,} at 512")
    print(f"{'task':12}{'sampler':>10}{'least':>10}{'most':>10}{'definition':>12}{'training batch':>16}")
    for r in found:
        word = "" if r["sampled"] >= GOAL or length != 512 else "  below the goal"
        numbers = (
            f"{r[k]:>{w},.0f}"
            for k, w in (("sampled", 10), ("least", 10), ("most", 10), ("defined", 12), ("batches", 16))
        )
        print(f"{r['task']:12}{''.join(numbers)}{word}")
    if out is not None:
        out.write_text(json.dumps({"length": length, "items_per_s": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *map(Path, sys.argv[2:3]))
