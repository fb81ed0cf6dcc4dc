"""Carry out what is planned: here, with Ray, or by Slurm; and the runs that a confirmation asks for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import ConfigError, Execution, canonical, nearest, validate
from ..objects import address_of
from ..store import StudyFolder
from ..study.drive import Event, Summary, drive
from ..study.executor import Executor
from ..study.fresh import fresh_runs
from ..study.local import devices_for, local_executor
from ..study.place import check_place
from ..study.plan import Planned
from ..study.ray import check_folder, ray_executor
from ..study.ray_address import check_ray
from ..study.slurm import Allocation, script, write_script
from ..study.slurm import submit as hand_in
from ..study.study import Study, built_in, changed_execution
from .declared import registration_of
from .finding import confirmation
from .planning import plan, save_plan
from .room import check_room

EXECUTORS = ("local", "ray")


def run(
    study: str | Study,
    out: str | Path,
    *,
    assignments: dict[str, list[Any]] | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> tuple[StudyFolder, Summary]:
    """Plan and carry out everything of the study that is not done; started again, it continues.

    Args:
        executor: one of EXECUTORS.
        ray_address: of a cluster's head, as host:port, or auto; None embeds Ray in this process.

    Raises:
        ConfigError, DataError, StoreError: before anything is started.
        KeyboardInterrupt: after Ctrl-C, when the workers have saved and left.
    """
    check_executor(executor, ray_address)
    planned = plan(study, assignments)
    execution = planned.study.execution
    with open_executor(execution, executor, ray_address=ray_address) as workers:
        if executor == "local":
            check_room(planned.runs, execution, out)
        folder = save_plan(planned, out)
        check_seen(folder, ray_address)
        return folder, drive(folder, workers, execution, entries=planned.entries(folder.path), on_event=on_event)


def check_executor(name: str, ray_address: str | None = None, execution: Execution | None = None) -> None:
    """Whether there is an executor of this name, and what it needs to begin with; and the GPUs that `execution` asks for, where
    they are to be this machine's.

    Raises:
        ConfigError: when there is none; no Ray, or no cluster at `ray_address` that would have us; no such GPUs.
    """
    if name == "slurm":
        raise ConfigError(["--executor slurm: Slurm's jobs are handed in with `gatelab submit STUDY --to slurm`"])
    if name not in EXECUTORS:
        raise ConfigError(
            [f"--executor {name}: expected one of {', '.join(EXECUTORS)}{nearest(name, list(EXECUTORS))}"]
        )
    if name == "ray":
        check_ray(ray_address)
    elif ray_address is not None:
        raise ConfigError([f"--ray-address {ray_address} is for --executor ray; add it, or leave the address out"])
    if execution is not None and ray_address is None:
        devices_for(execution)


@contextmanager
def open_executor(execution: Execution, name: str = "local", *, ray_address: str | None = None) -> Iterator[Executor]:
    """The executor of a name, a cluster joined and looked at; closed, with all its processes gone, when the block is left.

    Raises:
        ConfigError: when it cannot do what is asked for.
    """
    check_executor(name, ray_address, execution)
    workers = ray_executor(execution, ray_address) if name == "ray" else local_executor(execution)
    try:
        yield workers
    finally:
        workers.close()


def check_seen(folder: StudyFolder, ray_address: str | None) -> None:
    """Whether the machines of the cluster that was joined, if one was, see the study's folder.

    Raises:
        ConfigError: the first that does not.
    """
    if ray_address is not None:
        check_folder(ray_address, folder.address)


def submit(
    study: str | Study,
    out: str | Path,
    allocation: Allocation,
    *,
    assignments: dict[str, list[Any]] | None = None,
    is_dry: bool = False,
) -> tuple[Path, str | None]:
    """Plan a study and hand it in to Slurm; returns the batch script and the job's number, None when `is_dry`.

    Raises:
        ConfigError, DataError, StoreError: before anything is handed in.
    """
    refuse_address(out, f"--out {out}")
    planned = plan(study, assignments)
    allocation.check(planned.study.execution)
    return _submit(save_plan(planned, out), planned.study.execution, allocation, is_dry=is_dry)


def submit_folder(
    folder: StudyFolder,
    allocation: Allocation,
    *,
    assignments: dict[str, list[Any]] | None = None,
    is_dry: bool = False,
) -> tuple[Path, str | None]:
    """As `submit`, of what is planned in a study's folder and of the confirmation that is registered there.

    Raises:
        ConfigError, StoreError: as `go_on` does, and before anything is handed in.
    """
    refuse_address(folder.address, folder.address)
    allocation.check(execution_in(folder, assignments))
    return _submit(folder, go_on(folder, assignments), allocation, is_dry=is_dry)


def _submit(
    folder: StudyFolder, execution: Execution, allocation: Allocation, *, is_dry: bool
) -> tuple[Path, str | None]:
    path = write_script(folder, script(folder, execution, allocation))
    return path, None if is_dry else hand_in(path)


def refuse_address(place: str | Path, said: str) -> None:
    """That Slurm's tasks are handed in from a folder, before anything is read; `said` is how it was named.

    Raises:
        ConfigError: when the place is an object store's.
    """
    if address_of(place) is not None:
        raise ConfigError(
            [
                f"{said}: Slurm's tasks share a folder with where they were handed in from; name one that all machines see"
            ]
        )


def is_folder(study: str) -> bool:
    """Whether the word names a study's folder or its address, and no study that comes with Gatelab."""
    return study not in built_in() and (address_of(study) is not None or (Path(study) / "study.json").is_file())


def execution_in(folder: StudyFolder, assignments: dict[str, list[Any]] | None = None) -> Execution:
    """How the runs of a study's folder are to be carried out, where that can be done.

    Raises:
        ConfigError: assignments other than of `execution`: the folder says what its runs are.
        StoreError: the folder lies where leases cannot be taken.
    """
    if folder.objects is None:
        check_place(folder.path)
    assignments = assignments or {}
    other = [key for key in assignments if not key.startswith("execution.")]
    if other:
        raise ConfigError(
            [
                f"{', '.join(other)}: {folder.address} says what its runs are; only execution.* may be set, or name the study"
            ]
        )
    return changed_execution(validate(Execution, folder.study().get("execution", {})), assignments)


def not_planned(folder: StudyFolder) -> list[Planned]:
    """The runs of a registered confirmation that are not in the plan of a study's folder.

    Raises:
        StoreError: as `fresh_runs` does.
    """
    registration = registration_of(folder)
    if registration is None:
        return []
    planned = {entry["fingerprint"] for entry in folder.study()["plan"]}
    runs = fresh_runs(folder, confirmation(folder, registration), registration.seeds)
    return [p for p in runs if p.fingerprint not in planned]


def go_on(folder: StudyFolder, assignments: dict[str, list[Any]] | None = None) -> Execution:
    """Add the runs of a registered confirmation to the plan of a study's folder, where they are not in it; returns how they
    are to be carried out.

    Raises:
        ConfigError: as `execution_in`.
        StoreError: as `execution_in` and `fresh_runs` do.
    """
    execution = execution_in(folder, assignments)
    study, registration = folder.study(), registration_of(folder)
    if registration is not None:
        new = not_planned(folder)
        study["plan"] += [p.entry(folder.path) for p in new]
        study["seeds"] = sorted({*study["seeds"], *registration.seeds})
        StudyFolder.create(folder.path, {k: v for k, v in study.items() if k != "schema"})
        for p in new:
            folder.run(p.fingerprint).create(canonical(p.run))
        folder.push()
    return execution
