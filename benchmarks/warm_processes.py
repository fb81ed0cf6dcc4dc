"""Processes that warm up beside each other and then work one at a time, while all others are stopped.

A script starts itself once a configuration: `Process` there, `serve` here. All import what they need at once; as many blocks of
them as the GPU has room for build, compile and capture at the same time. When all of a block are warm, the processes of every
other block are stopped (SIGSTOP, with those that compile for them) until it has done its work and given up its memory. What
fails, or is not warm in time, is left out and says why; the others go on.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
WORKER = "--worker"
# What was launched before a process was stopped has left the device by then.
_DRAINED_S = 0.3
_END_S = 20.0
_SAID = 8  # lines of the log of what failed


@dataclass(frozen=True)
class Bounds:
    """`gib` of GPU memory for all processes together; `limit` seconds until a process must be warm, those in which it was
    stopped not counted; `seconds` after which no block is begun or waited for."""

    gib: float
    limit: float
    seconds: float


class Process:
    """One configuration in a process of its own. `facts` is what it said when it was warm, `failed` why there is nothing.

    Args:
        name: of its log in `folder`.
        about: JSON for the script's worker.
        gib: GPU memory that it is given room for.
    """

    def __init__(self, name: str, script: str, about: Facts, *, gib: float, folder: Path):
        self.name, self.gib, self.facts, self.failed = name, gib, None, ""
        self._log = folder / f"{name}.log"
        safe = ["-P"] if sys.flags.safe_path else []
        command = [sys.executable, *safe, "-W", "ignore", script, WORKER, json.dumps(about)]
        with self._log.open("w") as log:
            # A group of its own, so that it is stopped with what compiles for it.
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, request: Facts) -> None:
        """Ask for something; the first request is to warm up. One that has ended is found out by its answer."""
        with contextlib.suppress(OSError):
            self._popen.stdin.write(json.dumps(request) + "\n")
            self._popen.stdin.flush()

    def ask(self, request: Facts, seconds: float) -> Facts | None:
        """The answer; None where none came, and then the process is over and `failed` says why."""
        self.send(request)
        try:
            return self._taken(self._lines.get(timeout=seconds))
        except queue.Empty:
            self.fail(f"no answer within {seconds:.0f} s")
            return None

    def is_settled(self) -> bool:
        """Whether it is warm or has failed."""
        if self.facts is None and not self.failed:
            with contextlib.suppress(queue.Empty):
                self.facts = self._taken(self._lines.get_nowait())
        return self.facts is not None or bool(self.failed)

    def fail(self, why: str) -> None:
        """Give it up."""
        self.failed = why
        self.kill()

    def said(self, n: int) -> list[str]:
        """The last lines of its log."""
        return self._log.read_text(errors="replace").strip().splitlines()[-n:]

    def signal(self, number: signal.Signals) -> None:
        """To it and all that it started."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def close(self) -> None:
        """Let it end, so that its memory is free."""
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        try:
            self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, where it has not ended."""
        self.signal(signal.SIGKILL)
        self._popen.wait()
        self._reader.join()
        self._popen.stdout.close()
        with contextlib.suppress(OSError):
            self._popen.stdin.close()

    def _read(self) -> None:
        for line in self._popen.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _taken(self, line: str | None) -> Facts | None:
        if line is None:
            said = self.said(1)
            self.fail(f"ended with {self._popen.wait()}: {said[0][:300] if said else 'without a word'}")
            return None
        answer = json.loads(line)
        if "failed" in answer:
            self.fail(answer["failed"])
            return None
        return answer


def serve(work: Callable[[Facts], Generator[Facts, Facts, None]]) -> None:
    """In the worker: warm up at the first request, and answer every other, until there are no more.

    Args:
        work: of the description in `sys.argv`; yields facts once it is warm, and then an answer a request, which it is sent.
    """
    about, answers = json.loads(sys.argv[2]), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    steps = work(about)
    for i, line in enumerate(sys.stdin):
        try:
            answer = steps.send(json.loads(line)) if i else next(steps)
        except Exception as error:
            traceback.print_exc()
            said = str(error).strip().splitlines() or [""]
            answer = {"failed": f"{type(error).__name__}: {said[0][:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def one_at_a_time(
    blocks: dict[str, list[Process]],
    work: Callable[[str, list[Process], float], None],
    bounds: Bounds,
    tell: Callable[[str], None],
) -> None:
    """Warm all blocks up, as many at once as there is room for in their order, and do the work of each when it is warm.

    Args:
        work: of a block's name, those of its processes that are warm, and the time of `time.monotonic` at which it is to end.
    """
    waiting, warming, begun = dict(blocks), {}, {}
    start = time.monotonic()
    end = start + bounds.seconds
    try:
        while waiting or warming:
            _begin(waiting, warming, begun, bounds.gib)
            ready = [name for name, block in warming.items() if all(p.is_settled() for p in block)]
            if ready:
                name = ready[0]
                block = warming.pop(name)
                tell(f"{name}: warm after {time.monotonic() - begun[name]:.0f} s, at {time.monotonic() - start:.0f} s")
                others = [p for own in (*waiting.values(), *warming.values()) for p in own]
                stopped_s = _alone(others, lambda n=name, b=block: work(n, [p for p in b if not p.failed], end))
                begun = {other: at + stopped_s for other, at in begun.items()}
                for p in block:
                    p.close()
                    if p.failed:
                        tell("\n    ".join([f"{p.name}: {p.failed}", *p.said(_SAID)]))
                continue
            if time.monotonic() > end:
                tell(f"left out, {bounds.seconds:.0f} s are over: {', '.join((*warming, *waiting))}")
                return
            for name, block in warming.items():
                if time.monotonic() - begun[name] > bounds.limit:
                    for p in block:
                        if not p.is_settled():
                            p.fail(f"not warm within {bounds.limit:.0f} s")
            time.sleep(0.05)
    finally:
        for p in (p for block in blocks.values() for p in block):
            p.kill()


def _begin(waiting: dict, warming: dict, begun: dict, gib: float) -> None:
    for name, block in list(waiting.items()):
        held = sum(p.gib for own in warming.values() for p in own)
        # What needs more than there is has it at least for itself.
        if not warming or held + sum(p.gib for p in block) <= gib:
            warming[name], begun[name] = waiting.pop(name), time.monotonic()
            for p in block:
                p.send({})


def _alone(others: list[Process], work: Callable[[], None]) -> float:
    """Work while others are stopped; the seconds that they were."""
    start = time.monotonic()
    for p in others:
        p.signal(signal.SIGSTOP)
    time.sleep(_DRAINED_S)
    try:
        work()
    finally:
        for p in others:
            p.signal(signal.SIGCONT)
    return time.monotonic() - start
