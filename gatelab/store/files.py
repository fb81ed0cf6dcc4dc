"""Files of a folder: written whole or not at all, appended to by one owner, and read with a word on what is wrong."""

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import SCHEMA
from ..record import Item, Row

Stamp = tuple[int, int, int, int]

# Made once: `json.dumps` makes one a call, and a stack of runs writes a thousand lines a step.
line_of = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class StoreError(ValueError):
    """A folder that cannot be used: it is missing, holds something else, or was written by another version."""


class DamagedError(StoreError):
    """One file of it is cut, or was edited into something else: the rest may be whole."""


def write_json(path: Path, value: Any, *, is_kept: bool = True) -> None:
    """Write `value` atomically: a temporary name in the same folder, flushed to the disk (not where it need not be kept through
    a crash of the machine), renamed."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", is_kept=is_kept)


def write_lines(path: Path, records: Iterable[Row | Item]) -> None:
    """Write one line of JSON a record atomically, as `write_json` does."""
    write_text(path, "".join(f"{line_of(record.as_dict())}\n" for record in records))


def write_text(path: Path, text: str, *, is_kept: bool = True) -> None:
    """Write `text` atomically, as `write_json` does."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            if is_kept:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def stamp_of(path: Path | str) -> Stamp | None:
    """What changes when a file does, and None where there is none: its number, size and times."""
    try:
        s = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def read_json(path: Path | str) -> Any:
    """The value in a JSON file.

    Raises:
        StoreError: when it is missing, naming the file.
        DamagedError: when it is cut.
    """
    try:
        with open(path, "rb") as file:
            return json.loads(file.read().decode())
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"{path}: not readable as JSON ({error}); was it cut or edited?") from None


def read_stored(path: Path) -> dict[str, Any]:
    """The content of a study.json or run.json.

    Raises:
        StoreError: when it is missing, or from another version.
        DamagedError: when it is cut, or says nothing of a version.
    """
    value = read_json(path)
    found = value.get("schema") if isinstance(value, dict) else None
    if found is None:
        raise DamagedError(f"{path}: says no version (schema); was it cut or edited?")
    if found != SCHEMA:
        raise StoreError(
            f"{path}: written by another version of Gatelab (schema {found}, this one reads {SCHEMA}); "
            "use that version, or run the study into a new folder"
        )
    return value


class Appender:
    """An append-only file of JSON lines with one owner.

    Opening at an `offset` forgets everything behind it: that is how a resumed run takes back the rows which its killed
    predecessor wrote after the checkpoint.

    Raises:
        StoreError: when the file does not reach to the offset: it is not the one that the checkpoint was made with.
    """

    def __init__(self, path: Path, offset: int = 0):
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise StoreError(
                f"{path}: has {size} bytes, and the checkpoint was made when it had {offset}; was it cut or edited? "
                f"Remove {path.parent} to start this run from step 0"
            )
        self._file = open(path, "ab")  # noqa: SIM115  (closed by close)
        self._file.truncate(offset)
        self._file.seek(0, os.SEEK_END)

    def write(self, records: Iterable[Row | Item | dict[str, Any]]) -> None:
        """Append one line a record."""
        for record in records:
            value = record if isinstance(record, dict) else record.as_dict()
            self._file.write(line_of(value).encode() + b"\n")

    def flush(self) -> int:
        """Hand everything to the disk; returns the offset, which a checkpoint keeps."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close; closed it is even when the disk is full."""
        try:
            self.flush()
        finally:
            self._file.close()


def check_keys(path: Path, value: Any, kinds: dict[str, type]) -> None:
    """Refuses what somebody edited into something else."""
    found = value if isinstance(value, dict) else {}
    missing = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    if missing:
        raise DamagedError(f"{path}: missing, or of another kind: {', '.join(missing)}; was it edited?")
