"""Slurm: a batch script for a study, whose array's tasks pull runs from the ledger (see pull.py), and handing it in.

Notable: a task of the array is not a run. Many small runs share an allocation, limits on the size of arrays do not matter,
and a task that is pre-empted, times out or loses its machine costs at most the work since the last checkpoints.
"""

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..config import ConfigError, Execution
from ..store import StoreError, StudyFolder, write_text
from . import ledger
from .executor import GRACE_S, TARGET
from .local import deal

# Slurm looks at its clocks every half minute, so its warning comes up to a minute early.
_SLACK_S = 60
_MOST_TASKS = 8
# Only the first number may be larger than its unit: 90 minutes, but no 99 seconds.
_TIME = re.compile(r"\d+-(?:[01]?\d|2[0-3])(?::[0-5]?\d){0,2}|\d+(?::[0-5]?\d){0,2}", re.ASCII)
_WORD = re.compile(r"[\w.,:@&|*\[\]+-]+")
_GPUS = re.compile(r"[\w.+-]*[A-Za-z][\w.+-]*(?::(\d+))?|(\d+)")


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a task of the array asks Slurm for. `time` is in Slurm's format, `gpus` a count or TYPE:COUNT, `cpus` 0 what its
    slots take (one, or as many as the GPUs have room for), `tasks` 0 as many as have work, at most 8; the others are left to
    Slurm where they are None. With more `nodes` than one a task is of so many machines, which share each run, one run (or
    group) at a time; `cpus`, `gpus` and `mem` are each machine's."""

    time: str = "1:00:00"
    tasks: int = 0
    cpus: int = 0
    gpus: str | None = None
    partition: str | None = None
    mem: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    grace_s: float = GRACE_S
    nodes: int = 1

    @property
    def lead_s(self) -> int:
        """Seconds before the end at which Slurm is asked to warn."""
        return round(self.grace_s) + _SLACK_S

    @property
    def n_gpus(self) -> int:
        """GPUs a task, of a word that `check` takes."""
        read = _GPUS.fullmatch(self.gpus) if self.gpus is not None else None
        return int(read[1] or read[2] or 1) if read is not None else 0

    def check(self, execution: Execution) -> None:
        """
        Raises:
            ConfigError: listing every mistake.
        """
        mistakes = []
        for name in ("gpus", "partition", "mem", "account", "qos", "constraint"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                mistakes.append(f"--{name} {value!r}: expected letters, digits and . , : @ & | * [ ] + - _ alone")
        mistakes += [
            f"--{name} {n}: expected at least {least}"
            for name, n, least in (("tasks", self.tasks, 0), ("cpus", self.cpus, 0), ("nodes", self.nodes, 1))
            if n < least
        ]
        mistakes += self._node_mistakes(execution) if self.nodes > 1 else []
        has_grace = math.isfinite(self.grace_s) and self.grace_s >= 0
        if not has_grace:
            mistakes.append(f"--grace {self.grace_s:g}: expected at least 0 seconds, and not without end")
        of_slot = execution.threads * self.processes(execution)
        if 0 < self.cpus < of_slot:
            over = f" over --nodes {self.nodes}" if self.nodes > 1 else ""
            mistakes.append(
                f"--cpus {self.cpus}: execution.threads={execution.threads} × execution.processes={execution.processes}{over}"
                f" take {of_slot} CPUs; take --cpus {of_slot}, or leave it out"
            )
        if self.gpus is None and execution.device == "cuda":
            mistakes.append("execution.device='cuda': Slurm was asked for no GPU; add --gpus 1")
        if self.gpus is not None and _WORD.fullmatch(self.gpus):
            mistakes += self._gpu_mistakes(execution)
        if not _TIME.fullmatch(self.time):
            mistakes.append(
                f"--time {self.time}: expected minutes, H:MM:SS or D-HH:MM:SS, minutes and seconds after a colon below 60"
            )
        elif has_grace and seconds(self.time) < self.lead_s + _SLACK_S:
            mistakes.append(
                f"--time {self.time}: too short, since the runs are saved {self.lead_s} s before the end; take"
                f" {-(-(self.lead_s + _SLACK_S) // 60)} minutes or more, or a shorter --grace"
            )
        if mistakes:
            raise ConfigError(mistakes)

    def processes(self, execution: Execution) -> int:
        """Of a run, on one machine."""
        return max(1, execution.processes // max(1, self.nodes))

    def _node_mistakes(self, execution: Execution) -> list[str]:
        """Of several machines: those that could not share a run evenly, or would not all be needed."""
        mistakes = []
        if execution.processes % self.nodes:
            mistakes.append(
                f"--nodes {self.nodes}: a run of execution.processes={execution.processes} does not lie evenly on them; take"
                " a multiple, such as execution.processes="
                f"{-(-execution.processes // self.nodes) * self.nodes}, or leave --nodes out"
            )
        if execution.slots > 1:
            mistakes.append(
                f"--nodes {self.nodes}: each run takes them all, and execution.slots={execution.slots} would be so many at a"
                " time; leave it out, and take more --tasks"
            )
        return mistakes

    def _gpu_mistakes(self, execution: Execution) -> list[str]:
        """Of a word for GPUs: those with which a task could only fail, once its turn has come, or would not touch them."""
        gpus, n, wanted = self.gpus, self.n_gpus, self.processes(execution)
        if _GPUS.fullmatch(gpus) is None:
            return [f"--gpus {gpus}: expected a count, or TYPE:COUNT"]
        if n == 0:
            return [f"--gpus {gpus}: expected 1 or more; for CPUs alone leave it out"]
        if execution.device == "cpu":
            return [f"--gpus {gpus}: execution.device='cpu' would leave them idle; leave one of the two out"]
        kind = "" if gpus.isdigit() else f"{gpus.partition(':')[0]}:"
        if self.nodes > 1 and wanted != n:
            return [
                f"--gpus {gpus}: execution.processes={execution.processes} over --nodes {self.nodes} take {wanted} GPUs of each"
                f" machine; take --gpus {kind}{wanted}"
            ]
        if wanted <= n:
            return []
        return [
            f"execution.processes={wanted}: each takes a GPU, and --gpus {gpus} is {n} a task; take --gpus {kind}{wanted}"
        ]


def seconds(time: str) -> int:
    """A time limit in Slurm's format, which reads 10 as minutes, 10:00 as minutes and seconds, 1-0 as days and hours."""
    days, *parts = time.partition("-")[::2] if "-" in time else (None, time)
    numbers = [int(n) for n in parts[0].split(":")]
    if days is not None:
        h, m, s = (*numbers, 0, 0)[:3]
        return ((int(days) * 24 + h) * 60 + m) * 60 + s
    h, m, s = {1: (0, *numbers, 0), 2: (0, *numbers), 3: tuple(numbers)}[len(numbers)]
    return (h * 60 + m) * 60 + s


def script(folder: StudyFolder, execution: Execution, allocation: Allocation, *, target: str = TARGET) -> str:
    """The batch script that carries a study out.

    Raises:
        ConfigError: an allocation that makes no sense, or a folder whose name Slurm cannot take.
    """
    allocation.check(execution)
    path = folder.path.resolve()
    if re.search(r'["\\\n]', str(path)):
        raise ConfigError(
            [f"--out {path}: Slurm takes no quotes, backslashes or line breaks in a path; name another folder"]
        )
    inside, slots, cpus = _inside(execution, allocation)
    asked = {
        "job-name": f"gatelab-{re.sub(r'[^A-Za-z0-9_.-]', '-', folder.study()['name'])}",
        "array": f"0-{_tasks(folder, slots, allocation) - 1}",
        "nodes": str(allocation.nodes),
        "ntasks": "1" if allocation.nodes == 1 else None,
        "ntasks-per-node": None if allocation.nodes == 1 else str(allocation.processes(execution)),
        "cpus-per-task": str(cpus),
        "time": allocation.time,
        "signal": f"B:USR1@{allocation.lead_s}",
        "open-mode": "append",
        "output": f'"{str(path / "slurm").replace("%", "%%")}/%A_%a.log"',
        "gres": allocation.gpus and f"gpu:{allocation.gpus}",
        "partition": allocation.partition,
        "mem": allocation.mem,
        "account": allocation.account,
        "qos": allocation.qos,
        "constraint": allocation.constraint and f'"{allocation.constraint}"',
    }
    command = [sys.executable, "-P", "-m", "gatelab.study.pull", str(path), "--execution"]
    command += [
        json.dumps(inside.model_dump(mode="json", exclude_defaults=True)),
        "--grace-s",
        f"{allocation.grace_s:g}",
    ]
    command += ["--target", target] if target != TARGET else []
    command += ["--nodes", str(allocation.nodes)] if allocation.nodes > 1 else []
    lines = [
        "#!/bin/bash",
        "# Written by `gatelab submit`. Tasks take what is left to do; handing this in again adds hands, never work.",
        *(f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None),
        "#SBATCH --requeue",
        # exec: the warning goes to the script's own process alone.
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def write_script(folder: StudyFolder, text: str) -> Path:
    """Write `text` as the study's slurm/submit.sh, where the logs go too; returns its path."""
    path = folder.path / "slurm" / "submit.sh"
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    return path


def by_hand(path: Path) -> str:
    """The command that hands a script in, for a shell."""
    return shlex.join(["sbatch", str(path)])


def submit(path: Path) -> str:
    """Hand a script in; returns the job's number.

    Raises:
        StoreError: there is no Slurm here, or it refuses.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StoreError(f"sbatch is not on the PATH here; on a login node of the cluster: {by_hand(path)}") from None
    if done.returncode:
        said = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines())
        raise StoreError(f"sbatch refused {path}: {said or 'it did not say why'}")
    return done.stdout.strip().partition(";")[0]


def _inside(execution: Execution, allocation: Allocation) -> tuple[Execution, int, int]:
    """How a task of the array carries runs out, its slots, and the CPUs of each of its processes."""
    if allocation.nodes > 1:
        device = "cpu" if allocation.gpus is None else execution.device
        cpus = max(execution.threads, allocation.cpus // allocation.processes(execution))
        return execution.model_copy(update={"device": device}), 1, cpus
    of_slot = execution.threads * execution.processes
    if allocation.gpus is not None:
        slots = execution.slots or len(deal([""] * allocation.n_gpus, execution))
        return execution, slots, allocation.cpus or of_slot * slots
    cpus = allocation.cpus or of_slot * max(1, execution.slots)
    slots = execution.slots or cpus // of_slot
    return execution.model_copy(update={"device": "cpu", "slots": slots}), slots, cpus


def _tasks(folder: StudyFolder, slots: int, allocation: Allocation) -> int:
    n_left = len({run.fingerprint for _, run in folder.planned() if ledger.state_of(run) not in ledger.FINISHED})
    return allocation.tasks or max(1, min(_MOST_TASKS, -(-n_left // slots)))
