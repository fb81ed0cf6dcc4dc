"""The executor of one machine: slots, one isolated process a task, threads and GPUs set by us.

On CPUs workers are forked from a server that has torch loaded (see preload.py); on GPUs each is a fresh interpreter
that sees its slot's device only.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import ConfigError, Execution
from . import gang, ledger
from .executor import Ended, Task

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What a worker needs; torch._dynamo because the first optimiser step imports it, which takes seconds.
PRELOAD = (
    "torch",
    "torch._dynamo",
    "gatelab.train.group",
    "gatelab.train.loop",
    "gatelab.train.checkpoint",
    "gatelab.train.spikes",
    "gatelab.evals.heldout",
    "gatelab.study.carry_out",
    "gatelab.analysis.run_digest",
)


def local_executor(execution: Execution, preload: Sequence[str] = PRELOAD) -> "LocalExecutor":
    """The executor that `execution` asks for on this machine.

    Args:
        preload: modules that forked workers find loaded.

    Raises:
        ConfigError: as `devices_for`.
    """
    dealt = deal(devices_for(execution), execution)
    slots = execution.slots or len(dealt) or max(1, n_cores() // (execution.threads * execution.processes))
    if said := crowding(slots, execution):
        print(f"note: {said}", file=sys.stderr, flush=True)
    return LocalExecutor(slots, execution.threads, dealt, preload)


def crowding(slots: int, execution: Execution) -> str:
    """A sentence on more threads than cores, which wait for one another at every sum; empty where they fit."""
    cores, each = n_cores(), slots * execution.processes
    if each * execution.threads <= cores:
        return ""
    fits = f"execution.threads={cores // each} fits" if each <= cores else "take fewer slots"
    return (
        f"{slots} slots × {execution.processes} processes × {execution.threads} threads (execution.*) are "
        f"{each * execution.threads:,} threads on {cores} CPU cores, and wait for one another; {fits}"
    )


def devices_for(execution: Execution) -> list[str]:
    """The GPUs of this machine that `execution` may take; none where it takes CPUs.

    Raises:
        ConfigError: when it asks for a GPU and there is none, or for more together than there are.
    """
    devices = gpus() if execution.device != "cpu" else []
    if execution.device == "cuda" and not devices:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = f" (CUDA_VISIBLE_DEVICES={seen!r})" if seen is not None else ""
        raise ConfigError([f"execution.device='cuda': no NVIDIA GPU is visible here{shown}; use 'auto' or 'cpu'"])
    if devices and len(devices) < execution.processes:
        raise ConfigError(
            [
                f"execution.processes={execution.processes}: each takes a GPU, and {len(devices)} are visible here; take fewer"
            ]
        )
    return devices


def deal(devices: Sequence[str], execution: Execution) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is in each slot that the GPUs have room for: several for a gang, the same for those that
    share one."""
    n = execution.processes
    gangs = [",".join(devices[i : i + n]) for i in range(0, len(devices) - n + 1, n)]
    # The tolerance is for shares such as 1/3, stated in decimals.
    return gangs * int(1 / execution.gpu_share + 0.01)


class LocalExecutor:
    """An `Executor` with `slots` workers at a time on this machine.

    Args:
        threads: of each worker's maths libraries.
        devices: GPUs as CUDA_VISIBLE_DEVICES names them, dealt to the slots in turn; none means CPUs.
        preload: modules that forked workers find loaded.
    """

    def __init__(self, slots: int, threads: int, devices: Sequence[str] = (), preload: Sequence[str] = PRELOAD):
        self._slots, self._threads = slots, threads
        self._devices, self._preload = tuple(devices), () if devices else tuple(preload)
        # Slot and, once started, (pid, start time) of every task that has not ended.
        self._slot: dict[str, int] = {}
        self._process: dict[str, tuple[int, str | None]] = {}
        self._ended: list[Ended] = []
        self._server: subprocess.Popen[bytes] | None = None
        # Started at once, so that torch loads while the study is being planned.
        self._start_server()

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def has_gpus(self) -> bool:
        return bool(self._devices)

    def submit(self, task: Task) -> str:
        if self._server is None:
            self._start_server()
        self._slot[task.owner] = min(set(range(len(self._slot) + 1)) - set(self._slot.values()))
        request = {"start": task.owner, "task": asdict(task), "driver": os.getpid(), "threads": self._threads}
        self._send({**request, "environ": self._environ(self._slot[task.owner]) if self._devices else None})
        return task.owner

    def poll(self, timeout: float) -> list[Ended]:
        if not self._ended and self._server is not None:
            self._receive(timeout)
        ended, self._ended = self._ended, []
        return ended

    def stop(self, handle: str) -> None:
        self._signal(handle, signal.SIGTERM)

    def kill(self, handle: str) -> None:
        self._signal(handle, signal.SIGKILL)

    def close(self) -> None:
        if self._server is None:
            return
        for handle in list(self._slot):
            self.kill(handle)
        # The server leaves when it has reaped the last worker; one that still imports has started none, and the signal
        # (which it blocks afterwards) ends it at once.
        self._server.stdin.close()
        self._server.terminate()
        try:
            self._server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._server.kill()
        self._bury_server()

    def _start_server(self) -> None:
        command = [sys.executable, "-P", "-m", "gatelab.study.preload", *self._preload]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _bury_server)
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._environ(None),
            start_new_session=True,
            bufsize=0,
        )
        self._ready, self._received = False, b""

    def _environ(self, slot: int | None) -> dict[str, str]:
        """Of a process: thread counts are read once, when the maths libraries load."""
        threads = str(self._threads)
        environ = dict(os.environ) | dict.fromkeys(THREADS, threads)
        if slot is not None:
            environ["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        return environ

    def _send(self, request: dict[str, Any]) -> None:
        # A server that is gone shows as the end of its output, and poll deals with it.
        with suppress(BrokenPipeError):
            self._server.stdin.write(json.dumps(request).encode() + b"\n")

    def _signal(self, handle: str, number: int) -> None:
        if handle in self._slot and self._server is not None:
            self._send({"signal": number, "owner": handle})

    def _receive(self, timeout: float) -> None:
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            return
        chunk = self._server.stdout.read(65536)
        if not chunk:
            self._server_died()
            return
        *lines, self._received = (self._received + chunk).split(b"\n")
        for line in lines:
            self._note(json.loads(line))

    def _note(self, reply: dict[str, Any]) -> None:
        if "ready" in reply:
            self._ready = True
        elif "started" in reply:
            self._process[reply["started"]] = (reply["pid"], reply["process"])
        else:
            status = reply["status"]
            code = os.waitstatus_to_exitcode(status) if status is not None else None
            self._forget(reply["ended"], code)

    def _forget(self, handle: str, code: int | None) -> None:
        """`code` as multiprocessing and subprocess give it: negative for a signal."""
        del self._slot[handle]
        self._process.pop(handle, None)
        if code is not None and code < 0:
            self._ended.append(Ended(handle, None, signal.Signals(-code).name))
        else:
            self._ended.append(Ended(handle, code, None))

    def _server_died(self) -> None:
        """End its workers, which are nobody's now, and report them as vanished. The next submit starts a new server.

        Raises:
            RuntimeError: when it ended by itself before it was ready, as the next one would.
        """
        ready, server = self._ready, self._server
        words = self._bury_server()
        for handle in list(self._slot):
            pid, started = self._process.get(handle, (None, None))
            if pid is not None and ledger.process_start(pid) == started:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            gang.clear(handle)
            self._forget(handle, None)
        if not ready and server.returncode >= 0:
            raise RuntimeError(f"the fork server did not start: {words or 'it said nothing'}")

    def _bury_server(self) -> str:
        """Collect a server that has ended or is about to; returns the last line it printed."""
        server, self._server = self._server, None
        server.wait()
        for pipe in (server.stdin, server.stdout):
            pipe.close()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip()
        self._stderr.close()
        return words.rpartition("\n")[2]


def n_cores() -> int:
    """CPU cores this process may use: its affinity, and its control groups' limit rounded down; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = float(len(os.sched_getaffinity(0)))
    else:
        cores = float(os.cpu_count() or 1)
    return max(1, int(min([cores, *_cgroup_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])))


def gpus() -> list[str]:
    """The NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; found without loading torch."""
    count = _n_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not count:
        return [str(i) for i in range(count)]
    out: list[str] = []
    for name in (n.strip() for n in visible.split(",")):
        # CUDA's own rule: the list ends at the first name that means no device.
        if not name or name == "-1" or (name.isdigit() and int(name) >= count):
            break
        out.append(name)
    return out


def _n_gpus() -> int:
    with suppress(OSError):
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
        return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return 0


def _cgroup_limits(root: Path, memberships: Path) -> list[float]:
    """CPU limits in cores along this process's control groups, of either version."""
    limits = []
    with suppress(OSError):
        for line in memberships.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            group = Path(path.lstrip("/"))
            base = root / "cpu" if controllers else root
            limits += [_limit(base / g) for g in (group, *group.parents)]
    return [limit for limit in limits if limit]


def _limit(group: Path) -> float:
    """Cores of one control group, 0 for no limit."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return float(quota) / float(period)
    with suppress(OSError, ValueError):
        quota = float((group / "cpu.cfs_quota_us").read_text())
        return max(0.0, quota / float((group / "cpu.cfs_period_us").read_text()))
    return 0.0
