"""How long a device waits for items: the trainer itself on tasks, its batches made anew beside the first handed out for ever.

Both take turns with one group in one process, so that they run the same kernels and a hot device slows both. The batch of a step
is made while the device computes the one before; where making takes longer than that, the device waits. The wait is what a step
takes beyond one whose batch is there already, 0 at least, by the median over rounds; transfer to the device is in both. Batches of
one run are not all made in the same time: the worst step is the longest single one, as trained and with the batch there.

    python benchmarks/waiting.py                                              # all cases, on a GPU where there is one
    python benchmarks/waiting.py --cases bracket-128 mixture-512 --seconds 30 --out waiting.json
    python benchmarks/waiting.py --device cpu --cases bracket-128 --batch 4 --steps 2 --seconds 2
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from gatelab.bench.benchmark import pick_device
from gatelab.bench.timing import Budget, Work, take_turns, wall_clock, why_not
from gatelab.config import ConfigError, Execution, ModelConfig, OptimConfig, Run, Tasks, TrainConfig
from gatelab.config.base import nearest
from gatelab.data import Batch
from gatelab.models.sizes import count_parameters
from gatelab.record import Step
from gatelab.tasks import TASKS
from gatelab.train import loop
from gatelab.train.feed import Feed
from gatelab.train.group import Group, resolve

ANEW, AGAIN = "as trained", "one batch for ever"
_MANY = 10**6  # steps: more than can be taken


@dataclass(frozen=True)
class Case:
    """Runs of one model on tasks: `rates` learning rates of each of `seeds` seeds, so that runs share `seeds` streams."""

    names: tuple[str, ...]
    seq_len: int
    batch_size: int = 64
    width: int = 128
    n_layers: int = 4
    seeds: int = 1
    rates: int = 1

    def runs(self, batch_size: int) -> list[Run]:
        model = ModelConfig(d_model=self.width, n_layers=self.n_layers, n_heads=4, tied_embeddings=True)
        train = TrainConfig(tokens=_MANY * batch_size * self.seq_len, batch_size=batch_size, seq_len=self.seq_len)
        base = Run(model=model, data=Tasks(names=self.names), train=train)
        optims = [OptimConfig(lr=3e-4 * 1.5**i) for i in range(self.rates)]
        return [base.model_copy(update={"seed": s, "optim": o}) for o in optims for s in range(self.seeds)]


_ASKED = ("bracket", "mqar", "cite", "track", "select", "find")
CASES = {
    "needle-1024": Case(("needle",), 1024, width=512, n_layers=8),
    **{f"{name}-{T}": Case((name,), T) for name in _ASKED for T in (128, 512)},
    **{f"mixture-{T}": Case(tuple(TASKS), T) for T in (128, 512)},
    # As many runs and streams as five arms of five seeds; arms are of different shapes, so rates stand in for them.
    **{f"stack-{name}": Case((name,), 128, batch_size=32, seeds=5, rates=5) for name in _ASKED},
    # The most that a stack of so many runs can ask for: a stream each, of every task.
    "stack-mixture": Case(tuple(TASKS), 128, batch_size=32, seeds=25),
}


class Items:
    """What makes the batches of a group: each anew, and timed, or the first again. `ms` holds the former's times.

    Those made anew are of steps that follow one another, whatever was handed out again in between: a mixture that is asked
    for a later step has no items ahead, and makes some of every task.
    """

    def __init__(self) -> None:
        self.is_again, self.ms = False, []
        self._first: Batch | None = None

    def made(self, make: Callable[[int], Batch]) -> Batch:
        if self.is_again:
            return self._first
        start = time.perf_counter()
        batch = make(len(self.ms))
        self.ms.append(1e3 * (time.perf_counter() - start))
        self._first = self._first or batch
        return batch

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Within it the trainer has its batches from here, those of a stack and, on a CPU, those of a run alone."""
        of_stack, alone = Feed.at, loop.objective_batch
        with (
            patch.object(Feed, "at", lambda feed, _step: self.made(partial(of_stack, feed))),
            patch.object(
                loop,
                "objective_batch",
                lambda source, objective, seed, _step, *of: self.made(lambda n: alone(source, objective, seed, n, *of)),
            ),
        ):
            yield


def measure(name: str, case: Case, given: argparse.Namespace) -> dict[str, object]:
    """One case: medians over rounds, with least and most; or why there are none."""
    runs, items = case.runs(given.batch or case.batch_size), Items()
    steps, single = _steps(runs, given.device), {False: [], True: []}

    def take(is_again: bool) -> None:
        items.is_again = is_again
        for _ in range(given.steps):
            start = time.perf_counter()
            step = next(steps)
            single[is_again].append(1e3 * (time.perf_counter() - start))
        if any(step.diverged):
            raise ValueError(f"a loss is no longer finite after {step.step} steps")

    found = {
        "case": name,
        "runs": len(runs),
        "weights": count_parameters(resolve(runs[0]).model),
        "shape": f"{runs[0].train.batch_size} × {case.seq_len:,}",
    }
    device, works = torch.device(given.device), {ANEW: Work(lambda _: take(False)), AGAIN: Work(lambda _: take(True))}
    with items.feeding():
        try:
            take(False)  # compiles and captures, before the time begins
        except Exception as error:
            return found | {"failed": why_not(error)}
        n_warm = len(items.ms)
        single[False].clear()
        turns = take_turns(works, device, budget=Budget.of(given.seconds), measure=wall_clock(device))
    if turns.failed:
        return found | {"failed": "; ".join(f"{side}: {why}" for side, why in turns.failed.items())}
    anew, again = ([ms / given.steps for ms in turns.times[side].ms] for side in (ANEW, AGAIN))
    waits = [a - b for a, b in zip(anew, again, strict=True)]
    making, wait = items.ms[n_warm:], max(0.0, statistics.median(waits))
    return found | {
        "rounds": turns.rounds,
        "anew_ms": _spread(anew),
        "again_ms": _spread(again),
        "anew_step_ms": _spread(single[False]),
        "again_step_ms": _spread(single[True]),
        "make_ms": _spread(making),
        "difference_ms": _spread(waits),
        "wait_ms": wait,
        "wait_share": wait / statistics.median(anew),
        "is_making_longer": statistics.fmean(making) > statistics.median(again),
    }


def _steps(runs: list[Run], device: str) -> Iterator[Step]:
    """Of a group that is made when the first is asked for, so that one without room is a line that says so."""
    yield from loop.train(Group(runs, Execution(device=device, group=len(runs))))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _shown(found: dict[str, object]) -> str:
    head = f"{found['case']:14}{found['runs']:>5}  {found['shape']:12}"
    if "failed" in found:
        return f"{head}{found['failed']}"
    spreads = (found[name].values() for name in ("anew_ms", "again_ms", "make_ms", "difference_ms"))
    cells = ("{:.3f} ({:.3f} to {:.3f})".format(*spread).ljust(30) for spread in spreads)
    longer = "yes" if found["is_making_longer"] else "no"
    worst = " / ".join(f"{found[name]['most']:.3f}" for name in ("anew_step_ms", "again_step_ms"))
    return f"{head}{''.join(cells)}{found['wait_ms']:>8.3f}{found['wait_share']:>8.1%}  {worst:18}{longer}"


def _number(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word}: expected a whole number from 1")
    return int(word)


def main() -> None:
    """Every case, a line each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seconds", type=_number, default=20, help="a case, after its warm-up; three rounds at least")
    parser.add_argument("--steps", type=_number, default=20, help="of a turn")
    parser.add_argument("--batch", type=_number, help="sequences of a run, in the place of the case's own")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="a file for the numbers, as JSON")
    given = parser.parse_args()
    if unknown := [name for name in given.cases if name not in CASES]:
        sys.exit(
            "\n".join(f"--cases {n}: no such case{nearest(n, list(CASES)) or '; --help lists them'}" for n in unknown)
        )
    try:
        given.device = pick_device(given.device)
    except ConfigError as error:
        sys.exit(str(error))
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()} CPU, one thread"
    utc = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    print(
        f"{where}, torch {torch.__version__}, {utc} UTC; ms a step, median (least to most) over rounds of {given.steps} steps"
    )
    columns = "".join(f"{name:30}" for name in (ANEW, AGAIN, "making a batch", "difference of steps"))
    print(f"{'case':14}{'runs':>5}  {'a run':12}{columns}{'wait':>8}{'share':>8}  {'worst step':18}making longer")
    if given.device == "cpu":
        print("A CPU makes its batches itself between its steps: its wait is the making, and says nothing of a GPU's.")
    found = []
    for name in given.cases:
        found.append(asdict(CASES[name]) | measure(name, CASES[name], given))
        print(_shown(found[-1]), flush=True)
        # Compiled code is kept for a few shapes only; a group, which refers to itself, until it is collected.
        torch.compiler.reset()
        gc.collect()
        if given.out is not None:
            about = {"device": where, "torch": torch.__version__, "utc": utc, "steps": given.steps, "cases": found}
            given.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
