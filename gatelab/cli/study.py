"""gatelab run and submit: carry a study out here or on a cluster."""

import shlex
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .base import Flag, Json, print_json, refusing, tell, tell_data

if TYPE_CHECKING:
    from ..store import StudyFolder


def run(
    study: str,
    *assignments: str,
    out: str | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    json_: Json = False,
) -> int:
    """Carry out a study: everything that is not done yet. Started again, it continues.

    A study file is Python, and planning it runs it: take only files that you would run as a script.

    Parameters
    ----------
    study:
        A built-in study (quickstart), a Python file that defines `study`, or a study's folder: what is planned there, and the
        confirmation that `gatelab find --register` wrote down.
    assignments:
        key=value words: model.gate=[none,sdpa-headwise] optim.lr=1e-3 seed=0..4 data.paths=FOLDER cell=text* execution.slots=2
    out:
        The study's folder, or an object store's address such as s3://BUCKET/NAME; runs/STUDY unless stated.
    executor:
        Where the runs are carried out: local, or ray.
    ray_address:
        The cluster that --executor ray joins: host:port of its head, or auto; without one Ray runs on this machine alone.
    json_:
        One JSON record a line on stdout and nothing else.
    """
    from .. import lab
    from ..config import parse_assignments
    from ..store import StoreError
    from ..study.drive import drive
    from ..study.ledger import DAMAGED, FINISHED
    from ..terminal import LiveGrid, print_findings, print_status

    with ExitStack() as stack:
        with refusing():
            lab.check_executor(executor, ray_address)
            words = parse_assignments(assignments)
            there = _there(study, out) if lab.is_folder(study) else None
            planned = lab.plan(study, words) if there is None else None
            execution = planned.study.execution if planned else lab.execution_in(there, words)
            # A cluster is joined before anything is written.
            workers = stack.enter_context(lab.open_executor(execution, executor, ray_address=ray_address))
            if planned:
                place = out or f"runs/{planned.study.name}"
                if executor == "local":
                    lab.check_room(planned.runs, execution, place)
                folder = lab.save_plan(planned, place, asked=[study, *assignments])
            else:
                folder, execution = there, lab.go_on(there, words)
                if executor == "local":
                    lab.check_room_left(folder, execution)
            lab.check_seen(folder, ray_address)
            content = folder.study()
            grid = LiveGrid(folder, workers.slots)  # reads how all runs stand
        # Of a plan that kept finished runs of an earlier one, those that are planned now.
        entries = planned.entries(folder.path) if planned else content["plan"]
        tell(f"{content['name']}: {len(entries)} runs in {folder.address}; Ctrl-C is safe, the same command continues")
        tell_data(content["cells"])
        if warning := lab.baseline_warning(folder):
            tell(f"note: {warning}")
        with grid:
            summary = drive(folder, workers, execution, entries=entries, on_event=grid)
    lacks = [name for name in ("duckdb", "scipy", "altair") if find_spec(name) is None]
    if lacks:
        tell(
            f"no page: this machine has no {', '.join(lacks)}; take {folder.address} to one that has, then `gatelab report` it"
        )
    analysis = None if lacks else lab.analyse(folder)
    page, refused = None, ""
    if analysis is not None:
        try:
            page = lab.report(folder, analysis, tell=tell)
        except StoreError as error:
            refused = str(error)
    if json_:
        print_json([{"fingerprint": f, "state": s} for f, s in summary.states.items()])
        print_json([] if page is None else [{"page": str(page)}])
    else:
        print_status(folder)
        if analysis is not None:
            print_findings(analysis.findings, all_metrics=False)
        if page is not None:
            print(f"\nthe page: {page}")
    if refused:
        tell(f"gatelab: {refused}")
    if summary.halted:
        tell(summary.halted)
    if summary.elsewhere:
        tell(f"{len(summary.elsewhere)} runs are being carried out by another process; run again for the whole page")
    left = [s for f, s in summary.states.items() if f not in summary.elsewhere and s not in FINISHED]
    if left:
        again = any(state != DAMAGED for state in left)
        retry = f", `gatelab retry {folder.address}` tries again" if again else ""
        tell(f"some runs did not finish; `gatelab status {folder.address}` says why{retry}")
    return 0 if summary.is_complete and not refused else 1


def submit(
    study: str,
    *assignments: str,
    to: str,
    out: str | None = None,
    time: str = "1:00:00",
    tasks: int = 0,
    cpus: int = 0,
    gpus: str | None = None,
    nodes: int = 1,
    partition: str | None = None,
    mem: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    grace: float = 30.0,
    dry_run: Flag = False,
    json_: Json = False,
) -> int:
    """Hand a study in to a batch system: an array of tasks that each take runs until their time is nearly up.

    A study file is Python, and planning it runs it: take only files that you would run as a script.

    Parameters
    ----------
    study:
        A built-in study, a Python file, or a study's folder, as for `run`.
    assignments:
        key=value words, as for `run`.
    to:
        The batch system: slurm.
    out:
        The study's folder, which every machine must see; runs/STUDY unless stated.
    time:
        Each task's limit, in Slurm's format. Before it, runs are saved and the task is queued again.
    tasks:
        Tasks of the array; as many as have work unless stated, and at most 8.
    cpus:
        CPUs a task; what its slots take unless stated: one slot, or those of its GPUs.
    gpus:
        GPUs a task: a count, or TYPE:COUNT.
    nodes:
        Machines a task, which share each run; cpus, gpus and mem are then each machine's.
    partition:
        As sbatch takes it, and so are mem, account, qos and constraint.
    grace:
        Seconds that saving may take.
    dry_run:
        Write the script only.
    json_:
        One JSON record: the job's number and the script's path.
    """
    from .. import lab
    from ..config import ConfigError, parse_assignments
    from ..study.slurm import Allocation, by_hand

    if to != "slurm":
        raise ConfigError([f"--to {to}: expected slurm; on this machine or on Ray, `gatelab run` carries a study out"])
    asked = Allocation(time, tasks, cpus, gpus, partition, mem, account, qos, constraint, grace, nodes)
    words = parse_assignments(assignments)
    with refusing():
        if lab.is_folder(study):
            folder = study
            lab.refuse_address(study, study)
            path, job = lab.submit_folder(_there(study, out), asked, assignments=words, is_dry=dry_run)
        else:
            loaded = lab.load_study(study)
            folder = out or f"runs/{loaded.name}"
            path, job = lab.submit(loaded, folder, asked, assignments=words, is_dry=dry_run)
    if json_:
        print_json([{"job": job, "script": str(path)}])
    elif job is None:
        print(f"{path}\nhand it in with: {by_hand(path)}")
    else:
        print(
            f"job {job} of {path}\n`gatelab status {shlex.quote(str(folder))}` says how the runs stand, squeue how the tasks do"
        )
    return 0


def _there(study: str, out: str | None) -> "StudyFolder":
    """A study's folder, of which nobody may say that it lies elsewhere."""
    from ..config import ConfigError
    from ..store import StudyFolder

    if out is not None:
        raise ConfigError([f"--out {out}: {study} is a study's folder and goes on in it; leave --out out"])
    return StudyFolder.open(study, is_light=True)
