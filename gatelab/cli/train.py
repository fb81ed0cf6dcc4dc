"""gatelab train: one run, carried out as a study's runs are."""

from contextlib import ExitStack
from pathlib import Path

from .base import Json, print_json, refusing, said, tell


def train(*assignments: str, config: Path | None = None, out: str | None = None, json_: Json = False) -> int:
    """Train one run. Started again with the same words, it continues.

    Parameters
    ----------
    assignments:
        key=value words: model.gate=sdpa-headwise data.paths=FOLDER train.tokens=1000000
    config:
        A run.json to start from: the run of a study, to reproduce it.
    out:
        Where the run's folder goes; runs/train unless stated.
    json_:
        One JSON record a measurement at the last step.
    """
    from .. import lab
    from ..config import parse_assignments
    from ..study.drive import drive
    from ..terminal import LiveGrid, print_records

    with ExitStack() as stack:
        with refusing():
            planned = lab.plan(lab.single(parse_assignments(assignments), config))
            execution = planned.study.execution
            workers = stack.enter_context(lab.open_executor(execution))
            folder = lab.save_plan(planned, out or "runs/train", beside=config and config.parent.parent)
        entries = planned.entries(folder.path)
        fingerprint = entries[0]["fingerprint"]
        tell(
            f"{entries[0]['n_parameters']:,} parameters, {entries[0]['steps']} steps, in {folder.run(fingerprint).path}"
        )
        with LiveGrid(folder, workers.slots) as grid:
            summary = drive(folder, workers, execution, entries=entries, on_event=grid)
    rows = lab.final_rows(folder, fingerprint)
    if json_:
        print_json(rows)
    else:
        print_records(said(rows), f"{summary.states[fingerprint]}: {folder.run(fingerprint).path}")
    return 0 if summary.is_complete else 1
