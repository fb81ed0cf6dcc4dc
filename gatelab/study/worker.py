"""The worker: takes the leases of a task's runs, carries them out, and writes down how each attempt ended.

    python -m gatelab.study.worker FOLDER FINGERPRINT [FINGERPRINT …] [--execution JSON]
    torchrun --nproc-per-node 2 -m gatelab.study.worker FOLDER FINGERPRINT --execution '{"parallel": {"tp": 2}}'

What it is given by hand is looked at before anything is written, and in the end a line on stderr says how each run stands (of
ranks that torchrun starts the first says it). The command and the fork server's children both call `work`. A worker writes to
its runs' folders only, prints to log.txt, treats SIGTERM as the wish to stop, and leaves by itself when its driver is gone or its
lease is taken.
"""

import argparse
import errno
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn

from ..config import ConfigError, Execution
from ..store import DamagedError, RunFolder, StudyFolder
from . import ledger
from .by_hand import by_hand, execution_of, json_object, say
from .carry_up import Carrier, carriers, carrying, study_of
from .executor import EXITS, GRACE_S, TARGET, Task, function_of, leave
from .gang import FailedError, LostError, accompany, clear, gang
from .place import FULL, PlaceError, patiently

Held = tuple[RunFolder, ledger.Attempt]
# What gloo, its stores, the rendezvous and NCCL say, in plain RuntimeErrors or kinds of them.
_OF_EXCHANGE = {
    (
        "timed out",
        "wait timeout",
        "operation timeout",
    ): "another process of the run did not answer for execution.wait_s seconds",
    ("reset by peer", "closed by peer", "broken pipe", "remote process exiting"): "another process of the run is gone",
}


def work(task: Task, driver_pid: int | None = None) -> int:
    """Carry out a task in this process, of which it takes the output and the signals; returns the exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Ctrl-C is the driver's affair: it asks its tasks to stop when it has decided to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    folder = study_of(task)
    runs = [folder.run(f) for f in task.fingerprints]
    take_output(task)
    driver = _Driver(driver_pid)

    held: list[Held] = []
    of_objects: list[Carrier] = []
    error: BaseException | None = None
    try:
        execution = Execution.model_validate(task.execution)
        for run in runs:
            known = task.known.get(run.fingerprint)
            claim = partial(ledger.claim, driver=driver_pid, micro_batch=execution.micro_batch, known=known)
            may_wait_no_more = lambda: stop.is_set() or driver.is_gone()  # noqa: E731
            try:
                attempt = patiently(run, partial(claim, run, task.owner), is_over=may_wait_no_more)
            except DamagedError as damage:
                print(f"{run.fingerprint}: left out, since it is damaged: {damage}")
                continue
            if attempt is not None:
                held.append((run, attempt))
        if not held:
            _clear(folder, task)
            return EXITS["held"]
        for run, _ in held[1:]:
            with open(run.path / "log.txt", "a", encoding="utf-8") as f:
                f.write(f"in one process with {runs[0].fingerprint}, whose log.txt has the output\n")
        of_objects = carriers(held)
        with _Heart(held, stop, driver, task.grace_s), carrying(of_objects):
            if not stop.is_set():
                group = replace(task, fingerprints=tuple(run.fingerprint for run, _ in held))
                fail = lambda error: driver.leave(_end(held, of_objects, error, stopped=False))  # noqa: E731
                with gang(group, execution.processes, fail):
                    function_of(task)([run for run, _ in held], execution, should_stop=stop.is_set)
    # Whatever ends an attempt, the ledger has to say so.
    except BaseException as caught:
        error = caught
        traceback.print_exc()
    code = _end(held, of_objects, error, stopped=stop.is_set())
    _clear(folder, task)
    if driver.is_gone():
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        driver.leave(code)
    return code


def classify(error: BaseException) -> tuple[str, str]:
    """The outcome that an exception means (`oom`, `disk-full`, `lost`, `failed`), and one line that tells it.

    torch's errors are known by their names and words, because this module does not load torch.
    """
    chain = _chain(error)
    if any(_is_disk_full(e) for e in chain):
        return "disk-full", _line(error)
    if isinstance(error, PlaceError):
        return "lost", str(error.strerror)
    if isinstance(error, LostError):
        return "lost", str(error)
    if any(_is_out_of_memory(e) for e in chain):
        return "oom", f"out of memory: {_line(error)}"
    if not isinstance(error, FailedError):
        # Where the others are not this process's own, their ends show in the exchange alone.
        for words, message in _OF_EXCHANGE.items():
            if any(_has_words(e, words) for e in chain):
                return "lost", message
    return "failed", _line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {_line(error)}"


def disk_is_full(n_runs: int) -> str:
    """The one sentence about a full disk."""
    return f"the disk is full: {kept(n_runs)}; free space and run the same command again"


def kept(n_runs: int) -> str:
    """What becomes of runs that are not done."""
    return f"{n_runs} runs keep what they had" if n_runs != 1 else "1 run keeps what it had"


def take_output(task: Task) -> None:
    """Send stdout and stderr of this process to the log.txt of the task's first run."""
    sys.stdout.flush()
    sys.stderr.flush()
    run = study_of(task).run(task.fingerprints[0])
    run.path.mkdir(parents=True, exist_ok=True)
    log = os.open(run.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)


class _Driver:
    """The process of this machine without which a worker stops, if there is one."""

    def __init__(self, pid: int | None):
        self._pid = pid
        self._started = None if pid is None else ledger.process_start(pid)

    def lives(self) -> bool:
        """Whether there is one and it is there."""
        return self._started is not None and ledger.process_start(self._pid) == self._started

    def is_gone(self) -> bool:
        """Whether there was one and it is not there any more."""
        return self._pid is not None and not self.lives()

    def leave(self, code: int) -> NoReturn:
        """End this process at once. A driver that lives reads the code, and has what the worker started ended."""
        if self.lives():
            os._exit(code)
        leave(code)


class _Heart(threading.Thread):
    """Beats for the leases, and watches that they are still ours and that the driver lives."""

    def __init__(self, held: list[Held], stop: threading.Event, driver: _Driver, grace_s: float):
        super().__init__(daemon=True, name="heartbeat")
        self._held, self._stop_task, self._grace_s = held, stop, grace_s
        self._driver = driver
        self._quit = threading.Event()
        self._leave_at: float | None = None

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self.join()

    def run(self) -> None:
        while True:
            if not all(ledger.beat(run, attempt) for run, attempt in self._held):
                # Somebody else writes to the folder now: not one more byte, not even a checkpoint.
                self._driver.leave(EXITS["displaced"])
            self._watch_driver()
            if self._quit.wait(ledger.BEAT_S):
                return

    def _watch_driver(self) -> None:
        if not self._driver.is_gone():
            return
        if self._leave_at is None:
            print("the driver is gone: stopping")
            self._leave_at = time.monotonic() + self._grace_s
            self._stop_task.set()
        elif time.monotonic() > self._leave_at:
            self._driver.leave(EXITS["orphaned"])


def _clear(folder: StudyFolder, task: Task) -> None:
    """Of an object store's runs, remove the scratch folder, as the fork server does where there is one."""
    if folder.objects is not None:
        clear(task.owner)


def _end(held: list[Held], of_objects: list[Carrier], error: BaseException | None, *, stopped: bool) -> int:
    """Write the last word of every attempt; returns the exit code, that of the last one which is not done."""
    outcome, message = classify(error) if error is not None else ("stopped", "asked to stop")
    if error is None and not stopped:
        outcome, message = "failed", "the task returned without finishing the run or being asked to stop"
    # A step of srun is asked to stop where one of its processes was killed too; that is no wish of anybody.
    is_step = os.environ.get("SLURM_NTASKS", "1") == os.environ.get("WORLD_SIZE") != "1"
    if outcome == "lost" and stopped and not is_step:
        outcome = "stopped"
    if outcome == "disk-full":
        message = disk_is_full(len(held))
    trace = "".join(traceback.format_exception(error)) if error is not None else ""
    code = EXITS[outcome] if error is not None or not held else 0
    for carrier in of_objects:
        with suppress(OSError):
            carrier.save()  # the last words of its log
    for run, attempt in held:
        done = None
        try:
            done = run.done()
            if done is not None:
                patiently(run, partial(ledger.end, run, attempt, done["status"], exit_code=0))
            else:
                code = EXITS[outcome]
                said = {"message": message, "traceback": trace, "exit_code": code}
                patiently(run, partial(ledger.end, run, attempt, outcome, **said))
        except (OSError, DamagedError) as unwritten:
            # On a full disk the exit code is the last word, and the driver closes the attempt when it can. Of a damaged run its
            # state says what there is to say.
            print(f"{run.fingerprint}: the end of the attempt could not be written: {unwritten}")
            if done is None:
                code = EXITS[outcome]
            elif run.objects is None and isinstance(unwritten, OSError):
                code = EXITS["disk-full"]
    return code


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and what it was raised from."""
    out: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in out:
        out.append(current)
        current = current.__cause__ or current.__context__
    return out


def _is_disk_full(error: BaseException) -> bool:
    # safetensors reports the system's error in words only.
    full = isinstance(error, OSError) and error.errno in FULL
    return full or os.strerror(errno.ENOSPC) in str(error)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__):
        return True
    # torch on CPUs, the CUDA driver and cuBLAS raise plain RuntimeErrors.
    return _has_words(error, ("can't allocate memory", "cuda error: out of memory", "cublas_status_alloc_failed"))


def _has_words(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)


def _line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m gatelab.study.worker", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="the study's folder")
    parser.add_argument("fingerprints", nargs="+", metavar="FINGERPRINT", help="runs of one shape, for one process")
    parser.add_argument("--execution", default="{}", metavar="JSON", help="fields of Execution")
    parser.add_argument("--target", default=TARGET, metavar="MODULE:FUNCTION", help="what carries them out")
    parser.add_argument("--owner", default=None, help="the name to take the leases under; whoever gives it has looked")
    parser.add_argument("--grace-s", type=float, default=GRACE_S, help="seconds to stop in when the driver is gone")
    parser.add_argument("--driver-pid", type=int, default=None, help="the process without which to stop")
    parser.add_argument("--known", default="{}", metavar="JSON", help="attempts that there may be, by fingerprint")
    given = parser.parse_args()
    try:
        task = Task(
            folder=given.folder,
            fingerprints=tuple(given.fingerprints),
            execution=execution_of(given.execution).model_dump(mode="json"),
            target=given.target,
            grace_s=given.grace_s,
            known=json_object("--known", given.known),
            **({"owner": given.owner} if given.owner else {}),
        )
    except ConfigError as error:
        say(f"gatelab: {'; '.join(error.problems)}")
        return 2
    is_first = os.environ.get("RANK", "0") == "0"
    go = lambda task: work(task, given.driver_pid) if is_first else accompany(task, os.getppid())  # noqa: E731
    return go(task) if given.owner else by_hand(task, go)


if __name__ == "__main__":
    sys.exit(main())
