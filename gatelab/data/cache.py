"""The cache folder: prepared texts by their content, and what is known of files that have not changed since.

Notable: everything appears under its name by a rename, whole or not at all, so processes may prepare the same text at
once and be killed at any moment. Nothing here is needed: a deleted cache is built again, with the same content.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .batch import DataError

# A file changed this recently could change again without a new time stamp (file systems count in ticks).
_SETTLED_NS = 2_000_000_000


def default_cache() -> Path:
    """$GATELAB_CACHE, or ~/.cache/gatelab."""
    return Path(os.environ.get("GATELAB_CACHE") or Path.home() / ".cache" / "gatelab").expanduser()


class Known:
    """What was found out about some files, remembered as long as path, size and times of every one stay the same."""

    def __init__(self, cache: Path, files: Iterable[Path], question: Any):
        stats = [(os.path.abspath(path), os.stat(path)) for path in files]
        state = [[path, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for path, s in stats]
        name = hashlib.sha256(json.dumps([question, state]).encode()).hexdigest()
        self._path = cache / "known" / f"{name}.json"
        self._last_change_ns = max((max(s.st_mtime_ns, s.st_ctime_ns) for _, s in stats), default=0)

    def recall(self) -> dict[str, Any] | None:
        return read_json(self._path)

    def remember(self, answer: dict[str, Any]) -> None:
        """Keeps the answer, unless a file changed so recently that its time stamp cannot be relied on."""
        if time.time_ns() - self._last_change_ns < _SETTLED_NS:
            return
        with drafted(self._path) as draft:
            draft.write_text(json.dumps(answer), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no such file or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """A path to write a file or make a folder at, which becomes `target` when the block ends without an error.

    A folder that another process has put there meanwhile stays, and the draft goes.

    Raises:
        DataError: when the cache cannot be written (a full disk, a missing permission).
    """
    draft = target.parent / f".draft-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        try:
            os.replace(draft, target)
        except OSError:
            if not (draft.is_dir() and target.is_dir()):
                raise
    except OSError as error:
        raise DataError(
            f"the cache {str(target.parent)!r} cannot be written ({error.strerror}); free space there, or name "
            f"another folder in the environment variable GATELAB_CACHE"
        ) from None
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with suppress(OSError):
                draft.unlink()
