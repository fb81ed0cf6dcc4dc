"""gatelab status, logs and retry: how the runs in a study's folder stand, and another try for those that failed."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .base import Flag, Json, print_json, tell

_AGAIN_S = 3.0  # between two looks of --watch
_LINE_S = 0.5  # and of --follow
_GOING = ("planned", "running")


def status(folder: Path, *, watch: Flag = False, json_: Json = False) -> int:
    """Show how a study's runs stand.

    Parameters
    ----------
    folder:
        The study's folder.
    watch:
        Look again every few seconds, until no run is planned or running, or Ctrl-C.
    json_:
        One JSON record a run; of one that was begun also how many runs its process trained, and whether as one stack; of one
        that is running its step, loss and tokens a second.
    """
    from ..config import ConfigError
    from ..store import StudyFolder
    from ..study.grouping import environment_of
    from ..study.ledger import state_of
    from ..study.remaining import standing

    if watch and json_:
        raise ConfigError(["--watch draws for a person, and --json is for a program; leave one of the two out"])
    there = StudyFolder.open(folder, is_light=True)
    if json_:
        print_json(
            [
                {k: e[k] for k in ("cell", "arm", "seed", "fingerprint")}
                | {"state": (state := state_of(r))}
                | ((standing(e, r) or {}) if state == "running" else {})
                | {k: v for k, v in (environment_of(r) or {}).items() if k in ("runs_in_group", "stacked")}
                for e, r in there.planned()
            ]
        )
        return 0
    from ..terminal import print_status

    if watch and sys.stdout.isatty():
        print("\033[2J", end="")
    while True:
        if watch and sys.stdout.isatty():
            print("\033[H\033[J", end="")
        counts = print_status(there)
        sys.stdout.flush()
        if not (watch and any(counts.get(state) for state in _GOING)):
            return 0
        time.sleep(_AGAIN_S)
        there = StudyFolder.open(folder, is_light=True)


def logs(
    folder: Path, run_name: str, *, follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False
) -> int:
    """Print what a run's workers printed.

    Parameters
    ----------
    folder:
        The study's folder.
    run_name:
        The run: the start of its fingerprint, or cell/arm/seed.
    follow:
        Go on printing as lines come, of a run that waits from its start, until it has ended or Ctrl-C.
    """
    from ..store import StoreError, StudyFolder
    from ..study.ledger import state_of

    there = StudyFolder.open(folder, is_light=True)
    there.refresh(lambda name: name == "log.txt")
    run = there.find(run_name)
    path = run.path / "log.txt"
    if not path.exists() and not follow:
        raise StoreError(f"{run_name}: has no log yet; it has not been started")
    n_printed, is_going = 0, True
    while is_going:
        is_going = follow and state_of(run) in _GOING  # before the last look at what it printed
        if path.exists():
            with path.open("rb") as file:
                if n_printed > file.seek(0, os.SEEK_END):  # another file in its place
                    n_printed = 0
                file.seek(n_printed)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1] if is_going else new  # a line at a time, and no letter in two
            print(whole.decode(errors="replace"), end="", flush=True)
            n_printed += len(whole)
        if is_going:
            time.sleep(_LINE_S)
            there.refresh(lambda name: name == "log.txt", is_due=False)
    if not n_printed:
        tell(f"{run_name}: printed nothing; it is {state_of(run)}")
    return 0


def retry(folder: Path, *, json_: Json = False) -> int:
    """Plan the runs that failed, ran out of memory, timed out or were lost again; `run` then resumes them.

    Parameters
    ----------
    folder:
        The study's folder.
    json_:
        One JSON record a run that was planned again.
    """
    from ..store import StudyFolder
    from ..study.drive import retry as plan_again

    there = StudyFolder.open(folder, is_light=True)
    again = plan_again(there)
    if json_:
        print_json([{"fingerprint": f, "state": "planned"} for f in again])
    elif again:
        print(f"{len(again)} runs are planned again: {', '.join(again)}; the same `gatelab run …` command starts them")
    else:
        print("no run has failed, run out of memory, timed out or been lost")
    return 0
