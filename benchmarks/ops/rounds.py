"""What the scripts for attention's kernels share: a verdict of the numeric contract, times of works in turns, JSON lines."""

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gatelab.bench.timing import Work, clock
from gatelab.ops.contract import check

Result = TypeVar("Result")
# Bytes of freed memory that a candidate finds full of not-a-numbers, so that what it does not write shows itself.
_POISONED = 256 << 20
_LEAST = 3  # rounds, however late it is


class Log:
    """JSON lines, printed and, where a file is named, appended to it; `failed`: what did not hold or did not run."""

    def __init__(self, out: Path | None):
        self.out, self.failed = out, []

    def tell(self, kind: str, **what: Any) -> None:
        """One line."""
        line = json.dumps({"kind": kind, **what})
        print(line, flush=True)
        if self.out is not None:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def judge(
        self,
        name: str,
        candidate: Callable[..., Tensor],
        reference: Callable[..., Tensor],
        arguments: dict[str, Any],
    ) -> bool:
        """Whether a candidate keeps the contract; tells it, and the tensor nearest to its limit."""

        def poisoned(**given: Any) -> Tensor:
            if arguments["grad_BTHK"].is_cuda:
                torch.full((_POISONED // 4,), math.nan, device="cuda")
            return candidate(**given)

        verdicts = self.tried(name, lambda: check(poisoned, reference, arguments))
        if verdicts is None:
            return False
        nearest = max(verdicts, key=lambda v: math.inf if math.isnan(v.error) else v.error / v.allowed)
        holds = all(v.holds for v in verdicts)
        if not holds:
            self.failed.append(name)
        errors = {v.tensor: [v.error, v.allowed] for v in verdicts}
        self.tell("contract", name=name, holds=holds, nearest=nearest.tensor, errors=errors)
        return holds

    def turns(
        self, works: dict[str, Callable[[], object]], device: torch.device, rounds: int
    ) -> dict[str, dict[str, float]]:
        """Milliseconds of each work in turns: median, quartiles, least and most; otherwise as `each`."""
        return {name: spread(times) for name, times in self.each(works, device, rounds).items()}

    def each(
        self, works: dict[str, Callable[[], object]], device: torch.device, rounds: int, *, until: float = math.inf
    ) -> dict[str, list[float]]:
        """Milliseconds of each work in every round, after two runs that do not count. One that raises is told and left out.
        No round but the first three begins after `until`, of `time.perf_counter`."""

        def warmed(work: Callable[[], object]) -> Work:
            work()
            work()
            return Work(lambda _: work())

        made = {name: self.tried(name, lambda work=work: warmed(work)) for name, work in works.items()}
        measure, running = clock(device), {name: work for name, work in made.items() if work is not None}
        found: dict[str, list[float]] = {name: [] for name in running}
        for i in range(rounds):
            if i >= _LEAST and time.perf_counter() > until:
                break
            for name, times in found.items():
                times.append(measure(running[name]))
        return found

    def tried(self, name: str, work: Callable[[], Result]) -> Result | None:
        """What a work gives; None where it raises, which is told and takes nothing from the others."""
        try:
            return work()
        except Exception as error:
            self.failed.append(name)
            self.tell("failed", name=name, why=f"{type(error).__name__}: {error}"[:300])
            return None


def spread(ms: list[float]) -> dict[str, float]:
    """Median, quartiles, least and most."""
    low, middle, high = statistics.quantiles(ms, n=4, method="inclusive")
    return {"ms": middle, "low": low, "high": high, "least": min(ms), "most": max(ms)}
