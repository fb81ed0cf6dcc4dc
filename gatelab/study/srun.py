"""The executor of an allocation of several machines: a task is one step of Slurm, and takes all of them.

srun starts the processes of a task on every machine; the first is the worker, as of a gang, and on the machine whose batch
script drives. torchrun would do, but it kills what has not left half a minute after it was told to, however long saving may take.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from ..config import ConfigError, Execution
from . import worker
from .carry_up import study_of
from .executor import Ended, Task, worker_command
from .local import THREADS

# After one has failed: for the exchange to fail in the worker too, which then says so itself.
_FAIL_S = 10.0
_CLOSE_S = 10.0


class SrunExecutor:
    """An `Executor` with one slot: `execution.processes` on `nodes` machines of this job's allocation.

    Raises:
        ConfigError: this is no job of Slurm's.
    """

    slots = 1

    def __init__(self, execution: Execution, nodes: int):
        if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
            raise ConfigError(
                [
                    f"--nodes {nodes}: this is no job of Slurm's; `gatelab submit --nodes {nodes}` writes the script of one"
                ]
            )
        self._execution, self._nodes = execution, nodes
        self._handle = ""
        self._step: subprocess.Popen[bytes] | None = None

    @property
    def has_gpus(self) -> bool:
        return self._execution.device != "cpu"

    def submit(self, task: Task) -> str:
        threads = str(self._execution.threads)
        command = ["srun", f"--nodes={self._nodes}", f"--ntasks={self._execution.processes}"]
        command += [f"--ntasks-per-node={self._execution.processes // self._nodes}"]
        command += [
            f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', threads)}",
            "--wait=0",  # the first process goes on when the others are done: it keeps what pages read
            "--kill-on-bad-exit=1",
        ]
        words = worker_command(task, None)  # without a driver's process: Slurm ends the step with the batch script
        words[words.index(worker.__name__)] = __name__
        environ = {"PYTHONSAFEPATH": "1", "MASTER_PORT": str(_free_port()), **dict.fromkeys(THREADS, threads)}
        run = study_of(task).run(task.fingerprints[0])
        run.path.mkdir(parents=True, exist_ok=True)
        with open(run.path / "log.txt", "ab") as log:
            self._step = subprocess.Popen(
                [*command, *words], env=os.environ | environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._handle = task.owner
        return task.owner

    def poll(self, timeout: float) -> list[Ended]:
        if self._step is None:
            return []
        try:
            code = self._step.wait(timeout)
        except subprocess.TimeoutExpired:
            return []
        self._step = None
        # The highest of the processes', and of one that was ended by a signal 128 and its number.
        number = -code if code < 0 else code - 128
        with suppress(ValueError):
            return [Ended(self._handle, None, signal.Signals(number).name)]
        return [Ended(self._handle, code, None)]

    def stop(self, handle: str) -> None:
        if self._step is not None and handle == self._handle:
            # To the step's processes alone. srun itself would take this signal for the wish to kill them.
            subprocess.run(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]], capture_output=True, check=False)

    def kill(self, handle: str) -> None:
        if self._step is not None and handle == self._handle:
            self._step.terminate()

    def close(self) -> None:
        if self._step is None:
            return
        self._step.terminate()
        try:
            self._step.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._step.kill()
            self._step.wait()
        self._step = None


def _free_port() -> int:
    """Of this machine, which is the first process's: where the others find it."""
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def main() -> int:
    """`python -m gatelab.study.srun …`: the worker's command, as srun starts it once a process."""
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
    names["MASTER_ADDR"] = "SLURM_LAUNCH_NODE_IPADDR"
    os.environ |= {name: os.environ[of_slurm] for name, of_slurm in names.items()}
    code = worker.main()
    if code and os.environ["RANK"] != "0":
        time.sleep(_FAIL_S)
    return code


if __name__ == "__main__":
    sys.exit(main())
