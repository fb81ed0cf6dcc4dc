"""Running code that a model wrote: in a process of its own with limits on time, memory and files, and without a network.

Notable: the process has no environment and a temporary folder; a filter in the kernel (seccomp) refuses it sockets, other
processes and programs, and signals. It is not kept from reading and writing files that its user may: run it as a user, or in
a container, that has none to lose.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from math import comb
from pathlib import Path
from secrets import token_hex
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

_GUARD = Path(__file__).with_name("guard.py")
PASSED, FAILED, TIMEOUT, MEMORY, REFUSED = "passed", "failed", "timed out", "out of memory", "refused by a limit"


@dataclass(frozen=True)
class Limits:
    """Of one program: seconds by the clock, bytes of memory, bytes of a file."""

    seconds: float = 10.0
    memory: int = 2**31
    file: int = 2**24


def run_code(program: str, limits: Limits | None = None) -> str:
    """What becomes of a program: `passed` when it runs to its end, or why it did not.

    Raises:
        ValueError: this system cannot limit it.
    """
    limits = limits or Limits()
    token = token_hex(16)
    with TemporaryDirectory(prefix="gatelab-code-") as place:
        reading, writing = os.pipe()
        numbers = (writing, int(limits.seconds) + 1, limits.memory, limits.file)
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(_GUARD), *map(str, numbers)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place, pass_fds=(writing,),
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": place, "TMPDIR": place},
            start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        try:
            process.communicate(f"{token}\n{program}".encode(), timeout=limits.seconds)
            said = _said(reading)
        except subprocess.TimeoutExpired:
            said = TIMEOUT
        finally:
            _end(process)
            os.close(reading)
    if said.startswith("unlimited: "):
        raise ValueError(
            f"code is not run here, since it cannot be limited ({said.removeprefix('unlimited: ')}); it takes Linux on x86-64 or "
            "ARM64 with seccomp"
        )
    if said == TIMEOUT or process.returncode == -signal.SIGXCPU:
        return TIMEOUT
    return PASSED if said == token else said if said in (MEMORY, REFUSED) else FAILED


class CodeEval:
    """The harness's metric `code_eval`, carried out by `run_code`; `outcomes` counts what became of the programs."""

    def __init__(self, limits: Limits | None = None):
        self.limits, self.outcomes = limits or Limits(), Counter()

    def compute(
        self, *, references: list[str], predictions: list[list[str]], k: list[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """pass@k: of n programs an item, c of which pass, 1 − C(n − c, k) / C(n, k), mean over items (arXiv 2107.03374).

        Args:
            references: the tests of each item.
            predictions: its programs.
        """
        results = {}
        for item, (tests, programs) in enumerate(zip(references, predictions, strict=True)):
            said = [run_code(f"{program}\n{tests}", self.limits) for program in programs]
            self.outcomes.update(said)
            results[item] = [
                (n, {"task_id": item, "passed": s == PASSED, "result": s, "completion_id": n})
                for n, s in enumerate(said)
            ]
        counts = [(len(r), sum(told["passed"] for _, told in r)) for r in results.values()]
        passing = {
            f"pass@{m}": fmean(1 - comb(n - c, m) / comb(n, m) for n, c in counts)
            for m in k
            if counts and all(n >= m for n, _ in counts)
        }
        return passing, results


def _said(reading: int) -> str:
    # A program that left a child behind keeps the pipe open.
    os.set_blocking(reading, False)
    try:
        return os.read(reading, 4096).decode(errors="replace")
    except BlockingIOError:
        return ""


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
