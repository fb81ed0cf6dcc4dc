"""What every executor is: six methods over named work. Results travel through run folders, never through it.

An executor starts workers, says when they have ended, and can ask or force them to. It keeps no state that matters:
what a task did is read from the ledger, so an executor (or its driver) may vanish at any moment. Work is named, not
shipped: a task is a few strings and numbers, and `worker_command` is the process that any machine can start for it.
"""

import json
import os
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NoReturn, Protocol

# `study/carry_out.py`, and then what pages read of the runs that are done: named, since it is of what comes after a run.
TARGET = "gatelab.analysis.run_digest:carry_out"
# Time to write a checkpoint after being asked to stop; also Slurm's default between its two signals.
GRACE_S = 30.0

# Exit codes of a worker. They only matter where its last word could not be written; the attempt says the rest.
EXITS = {
    "done": 0,
    "failed": 1,
    "held": 3,
    "oom": 4,
    "disk-full": 5,
    "stopped": 6,
    "orphaned": 7,
    "displaced": 8,
    "lost": 9,
}


@dataclass(frozen=True, slots=True)
class Task:
    """A group of one or more runs of one shape, carried out by one process.

    `folder` is the study's, `execution` a JSON-ready `Execution`, `target` a function named `module:function`, `owner`
    the name under which the worker takes the runs' leases, and `grace_s` the seconds between being asked and forced.
    `known` is the number of attempts that a run had when its state was read, by fingerprint: the task is for this state.
    """

    folder: str
    fingerprints: tuple[str, ...]
    execution: dict[str, Any]
    target: str = TARGET
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    grace_s: float = GRACE_S
    known: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker has ended: by itself with `exit_code`, or by the signal named `signal`; with neither, it vanished."""

    handle: str
    exit_code: int | None
    signal: str | None


class Executor(Protocol):
    """Starts tasks somewhere. A handle is the task's owner."""

    @property
    def slots(self) -> int:
        """Tasks that run at once; a driver keeps no more than these submitted."""

    @property
    def has_gpus(self) -> bool:
        """Whether tasks find a GPU."""

    def submit(self, task: Task) -> str:
        """Start a task and return its handle without waiting for it."""

    def poll(self, timeout: float) -> list[Ended]:
        """The tasks that have ended since the last call, each once; waits up to `timeout` seconds for the first."""

    def stop(self, handle: str) -> None:
        """Ask a task to checkpoint and leave (SIGTERM where there are signals). Nothing happens if it has ended."""

    def kill(self, handle: str) -> None:
        """End a task and the processes it started, now. Nothing happens if it has ended."""

    def close(self) -> None:
        """End whatever still runs and leave no process behind. May be called twice."""


def function_of(task: Task) -> Callable[..., None]:
    """What carries a task out: looked up by its name, in the code that is installed on this machine."""
    module, _, name = task.target.partition(":")
    return getattr(import_module(module), name)


def leave(code: int) -> NoReturn:
    """End this process at once, and what it started with it where nobody else is left to do so.

    The leader of a session is alone in its group with what it started: fork server and torchrun give each worker a session.
    In a group that another leads, such as a shell's, there are strangers, who stay.
    """
    if os.getsid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(code)


def worker_command(task: Task, driver_pid: int | None) -> list[str]:
    """The command that carries out a task in a fresh interpreter on any machine that sees the folder.

    Args:
        driver_pid: a process of the same machine without which the worker should not go on, if there is one.
    """
    # -P: the working directory is not a place to import from, whatever lies there.
    command = [sys.executable, "-P", "-m", "gatelab.study.worker", task.folder, *task.fingerprints]
    command += ["--execution", json.dumps(task.execution), "--target", task.target]
    command += ["--owner", task.owner, "--grace-s", str(task.grace_s), "--known", json.dumps(task.known)]
    return command + (["--driver-pid", str(driver_pid)] if driver_pid is not None else [])
