"""Rows as JSON lines: append them, read them, and take back those that a resumed training will write again."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...record import Row


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write one line a row at the end of a file, and hand it to the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row.as_dict(), ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file of JSON lines, such as `ProbeCallback` writes.

    Raises:
        ValueError: a line that is no row, other than a last one that was cut.
    """
    return [row for _, row in _lines(Path(path))]


def forget_after(path: Path, step: int) -> set[int]:
    """Take back the rows of later steps, and half a last line; returns the steps that are left."""
    kept = [(line, row.step) for line, row in _lines(path) if row.step <= step]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(line for line, _ in kept), encoding="utf-8")
    os.replace(temporary, path)
    return {at for _, at in kept}


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return  # a killed writer's
            try:
                value = json.loads(line)
                row = Row(**value | {"value": float(value["value"])})
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path}, line {number}: is no row; was the file edited, or is it another's?"
                ) from None
            yield line, row
