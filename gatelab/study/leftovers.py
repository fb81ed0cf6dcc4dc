"""What killed processes leave that nobody comes back to: a driver clears it away when it reads how the runs stand.

Whoever resumes a run sweeps its folder. Nobody resumes one that is done, and nobody holds a lease on what drivers and readers
write, so half of such a file goes when it has not been touched for an hour, by the clock of its file system.
"""

from contextlib import suppress

from ..store import RunFolder, StudyFolder
from . import ledger
from .checkpoints import remove
from .place import FOLDER

OLD_S = 3600.0
_EIGHT = "[0-9a-f]" * 8  # what store/ puts into a name that lasts until the file is whole


def clear_done(run: RunFolder) -> None:
    """Of a run that is done and whose owner is gone: close its attempt, remove its checkpoint and what is half-written.

    Several drivers may do so at once. A folder that cannot be written is left as it is: the result is whole.
    """
    with suppress(OSError):
        if ledger.close_done(run):
            remove(run)
            for half in (*run.path.glob(".*.tmp"), *run.path.glob("attempts/.*.tmp")):
                if not half.name.startswith(".run.json."):
                    half.unlink(missing_ok=True)
            if run.objects is not None:
                run.objects.sweep(run.path)


def clear_old(folder: StudyFolder) -> None:
    """Of the study's own files and the runs' configurations, which any driver may be writing just now: old halves."""
    runs = (half for _, run in folder.planned() for half in run.path.glob(f".run.json.{_EIGHT}.tmp"))
    for half in (*folder.path.glob(f".*.{_EIGHT}.tmp"), *runs):
        with suppress(OSError):
            if FOLDER.age_s(half) > OLD_S:
                half.unlink(missing_ok=True)
