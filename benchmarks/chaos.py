"""A process that kills workers and drivers of a study at random, lets them stand still and starts them again.

What it does is drawn from a seed; when it is done to whom depends on how fast the machine is, so no two soaks are alike.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from audit import processes

from gatelab.store import StudyFolder
from gatelab.study import ledger

Worker = tuple[str, int, str]  # the run's fingerprint, the process and when it started
# In the order in which a worker's end brings them: what it is killed at, rather than at a moment.
_MOMENTS = (".checkpoint.safetensors.", ".weights.safetensors.", "weights.safetensors", ".done.json.", "done.json")
_MOST_DRIVERS = 2
_PATIENCE_S = 20.0


class Chaos:
    """Acts on the drivers that `start` starts and on what they start.

    Args:
        start: a driver as a process of its own; the argument is its number.
        look: the command of a reader, which must not fail.
        mark: what the environment of all these processes has in it.
    """

    def __init__(
        self,
        folder: StudyFolder,
        start: Callable[[int], "subprocess.Popen[bytes]"],
        look: list[str],
        mark: str,
        seed: int,
    ):
        self._folder, self._start, self._look, self._mark = folder, start, look, mark
        self._draw = random.Random(seed)
        self._drivers: list[subprocess.Popen[bytes]] = []
        self._go_on_at: dict[tuple[int, str], float] = {}  # of those that stand still
        self._start_at = 0.0
        self.done: Counter[str] = Counter()
        self.failed_readers: list[str] = []
        self.n_drivers = 0

    def act(self, seconds: float, pace_s: float, is_over: Callable[[], bool]) -> None:
        """Something every `pace_s` seconds on average, for so long, or until `is_over` and no driver works."""
        acts = list(ACTS)
        weights = [ACTS[name][0] for name in acts]
        end, next_at = time.monotonic() + seconds, 0.0
        (name,) = self._draw.choices(acts, weights)
        while (now := time.monotonic()) < end:
            if not self._drivers and self.n_drivers and is_over():
                return
            self._keep_up()
            if now >= next_at:
                is_done = ACTS[name][1](self)
                self.done[name] += is_done
                # What cannot be done yet is waited for, or drivers, which are always there, would be hit too often.
                if is_done or now > next_at + _PATIENCE_S:
                    (name,) = self._draw.choices(acts, weights)
                    next_at = time.monotonic() + self._draw.expovariate(1 / pace_s)
            time.sleep(0.05)

    def calm(self, is_over: Callable[[], bool], drives: int = 5) -> None:
        """Let everything go on, and drive to the end."""
        for who in list(self._go_on_at):
            self._wake(who)
        for i in range(drives + 1):
            for driver in self._drivers:
                driver.wait()
            self._drivers.clear()
            if is_over() or i == drives:
                return
            self._begin()

    def _keep_up(self) -> None:
        """What was put off: sleepers that are to go on, and a driver where there is none."""
        now = time.monotonic()
        for who in [w for w, at in self._go_on_at.items() if now >= at]:
            self._wake(who)
        had = len(self._drivers)
        self._drivers = [d for d in self._drivers if d.poll() is None]
        if not self._drivers and had:
            self._start_at = now + self._draw.uniform(0, 1)
        if not self._drivers and now >= self._start_at:
            self._begin()

    def _begin(self) -> None:
        self.n_drivers += 1
        self._drivers.append(self._start(self.n_drivers))

    def _wake(self, who: tuple[int, str]) -> None:
        del self._go_on_at[who]
        _send(*who, signal.SIGCONT)

    def _worker(self) -> Worker | None:
        """One of those that the ledger says are at work."""
        found = []
        for _, run in self._folder.planned():
            last = ledger.last_attempt(run) if run.done() is None else None
            if last is not None and last.outcome == "running" and ledger.is_live(run, last):
                found.append((run.fingerprint, last.pid, last.process))
        return self._draw.choice(found) if found else None

    def _kill_worker(self) -> bool:
        worker = self._worker()
        return worker is not None and _send(*worker[1:], signal.SIGKILL)

    def _kill_worker_at_a_file(self) -> bool:
        """When something appears in its folder, which takes it a moment."""
        worker = self._worker()
        if worker is None:
            return False
        name, place = self._draw.choice(_MOMENTS), self._folder.run(worker[0]).path
        there = {n for n in os.listdir(place) if n.startswith(name)}
        end = time.monotonic() + 5
        while time.monotonic() < end and ledger.process_start(worker[1]) == worker[2]:
            if any(n.startswith(name) and n not in there for n in os.listdir(place)):
                return _send(*worker[1:], signal.SIGKILL)
            time.sleep(0.0005)
        return False

    def _hold_worker(self) -> bool:
        worker = self._worker()
        if worker is None or worker[1:] in self._go_on_at or not _send(*worker[1:], signal.SIGSTOP):
            return False
        self._go_on_at[worker[1:]] = time.monotonic() + self._draw.uniform(0.5, 6)
        return True

    def _to_driver(self, number: signal.Signals) -> bool:
        if not self._drivers:
            return False
        self._draw.choice(self._drivers).send_signal(number)
        return True

    def _kill_driver_start_two(self) -> bool:
        if not self._to_driver(signal.SIGKILL):
            return False
        while len(self._drivers) < _MOST_DRIVERS + 1:
            self._begin()
        return True

    def _kill_server(self) -> bool:
        """The process that a driver's workers are forked from."""
        drivers = {d.pid for d in self._drivers}
        servers = [pid for pid in processes(self._mark) if _parent(pid) in drivers]
        if not servers:
            return False
        pid = self._draw.choice(servers)
        return _send(pid, ledger.process_start(pid), signal.SIGKILL)

    def _second_driver(self) -> bool:
        if len(self._drivers) != 1:
            return False
        self._begin()
        return True

    def _read(self) -> bool:
        read = subprocess.run(self._look, capture_output=True, text=True, check=False)
        if read.returncode:
            self.failed_readers.append(read.stderr.strip() or f"exit status {read.returncode}")
        return True


# What happens, and how often: of 100 acts.
ACTS: dict[str, tuple[int, Callable[[Chaos], bool]]] = {
    "a worker is killed": (36, Chaos._kill_worker),
    "a worker is killed at a file": (14, Chaos._kill_worker_at_a_file),
    "a worker stands still, then goes on": (14, Chaos._hold_worker),
    "the driver is killed": (7, lambda c: c._to_driver(signal.SIGKILL)),
    "the driver is killed, two are started": (4, Chaos._kill_driver_start_two),
    "Ctrl-C": (6, lambda c: c._to_driver(signal.SIGINT)),
    "SIGTERM to the driver": (4, lambda c: c._to_driver(signal.SIGTERM)),
    "the fork server is killed": (4, Chaos._kill_server),
    "a second driver": (5, Chaos._second_driver),
    "a reader": (6, Chaos._read),
}


def _send(pid: int, process: str | None, number: signal.Signals) -> bool:
    """Whether it was still there."""
    if process is None or ledger.process_start(pid) != process:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
