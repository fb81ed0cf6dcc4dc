"""The executor over Ray: slots on one machine, or on every machine of a cluster that sees the study's folder.

Ray Core places slots and says when one is lost; Tune and Train are not used. A slot is an actor that holds a
`LocalExecutor` of one slot, so what a task is, how it is stopped and what is left of it are what they are without Ray. No
state lives here: a driver, a node or a head that dies leaves the ledger, from which the next drive goes on.

Notable: embedded, Ray binds every port to the loopback address and takes connections with a token of this process only.
Ray's own choice would be all interfaces, so one that does not obey is shut down again. Nothing of the study passes through
Ray but names: the folder, fingerprints, `module:function`.
"""

import os
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from .. import SCHEMA
from ..config import ConfigError, Execution
from ..objects import AddressError, Objects, address_of
from .executor import Ended, Task
from .local import PRELOAD, LocalExecutor, gpus, n_cores
from .ray_address import answers, check_ray, head_of, quiet
from .ray_head import Head, let_clients_wait

# The least that Ray accepts; results travel through files.
_OBJECT_STORE_BYTES = 80 * 2**20
_LOOK_S = 120.0
# Between asking a slot to kill its task and killing the slot, which may be on a machine that answers no more.
_KILL_S = 5.0
_RECOUNT_S = 5.0
_POLL_S = 0.05
_LOOPBACK = "127.0.0.1"


def ray_executor(execution: Execution, address: str | None) -> "RayExecutor":
    """The executor that `execution` asks for, over Ray in this process or over the cluster at `address`, whose machines still have
    to see the study's folder (`check_folder`).

    Raises:
        ConfigError: no Ray, no cluster, another version of Ray, Python or Gatelab there, or no GPU where one is asked for.
    """
    if address is not None:
        let_clients_wait()
    check_ray(address)
    if address is None:
        _embed(execution)
    else:
        _join(address)
    try:
        if address is not None:
            _look_around(address)
        return RayExecutor(execution)
    except BaseException:
        _leave()
        raise


def check_folder(address: str, folder: str | Path) -> None:
    """Whether all machines of the cluster at `address`, which this process has joined, see the study's folder, or reach the object
    store that it lives on.

    Raises:
        ConfigError: the first that does not.
    """
    _look_around(address, address_of(folder) or str(Path(folder).resolve()))


class RayExecutor:
    """An `Executor` over the Ray that this process has joined; `close` leaves it.

    Args:
        preload: modules that forked workers find loaded.
    """

    def __init__(self, execution: Execution, preload: Sequence[str] = PRELOAD):
        import ray

        self._ray, self._execution, self._preload = ray, execution, tuple(preload)
        self._has_gpus = execution.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        if execution.device == "cuda" and not self._has_gpus:
            raise ConfigError(["execution.device='cuda': no machine of Ray has a GPU; use 'auto' or 'cpu'"])
        self._actor = ray.remote(**self._resources())(Slot)
        self._idle: list[Any] = []
        self._running: dict[str, _Running] = {}
        self._count, self._counted = 0, -_RECOUNT_S
        self._is_open = True
        self._head = Head(ray.get_runtime_context().gcs_address)

    @property
    def slots(self) -> int:
        """As many as asked for, which is what a cluster that grows on demand is told; else as many as fit now; none while its
        head is silent.

        Raises:
            ConnectionError: when the head has been silent for too long.
        """
        if not self._head.is_there():
            time.sleep(_POLL_S)  # nothing to do but to ask again
            return 0
        if self._execution.slots:
            return self._execution.slots
        if time.monotonic() - self._counted > _RECOUNT_S:
            self._count, self._counted = self._fitting(), time.monotonic()
        return self._count

    @property
    def has_gpus(self) -> bool:
        return self._has_gpus

    def submit(self, task: Task) -> str:
        slot = self._idle.pop() if self._idle else self._start()
        # Other machines have other working directories.
        there = asdict(task) | {"folder": address_of(task.folder) or str(Path(task.folder).resolve())}
        self._running[task.owner] = _Running(slot, self._head.ask(lambda: slot.carry.remote(there)))
        return task.owner

    def poll(self, timeout: float) -> list[Ended]:
        handles = {running.result: handle for handle, running in self._running.items()}
        if not handles:
            return []
        ready = self._ready(list(handles), timeout)
        if not ready:
            self._head.is_there()  # the end of its slots would not be told either
        return [self._ended(handles[result]) for result in ready]

    def stop(self, handle: str) -> None:
        if handle in self._running:
            self._head.ask(lambda: self._running[handle].slot.stop.remote(handle))

    def kill(self, handle: str) -> None:
        running = self._running.get(handle)
        if running is None:
            return
        if running.killed_at is None:
            running.killed_at = time.monotonic()
            self._head.ask(lambda: running.slot.kill.remote(handle))
        elif time.monotonic() - running.killed_at > _KILL_S:
            self._head.ask(lambda: self._ray.kill(running.slot))

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if not answers(self._head.address):
            _leave()
            return
        slots = [*self._idle, *(running.slot for running in self._running.values())]
        with suppress(Exception):  # what does not answer is killed next
            self._head.ask(lambda: self._closed(slots))
        for slot in slots:
            with suppress(Exception):
                self._head.ask(lambda slot=slot: self._ray.kill(slot))
        _leave()

    def _closed(self, slots: list[Any]) -> None:
        self._ray.wait([slot.close.remote() for slot in slots], num_returns=len(slots), timeout=_KILL_S)

    def _ready(self, results: list[Any], timeout: float) -> list[Any]:
        """Those that have come, when the first has, or none after so many seconds."""

        def wait(n: int, timeout: float) -> list[Any]:
            return self._ray.wait(results, num_returns=n, timeout=timeout)[0]

        return self._head.ask(lambda: wait(1, timeout) and wait(len(results), 0))

    def _start(self) -> Any:
        words = (self._execution.threads, self._has_gpus, self._preload, os.getcwd())
        return self._head.ask(lambda: self._actor.remote(*words))

    def _resources(self) -> dict[str, float]:
        """Of a slot. Several GPUs are a gang: Ray gives them on one machine, and all or none."""
        execution = self._execution
        if not self._has_gpus:
            return {"num_cpus": execution.threads * execution.processes, "num_gpus": 0}
        return {"num_cpus": 1, "num_gpus": execution.processes if execution.processes > 1 else execution.gpu_share}

    def _fitting(self) -> int:
        """Slots that the machines have room for; a gang is never spread over two."""
        wanted = {"CPU": self._resources()["num_cpus"], "GPU": self._resources()["num_gpus"]}
        machines = [node["Resources"] for node in self._head.ask(self._ray.nodes) if node["Alive"]]
        return max(1, sum(min(int(m.get(k, 0) / n + 1e-6) for k, n in wanted.items() if n) for m in machines))

    def _ended(self, handle: str) -> Ended:
        running = self._running.pop(handle)
        try:
            code, signal = self._head.ask(lambda: self._ray.get(running.result))
        except self._ray.exceptions.RayActorError:
            return Ended(handle, None, None)  # its slot, its node or its head is gone
        except self._ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"a slot of Ray: {error.cause}") from None
        self._idle.append(running.slot)
        return Ended(handle, code, signal)


class Slot:
    """An actor with one slot of its machine. Its methods take turns in one thread."""

    def __init__(self, threads: int, has_gpu: bool, preload: tuple[str, ...], place: str):
        # The driver's working directory: a study may name its texts from there.
        with suppress(OSError):
            os.chdir(place)
        # What Ray dealt to this actor; a gang's process 0 deals it on.
        devices = [os.environ["CUDA_VISIBLE_DEVICES"]] if has_gpu else []
        self._local = LocalExecutor(1, threads, devices, preload)

    async def carry(self, task: dict[str, Any]) -> tuple[int | None, str | None]:
        """Carry out a task; its exit code and signal."""
        import asyncio  # only an actor needs it, and it is slow to import

        self._local.submit(Task(**{**task, "fingerprints": tuple(task["fingerprints"])}))
        while not (ended := self._local.poll(0.0)):
            await asyncio.sleep(_POLL_S)
        return ended[0].exit_code, ended[0].signal

    async def stop(self, handle: str) -> None:
        self._local.stop(handle)

    async def kill(self, handle: str) -> None:
        self._local.kill(handle)

    async def close(self) -> None:
        self._local.close()


@dataclass(slots=True)
class _Running:
    slot: Any
    result: Any
    killed_at: float | None = None


def _embed(execution: Execution) -> None:
    """Start a Ray of this process's own: no dashboard, no monitor of memory, nothing but loopback."""
    _refuse_another()
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(os.environ):
        # Ray asks for a token unless told otherwise; a user's own file of one would be the same for all that they start.
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ |= settings
    import ray
    from ray._private import ray_constants

    devices = gpus() if execution.device != "cpu" else []
    slots = execution.slots * execution.threads * execution.processes
    # What Ray does on systems where clusters are not supported: its address is the loopback one, and so are its ports.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with quiet():
            ray.init(
                address="local",
                num_cpus=max(n_cores(), slots),
                num_gpus=len(devices),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="error",
                _node_ip_address=_LOOPBACK,
            )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
    if (found := ray.util.get_node_ip_address()) != _LOOPBACK:
        _leave()
        raise ConfigError(
            [f"--executor ray: Ray {ray.__version__} listens at {found}, not only on loopback; install ray==2.60.*"]
        )


def _join(address: str) -> None:
    import ray

    _refuse_another()
    try:
        with quiet():
            ray.init(address=head_of(address), log_to_driver=False, logging_level="error")
    except Exception as error:
        words = " ".join(str(error).split())
        raise ConfigError(
            [f"--ray-address {address}: cannot be joined ({words}); run this on one of the cluster's machines"]
        ) from None


def _refuse_another() -> None:
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        raise ConfigError(["--executor ray: this process has joined a Ray already; call ray.shutdown() first"])


def _leave() -> None:
    import ray

    with quiet():
        ray.shutdown()


def _look_around(address: str, folder: str | None = None) -> None:
    """Refuse a cluster with a machine that runs another Gatelab, or that does not see the folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = Head(ray.get_runtime_context().gcs_address)
    here = _look(folder)
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    for node in (n for n in head.ask(ray.nodes) if n["Alive"]):
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        name = f"--ray-address {address}: the machine {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            looking = look.options(scheduling_strategy=there)
            found = head.ask(lambda looking=looking: ray.get(looking.remote(folder), timeout=_LOOK_S))
        except ray.exceptions.RayError as error:
            words = str(error).strip().rpartition("\n")[2]
            raise ConfigError(
                [f"{name} cannot run Gatelab ({words}); install it in the Python that runs Ray"]
            ) from None
        if found["schema"] != here["schema"]:
            raise ConfigError(
                [
                    f"{name} has Gatelab of schema {found['schema']}, this one is of {here['schema']}; install one version"
                ]
            )
        if found["study"] != here["study"]:
            raise ConfigError(
                [
                    f"{name} does not reach {folder}; it needs the package and the credentials for it that this one has"
                    if address_of(folder or "")
                    else f"{name} does not see {folder}; name an --out on a folder that all machines share"
                ]
            )


def _look(folder: str | None) -> dict[str, Any]:
    """What a machine sees; `study` tells the folder from another of the same name."""
    study = None
    if folder is not None and address_of(folder) is not None:
        with suppress(OSError, AddressError):
            study = sha256(Objects(folder).read("study.json")).hexdigest()
    elif folder is not None:
        with suppress(OSError):
            found = os.stat(Path(folder) / "study.json")
            study = found.st_size, found.st_mtime_ns
    return {"schema": SCHEMA, "study": study}
