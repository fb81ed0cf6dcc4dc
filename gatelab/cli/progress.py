"""gatelab status, logs and retry: how the runs in a study's folder stand, and another try for those that failed."""

from pathlib import Path

from .base import Json, print_json, tell


def status(folder: Path, *, json_: Json = False) -> int:
    """Show how a study's runs stand.

    Parameters
    ----------
    folder:
        The study's folder.
    json_:
        One JSON record a run; of one that was begun also how many runs its process trained, and whether as one stack; of one
        that is running its step, loss and tokens a second.
    """
    from ..store import StudyFolder
    from ..study.grouping import environment_of
    from ..study.ledger import state_of
    from ..study.remaining import standing

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

    print_status(there)
    return 0


def logs(folder: Path, run_name: str) -> int:
    """Print what a run's workers printed.

    Parameters
    ----------
    folder:
        The study's folder.
    run_name:
        The run: the start of its fingerprint, or cell/arm/seed.
    """
    from ..store import StoreError, StudyFolder
    from ..study.ledger import state_of

    there = StudyFolder.open(folder, is_light=True)
    there.refresh(lambda name: name == "log.txt")
    run = there.find(run_name)
    path = run.path / "log.txt"
    if not path.exists():
        raise StoreError(f"{run_name}: has no log yet; it has not been started")
    printed = path.read_text(encoding="utf-8", errors="replace")
    print(printed, end="")
    if not printed:
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
