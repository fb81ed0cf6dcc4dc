"""Fake tasks of runs on an object store: workers have scratch folders of their own, so they are told of and tell by SIGNALS."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gatelab.config import Execution
from gatelab.record import Row
from gatelab.store import Appender, RunFolder, StudyFolder
from gatelab.study.drive import drive
from gatelab.study.local import LocalExecutor


def signals() -> Path:
    return Path(os.environ["SIGNALS"])


def starts(run: RunFolder) -> list[int]:
    """The processes that began a run, in their order."""
    ran = signals() / f"{run.fingerprint}.ran"
    return [int(line) for line in ran.read_text().splitlines()] if ran.exists() else []


def succeed(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    for run in _start(runs):
        _write(run, 1, 0)
        print("about to succeed")
        run.mark_done("done", {"steps": 1, "seconds": 0.0})


def succeed_and_talk(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Prints until the process ends."""

    def talk() -> None:
        while True:
            print("still here", flush=True)
            time.sleep(0.001)

    succeed(runs, execution, should_stop=should_stop)
    threading.Thread(target=talk, daemon=True).start()


def succeed_by_a_wrong_clock(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    now = time.time
    time.time = lambda: now() + 3600.0
    time.sleep(1.5)
    succeed(runs, execution, should_stop=should_stop)


def meet(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Goes on once two drivers are there."""
    while len(list(signals().glob("driver-*"))) < 2:
        time.sleep(0.01)
    succeed(runs, execution, should_stop=should_stop)


def fail(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    _start(runs)
    raise ValueError("model.n_heads=3 does not divide d_model=64")


def die_once(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    if len(starts(runs[0])) == 0:
        _start(runs)
        os.kill(os.getpid(), signal.SIGKILL)
    succeed(runs, execution, should_stop=should_stop)


def count(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """A row a step, and a checkpoint each twentieth and when asked to stop; until there is a signal `finish`."""
    (run,) = _start(runs)
    checkpoint = run.path / "checkpoint.json"
    first = step = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    with open(signals() / f"{run.fingerprint}.from", "a") as file:
        file.write(f"{first}\n")
    _write(run, 0, json.loads(checkpoint.read_text())["offset"] if first else 0)
    while not (signals() / "finish").exists():
        step += 1
        offset = _write(run, step, run.rows_path.stat().st_size)
        stopping = should_stop()
        if stopping or step % 20 == 0:
            half = run.path / ".checkpoint.tmp"
            half.write_text(json.dumps({"step": step, "offset": offset}))
            half.replace(checkpoint)
        if stopping:
            return
        time.sleep(0.02)
    run.mark_done("done", {"steps": step, "seconds": 0.0})
    checkpoint.unlink(missing_ok=True)


def _start(runs: list[RunFolder]) -> list[RunFolder]:
    for run in runs:
        with open(signals() / f"{run.fingerprint}.ran", "a") as file:
            file.write(f"{os.getpid()}\n")
    return runs


def _write(run: RunFolder, step: int, offset: int) -> int:
    rows = Appender(run.rows_path, offset)
    if step:
        rows.write([Row(run.fingerprint, step, "train", "loss", 1.0 / step, "nats")])
    size = rows.flush()
    rows.close()
    return size


def main() -> int:
    """A driver as its own process: ADDRESS TARGET; prints `interrupted` when Ctrl-C got through."""
    folder = StudyFolder.open(sys.argv[1], is_light=True)
    executor = LocalExecutor(slots=2, threads=1, preload=())
    (signals() / f"driver-{os.getpid()}").touch()
    try:
        drive(folder, executor, Execution(), entries=folder.study()["plan"], target=sys.argv[2], grace_s=20.0)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 1
    finally:
        executor.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
