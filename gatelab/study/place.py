"""What the ledger asks of the place where a study lives: that one of several creates a file, and when it was last written."""

import errno
import math
import os
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..store import RunFolder, StoreError, write_json

# For a store that answers no more while a result is carried up, which may be hours of work.
PATIENCE_S, _PAUSE_S = 600.0, 5.0
FULL = (errno.ENOSPC, errno.EDQUOT)
T = TypeVar("T")


class PlaceError(OSError):
    """A place did not give or take what it had to, which says nothing of the run: an object store that failed, a file system
    without hard links."""


class Place(Protocol):
    """Paths are those of a run's folder here: in a folder the files themselves, on an object store what mirrors them
    (`gatelab.mirror.Mirror`)."""

    def look(self, run: Path) -> None:
        """Bring what others have written of a run's ledger."""

    def create(self, path: Path, owner: str, value: Any) -> bool:
        """Write a new file of JSON: of several who do so one succeeds, and all of it appears at once or nothing."""

    def replace(self, path: Path, value: Any) -> None:
        """Write a file of JSON that is there, so that nobody sees half of it."""

    def beat(self, path: Path, following: Path) -> bool:
        """Show that the owner of an attempt lives; False when there is a following one, or the attempt is gone."""

    def beaten(self, path: Path) -> float:
        """When the owner of an attempt beat last, by the clock of the place."""

    def age_s(self, path: Path) -> float:
        """Seconds since then, by that clock; infinity when the attempt is gone."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A file system with hard links, of which the second to one name fails, and renames. A beat touches its attempt."""

    def look(self, run: Path) -> None:
        pass

    def create(self, path: Path, owner: str, value: Any) -> bool:
        temporary = path.with_name(f".{path.name}.{owner}.tmp")
        try:
            write_json(temporary, value)
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            # The number is taken; its holder may already have swept the temporary file away.
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise PlaceError(error.errno, "leases need a file system with hard links", str(path.parent)) from None
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def replace(self, path: Path, value: Any) -> None:
        write_json(path, value)

    def beat(self, path: Path, following: Path) -> bool:
        if following.exists():
            return False
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def beaten(self, path: Path) -> float:
        return path.stat().st_mtime

    def age_s(self, path: Path) -> float:
        try:
            beaten = path.stat().st_mtime
        except FileNotFoundError:
            return math.inf
        probe = path.with_name(f".clock.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(probe, "xb") as f:
                return os.fstat(f.fileno()).st_mtime - beaten
        except OSError:
            # A reader without the right to write has only its own clock.
            return time.time() - beaten
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


FOLDER = Folder()


def patiently(of: RunFolder, do: Callable[[], T], *, is_over: Callable[[], bool] = lambda: False) -> T:
    """What `do` returns; of a run on an object store it is tried again for as long as that may come back, unless `is_over`.

    Raises:
        OSError: of a folder, at once.
        PlaceError: of an object store; at once when it may not be done or is not there, and on a full disk.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return do()
        except OSError as error:
            if of.objects is None:
                raise
            is_final = isinstance(error, (PermissionError, FileNotFoundError)) or error.errno in FULL
            if is_final or time.monotonic() > until or is_over():
                raise PlaceError(error.errno or errno.EIO, f"the store failed: {error.strerror or error}") from error
            print(f"{of.fingerprint}: not carried, and tried again: {error}", file=sys.stderr, flush=True)
        pause = time.monotonic() + _PAUSE_S
        while time.monotonic() < pause and not is_over():
            time.sleep(min(_PAUSE_S, 0.25))


def check_place(path: str | Path) -> None:
    """Whether a study's folder may lie at `path`, which need not exist yet: leases need links and renames.

    Raises:
        StoreError: when its file system has none.
    """
    path = Path(path)
    place = next((p for p in (path, *path.absolute().parents) if p.is_dir()), None)
    if place is None:
        return
    probe, other = (place / f".place.{uuid.uuid4().hex[:8]}.tmp" for _ in range(2))
    try:
        probe.touch(exist_ok=False)
    except OSError:
        return  # whoever writes the first file says so
    try:
        os.link(probe, other)
        os.unlink(probe)
        os.replace(other, probe)
    except OSError as error:
        if error.errno not in FULL:
            raise StoreError(
                f"{path}: leases need a file system with hard links and renames, and this one refuses them "
                f"({error.strerror}); name a folder on another"
            ) from None
    finally:
        for left in (probe, other):
            with suppress(OSError):
                left.unlink(missing_ok=True)
