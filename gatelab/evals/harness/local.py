"""Items of a benchmark out of local files, as the harness's `custom_dataset`: no hub, no cache, and every row is checked."""

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...data import DataError
from .benchmarks import BENCHMARKS
from .checked import Check


def present(folder: Path, file: str) -> Path | None:
    """A file of a folder, or its gzipped form; None where there is neither."""
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def local_dataset(
    files: dict[str, str],
    fields: list[str],
    column: str | None = None,
    value: str | None = None,
    benchmark: str | None = None,
    **_described: Any,
) -> dict[str, Any]:
    """A dataset a split, from JSON lines.

    Args:
        files: a path a split.
        fields: what every row has to have.
        column, value: of a file that holds several tasks, the rows whose field `column` is `value`.
        benchmark: whose rows they are, so that their values are checked.
        _described: the task's metadata, with which the harness calls it.

    Raises:
        DataError: a file that cannot be read, a line that is no object, lacks a field or holds a wrong value, no rows of the task.
    """
    from datasets import Dataset

    found = {}
    check = BENCHMARKS[benchmark].check if benchmark else None
    for split, path in files.items():
        rows = rows_of(Path(path), tuple(fields), check)
        mine = [row for row in rows if column is None or str(row[column]) == value]
        if not mine:
            held = f"{column}={value!r}" if column else "any row"
            raise DataError(f"{path}: holds nothing of {held}; copy the whole file again")
        try:
            found[split] = Dataset.from_list(mine)
        except Exception as error:  # pyarrow's errors have no common class but Exception
            reason = str(error).partition("\n")[0]
            raise DataError(f"{path}: its rows do not have one type a field ({reason})") from None
    return found


def rows_of(path: Path, fields: tuple[str, ...], check: Check | None = None) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, plain or gzipped.

    Raises:
        DataError: it cannot be read; a line is no object, lacks a field, or is refused by `check`.
    """
    return _rows(path, fields, check, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _rows(path: Path, fields: tuple[str, ...], check: Check | None, _changed: int) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    rows = []
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_row(f"{path}:{number}", line, fields, check))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the file again") from None
    return rows


def _row(where: str, line: str, fields: tuple[str, ...], check: Check | None) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is no JSON ({error}); expected one object a line") from None
    missing = [f for f in fields if not isinstance(row, dict) or f not in row]
    if missing:
        held = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: has no field {missing[0]!r} (it has {held}); expected {', '.join(fields)}")
    if check is not None and (problem := check(row)):
        raise DataError(f"{where}: {problem}")
    return row
