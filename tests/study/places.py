"""Where the conformance suite carries runs out: every executor, and a Slurm. A place drives studies of fake tasks."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import slurm_cluster
from conftest import wait_until

from gatelab.config import Execution
from gatelab.store import StudyFolder
from gatelab.study import ledger, ray, slurm
from gatelab.study.drive import Summary, drive
from gatelab.study.executor import Executor, Task, worker_command
from gatelab.study.local import LocalExecutor

HERE = Path(__file__).parent
NOTHING_TO_TEST = "nothing to test"


def embedded_ray() -> Executor:
    ray._embed(Execution(slots=2))
    return ray.RayExecutor(Execution(), preload=())


def embedded_ray_on_gpus() -> Executor:
    """Of two GPUs that are only said to be there."""
    ray.gpus = lambda: ["0", "1"]
    return embedded_ray()


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "local": lambda: LocalExecutor(slots=2, threads=1, preload=()),
    "fresh": lambda: LocalExecutor(slots=2, threads=1, devices=("0", "1")),
    "ray": embedded_ray,
    "ray-on-gpus": embedded_ray_on_gpus,
}


def open_executor(kind: str, folder: Path) -> Executor:
    """One of `EXECUTORS`, or with ray@ADDRESS a cluster of Ray."""
    name, _, address = kind.partition("@")
    if not address:
        return EXECUTORS[name]()
    executor = ray.ray_executor(Execution(), address)
    ray.check_folder(address, folder)
    return executor


class Driver(ABC):
    """A driver in a process of its own."""

    @abstractmethod
    def interrupt(self) -> None:
        """As a person does who wants it to stop."""

    def ask(self) -> None:
        """To stop when it can, and no more."""
        self.interrupt()

    def insist(self) -> None:
        """As a person does who has asked, and waits no longer."""
        self.interrupt()

    @abstractmethod
    def kill(self) -> None:
        """End it and nothing that it started; returns when it is gone."""

    @abstractmethod
    def wait(self) -> str:
        """Until it has left; what it printed."""


class Place(ABC):
    """`go` drives a study to its end; a driver can also be started and watched."""

    is_in_this_process = True

    @abstractmethod
    def go(self, folder: StudyFolder, target: str, grace_s: float = 10.0, **execution: object) -> Summary: ...

    @abstractmethod
    def start_drivers(self, folder: StudyFolder, target: str, grace_s: float = 10.0, n: int = 1) -> list[Driver]: ...

    @abstractmethod
    def give(self, task: Task) -> int | None:
        """Hand a worker a task, whatever a driver would think of it; the exit code that it leaves with."""

    @abstractmethod
    def go_on_gpus(self, folder: StudyFolder, target: str) -> None:
        """As `go`, on two GPUs that are said to be there."""

    @abstractmethod
    def close(self) -> None: ...


class OfExecutor(Place):
    def __init__(self, kind: str):
        self._kind, self.executor = kind, EXECUTORS[kind]()

    def give(self, task: Task) -> int | None:
        handle, ended = self.executor.submit(task), []
        wait_until(lambda: ended.extend(self.executor.poll(0.1)) or bool(ended), "the worker has left")
        assert [(e.handle, e.signal) for e in ended] == [(handle, None)]
        return ended[0].exit_code

    def go_on_gpus(self, folder: StudyFolder, target: str) -> None:
        if self._kind == "ray":  # a process has one Ray
            (driver,) = self.start_drivers(folder, target, kind="ray-on-gpus")
            driver.wait()
            return
        if not self.executor.has_gpus:
            pytest.skip(f"{NOTHING_TO_TEST}: on GPUs workers are fresh interpreters")
        self.go(folder, target)

    def go(self, folder: StudyFolder, target: str, grace_s: float = 10.0, **execution: object) -> Summary:
        entries, settings = folder.study()["plan"], Execution(**execution)
        return drive(folder, self.executor, settings, entries=entries, target=f"tasks:{target}", grace_s=grace_s)

    def start_drivers(
        self, folder: StudyFolder, target: str, grace_s: float = 10.0, n: int = 1, kind: str = ""
    ) -> list[Driver]:
        command = [
            sys.executable,
            str(HERE / "tasks.py"),
            str(folder.path),
            f"tasks:{target}",
            kind or self._kind,
            str(grace_s),
        ]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) for _ in range(n)
        ]
        return [_Process(process) for process in started]

    def close(self) -> None:
        self.executor.close()


class _Process(Driver):
    def __init__(self, process: "subprocess.Popen[str]"):
        self.process = process

    def interrupt(self) -> None:
        # A terminal sends it to the whole foreground group; the workers must not be in it.
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def wait(self) -> str:
        return "" if self.process.stdout.closed else self.process.communicate()[0]


class OfSlurm(Place):
    """Drives are jobs: the real script, with a fake target."""

    is_in_this_process = False

    def __init__(self, n_nodes: int = 1) -> None:
        self._folder = TemporaryDirectory()
        self.cluster = slurm_cluster.SlurmCluster(Path(self._folder.name) / "slurm", n_nodes)

    def go(self, folder: StudyFolder, target: str, grace_s: float = 10.0, **execution: object) -> Summary:
        said = self.hand_in(folder, target, Execution(**{"slots": 2} | execution), grace_s).wait()
        runs = [run for _, run in folder.planned()]
        last = {run.fingerprint: ledger.last_attempt(run) for run in runs}
        states = {run.fingerprint: ledger.state_of(run) for run in runs}
        elsewhere = tuple(f for f, state in states.items() if state == "running")
        halted = next((line for line in said.splitlines() if line.startswith("the disk is full")), "")
        return Summary(states, {f: a.message for f, a in last.items() if a and a.message}, elsewhere, halted)

    def give(self, task: Task) -> int | None:
        place = Path(task.folder)
        command = shlex.join(worker_command(task, None))
        asked = f"#SBATCH --ntasks=1\n#SBATCH --output={place}/given-%j.log\n"
        (script := place / "given.sh").write_text(f"#!/bin/bash\n{asked}{command}\necho left with $?\n")
        number = self.cluster.run("sbatch", "--parsable", str(script)).strip()
        said = place / f"given-{number}.log"
        wait_until(lambda: said.exists() and "left with" in said.read_text(), "the worker has left")
        return int(said.read_text().split()[-1])

    def go_on_gpus(self, folder: StudyFolder, target: str) -> None:
        fake = Path(self._folder.name) / "said" / "nvidia-smi"
        fake.parent.mkdir(exist_ok=True)
        fake.write_text("#!/bin/sh\necho GPU 0: said\necho GPU 1: said\n")
        fake.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(self.cluster.environ, "PATH", f"{fake.parent}:{self.cluster.environ['PATH']}")
            self.hand_in(folder, target, Execution(), 10.0, gpus="2").wait()

    def start_drivers(self, folder: StudyFolder, target: str, grace_s: float = 10.0, n: int = 1) -> list[Driver]:
        # Two CPUs each: the node has four.
        return [self.hand_in(folder, target, Execution(slots=2), grace_s) for _ in range(n)]

    def hand_in(self, folder: StudyFolder, target: str, execution: Execution, grace_s: float, **asked: object) -> "Job":
        allocation = replace(slurm.Allocation(tasks=1, grace_s=grace_s), **asked)
        path = slurm.write_script(folder, slurm.script(folder, execution, allocation, target=f"tasks:{target}"))
        return Job(self.cluster, folder, self.cluster.run("sbatch", "--parsable", str(path)).strip())

    def close(self) -> None:
        self.cluster.close()
        self._folder.cleanup()


class Job(Driver):
    def __init__(self, cluster: slurm_cluster.SlurmCluster, folder: StudyFolder, number: str):
        assert number.isdigit(), number
        self.cluster, self.folder, self.number = cluster, folder, number

    def interrupt(self) -> None:
        self.cluster.run("scancel", self.number)

    def ask(self) -> None:
        # Twice, as a batch system may: that is no impatience.
        for _ in range(2):
            self.cluster.run("scancel", "--batch", "--signal=TERM", self.number)

    def insist(self) -> None:
        self.cluster.run("scancel", "--signal=KILL", self.number)

    def kill(self) -> None:
        attempts = [ledger.last_attempt(run) for _, run in self.folder.planned()]
        pid = next(a.driver for a in attempts if a is not None)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ledger.process_start(pid) is None, "the driver is gone")

    def wait(self) -> str:
        wait_until(lambda: self.state() == "", "the job has left the queue")
        return self.said()

    def said(self) -> str:
        """What its tasks have printed."""
        return "\n".join(log.read_text() for log in (self.folder.path / "slurm").glob(f"{self.number}_*.log"))

    def state(self) -> str:
        """PENDING, RUNNING, … or nothing when it has left the queue."""
        said = self.cluster.run("squeue", "-h", "-r", "-j", self.number, "-o", "%T").strip()
        return "" if "Invalid job id" in said else said


PLACES: dict[str, Callable[[], Place]] = {
    "local": lambda: OfExecutor("local"),
    "fresh": lambda: OfExecutor("fresh"),
    "ray": lambda: OfExecutor("ray"),
    "slurm": OfSlurm,
}
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
needs_slurm = pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not())
_MARKS = {"ray": [pytest.mark.slow, needs_ray], "slurm": [pytest.mark.slow, needs_slurm]}


def each(names: dict[str, object]) -> list[object]:
    """Parameters for a fixture: those that need much are slow, and skipped where they cannot be had."""
    return [pytest.param(name, marks=_MARKS.get(name, [])) for name in names]
