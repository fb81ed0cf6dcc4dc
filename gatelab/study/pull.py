"""What a batch system runs: a driver of one machine that takes runs from the ledger until its time is nearly up.

    python -m gatelab.study.pull FOLDER [--execution JSON]

Any number of them work at one study. SIGUSR1 says that the time is nearly up: runs are saved and this job is queued again
if something is left to do. SIGTERM says that the job is pre-empted (Slurm queues it again itself) or cancelled (nobody
should): runs are saved, and that is all.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..config import ConfigError, Execution
from ..store import DamagedError, StoreError, StudyFolder
from . import ledger
from .by_hand import execution_of
from .drive import POLL_S, Event, Summary, drive
from .executor import GRACE_S, TARGET
from .local import PRELOAD, local_executor
from .srun import SrunExecutor

# A job that is queued again so often does not get on; it ends, and its runs stay resumable.
_MOST_REQUEUES = 1000
_RESUMABLE = ("planned", "running", "stopped", "lost")


def pull(
    folder: StudyFolder, execution: Execution, *, target: str = TARGET, grace_s: float = GRACE_S, nodes: int = 1
) -> Summary | None:
    """Carry out what others do not until nothing is left for this machine, or for the job's `nodes` machines together; None
    when it was asked to stop."""
    preload = PRELOAD if target == TARGET else ()
    if nodes > 1:
        # Processes that srun starts cannot be told which runs of a group the first one could claim.
        execution = execution.model_copy(update={"group": 1})
    executor = SrunExecutor(execution, nodes) if nodes > 1 else local_executor(execution, preload)
    try:
        while True:
            summary = drive(
                folder,
                executor,
                execution,
                entries=folder.study()["plan"],
                on_event=_tell,
                target=target,
                grace_s=grace_s,
            )
            if not any(_is_dropped(folder, f) for f in summary.elsewhere):
                return summary
    except KeyboardInterrupt:
        return None
    finally:
        executor.close()


def _is_dropped(folder: StudyFolder, fingerprint: str) -> bool:
    """Whether a run's owner does not beat again; it may have been this very job, on the machine that failed."""
    run = folder.run(fingerprint)
    with suppress(DamagedError):  # which the next drive tells
        last = ledger.last_attempt(run)
        beat = last and ledger.last_beat(run, last)
        while ledger.state_of(run) == "running":
            now = ledger.last_attempt(run)
            if (now and ledger.last_beat(run, now)) != beat:
                return False
            time.sleep(POLL_S)
    return ledger.state_of(run) not in ledger.FINISHED


def _tell(event: Event) -> None:
    message = f": {event.message}" if event.message else ""
    print(f"{event.fingerprint} {event.kind} {event.state}{message}", flush=True)


def _hear(number: int, forward: Callable[[], None]) -> None:
    """Ctrl-C's way of stopping, once: a second signal would be taken for impatience."""

    def heard(*_: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        forward()

    signal.signal(number, heard)


def _requeue(folder: StudyFolder) -> None:
    job, times = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if job is None or not any(ledger.state_of(run) in _RESUMABLE for _, run in folder.planned()):
        return
    if times >= _MOST_REQUEUES:
        print(f"the time is nearly up for the {times + 1}th time; not queued again", flush=True)
        return
    print("the time is nearly up: the runs are saved, and this job is queued again", flush=True)
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"scontrol requeue {job}: {done.stderr.strip()}; hand the script in again", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m gatelab.study.pull", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="the study's folder")
    parser.add_argument("--execution", default="{}", metavar="JSON", help="fields of Execution")
    parser.add_argument("--target", default=TARGET, metavar="MODULE:FUNCTION", help="what carries runs out")
    parser.add_argument("--grace-s", type=float, default=GRACE_S, help="seconds to save in when asked to stop")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines of this job that share each run")
    given = parser.parse_args()
    why: list[str] = []

    def stop(reason: str) -> None:
        if not why:
            why.append(reason)
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a batch system may start jobs without it
    _hear(signal.SIGUSR1, lambda: stop("time"))
    _hear(signal.SIGTERM, lambda: stop("asked"))
    try:
        folder = StudyFolder.open(given.folder)
        execution = execution_of(given.execution)
        summary = pull(folder, execution, target=given.target, grace_s=given.grace_s, nodes=given.nodes)
    except KeyboardInterrupt:
        summary = None
    except (ConfigError, StoreError) as error:
        print(f"gatelab: {error}", flush=True)
        return 1
    if summary is None:
        if why == ["time"]:
            _requeue(StudyFolder(Path(given.folder)))
        return 0
    print(summary.halted or f"nothing is left for this job; `gatelab status {folder.path}` says how the runs stand")
    return 0 if all(state in (*ledger.FINISHED, "running") for state in summary.states.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
