"""gatelab train: one run, carried out as a study's runs are."""

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .base import Json, print_json, refusing, said, tell, tell_data


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
        One JSON record of the run (its state among them), and of one that has ended one a measurement at the last step.
    """
    from .. import lab
    from ..config import parse_assignments
    from ..study.drive import drive
    from ..study.ledger import FINISHED
    from ..terminal import LiveGrid

    with ExitStack() as stack:
        with refusing():
            planned = lab.plan(lab.single(parse_assignments(assignments), config))
            execution = planned.study.execution
            workers = stack.enter_context(lab.open_executor(execution))
            place = Path(out or "runs/train")
            lab.check_room(planned.runs, execution, place)
            folder = lab.save_plan(planned, out or "runs/train", beside=config and config.parent.parent)
        entries = planned.entries(folder.path)
        fingerprint = entries[0]["fingerprint"]
        tell_data(folder.study()["cells"])
        tell(
            f"{entries[0]['n_parameters']:,} parameters, {entries[0]['steps']} steps, in {folder.run(fingerprint).path}"
        )
        with LiveGrid(folder, workers.slots) as grid:
            summary = drive(folder, workers, execution, entries=entries, on_event=grid)
    state, path = summary.states[fingerprint], folder.run(fingerprint).path
    rows = lab.final_rows(folder, fingerprint) if state in FINISHED else []
    if json_:
        print_json([{"fingerprint": fingerprint, "state": state, "path": str(path)}, *rows])
    elif state in FINISHED:
        _show(state, path, rows)
    else:
        where = f"`gatelab status {shlex.quote(str(folder.address))}`"
        went = "is being carried out elsewhere" if fingerprint in summary.elsewhere else state
        print(f"{path}: {went}; {where} says {'how it stands' if fingerprint in summary.elsewhere else 'why'}")
    return 0 if state == "done" else 1


def _show(state: str, path: Path, rows: list[dict[str, Any]]) -> None:
    from ..terminal import print_records

    if state == "diverged":
        last = max((row["step"] for row in rows), default=0)
        looked = [f"; val_loss is of step {row['step']:,}" for row in rows if row["metric"] == "val_loss"][:1]
        print_records(said(rows), f"diverged at step {last:,}: {path}{''.join(looked)}")
    else:
        print_records(said(rows), f"{state}: {path}")
