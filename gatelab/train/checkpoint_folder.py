"""Where checkpoints of several processes lie in a run's folder, and which of them are whole. Free of torch.

    checkpoint/step-000000040/rank-0000.safetensors …    what each rank was asked to write, keyed name@offset
                              index.json                 where every piece lies, and the run's state; written last

A folder without its index is no checkpoint, so one that was cut is never chosen.
"""

import contextlib
import re
import shutil
from collections.abc import Collection
from pathlib import Path

FOLDER, INDEX = "checkpoint", "index.json"
_STEP = re.compile(r"step-(\d{9,})")


def folder_of(run: Path, step: int) -> Path:
    """The folder of a run's checkpoint at a step, whether or not it is there."""
    return run / FOLDER / f"step-{step:09d}"


def steps(run: Path) -> list[int]:
    """The steps of a run's whole checkpoints, the last first."""
    found = [int(_STEP.fullmatch(folder.name)[1]) for folder in _folders(run) if (folder / INDEX).is_file()]
    return sorted(found, reverse=True)


def clear(run: Path, keep: Collection[int] = ()) -> None:
    """Remove the checkpoints of a run but those of some steps, half-written ones too; an index goes first, so that what is left
    half-way is none."""
    for folder in _folders(run):
        if folder not in [folder_of(run, step) for step in keep]:
            (folder / INDEX).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        (run / FOLDER).rmdir()


def _folders(run: Path) -> list[Path]:
    try:
        return [folder for folder in (run / FOLDER).iterdir() if _STEP.fullmatch(folder.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
