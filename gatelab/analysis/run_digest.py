"""What a study's digest takes of one run, kept beside its rows by the worker that has finished it.

`digest-<kind>-<bytes>-<sum>.ndjson`: `kind` stands for what is taken, bytes and sum (CRC-32) are those of the rows. Where rows are
as old as it or older they are not read to see that it is theirs; in a folder that was copied they may not look it, and are.

Notable: it is a line a part, with a list a column, and a last line that says so: a thousand of these are one text that is read at
once. As Parquet they were half the size and took twice as long, since each file has a piece for every column.
"""

import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from .. import SCHEMA
from ..config import Execution
from ..store import RunFolder, take_rows, to_read, write_text
from ..study import carry_out as carrying_out
from .digest_parts import EMPTY, NAMES, TAKE

# Rows of so many bytes are read at a time: enough to be worth a query, and little of a machine's memory.
AT_ONCE = 64 * 2**20
END = '{"part":"end"}\n'
T = TypeVar("T")
KIND = hashlib.sha256(f"{SCHEMA}{EMPTY}{TAKE}".encode()).hexdigest()[:16]


def carry_out(runs: list[RunFolder], execution: Execution, *, should_stop: Callable[[], bool]) -> None:
    """Carry out a group of runs, as `gatelab.study.carry_out` does, and keep the digests of those that are done.

    Raises:
        ValueError: as that does; a digest that cannot be made is no reason.
    """
    carrying_out.carry_out(runs, execution, should_stop=should_stop)
    if int(os.environ.get("RANK", "0")) == 0:
        try:
            keep_digests([run for run in runs if run.done() is not None])
        except Exception as error:  # whatever it is: the results are there, and who reads them does without
            print(f"no digest was kept: {type(error).__name__}: {error}", flush=True)


def keep_digests(runs: Sequence[RunFolder]) -> None:
    """Write the digests of finished runs, where DuckDB is there."""
    try:
        import duckdb
    except ImportError:
        return
    with duckdb.connect(config={"threads": 1}) as connection:
        for batch in batches((run, run.rows_path.stat().st_size) for run in runs):
            connection.execute(EMPTY)
            take(connection, batch)
            _keep(connection, batch)
            connection.execute("DROP TABLE digest")


def _keep(connection: Any, runs: Sequence[RunFolder]) -> None:
    columns = _columns(connection)
    lists = ", ".join(f"list({name})" for name in columns)
    found = connection.execute(f"SELECT run, part, {lists} FROM digest GROUP BY ALL ORDER BY run, part")
    lines: dict[str, list[str]] = defaultdict(list)
    for run, part, *of_part in found.fetchall():
        there = {k: v for k, v in zip(columns, of_part, strict=True) if any(x is not None for x in v)}
        lines[run].append(json.dumps({"part": part, "run": run, **there}, separators=(",", ":")) + "\n")
    for run in runs:
        rows = run.rows_path.read_bytes()
        path = run.path / f"{_beginning(len(rows))}{zlib.crc32(rows):08x}.ndjson"
        write_text(path, "".join([*lines[run.fingerprint], END]), is_kept=False)


def _columns(connection: Any) -> dict[str, str]:
    """{name: type} of those that a part has a list of."""
    types = connection.execute("SELECT column_name, column_type FROM (DESCRIBE digest)").fetchall()
    return {name: type_ for name, type_ in types if name not in ("part", "run")}


def batches(sized: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """What is read in one query, of things with their bytes."""
    batch, size = [], 0
    for one, n_bytes in sized:
        if batch and size + n_bytes > AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += n_bytes
    if batch:
        yield batch


def take(connection: Any, runs: Sequence[RunFolder]) -> None:
    """Add to the table `digest` what is taken of the rows of these runs.

    Raises:
        StoreError: rows that cannot be read.
    """
    take_rows(connection, "rows", runs, NAMES)
    connection.execute(TAKE)


def digests_of(connection: Any, runs: Sequence[RunFolder]) -> dict[str, bool]:
    """Add to the table `digest` those that were kept of these runs; returns of which, and whether the times of its files say that
    it is theirs."""
    import duckdb

    found: dict[str, bool] = {}
    columns = _columns(connection)
    unnested = ", ".join(f"unnest({name}) AS {name}" for name in columns)
    types = ", ".join(["part: 'VARCHAR', run: 'VARCHAR'", *(f"{name}: '{type_}[]'" for name, type_ in columns.items())])
    for batch in batches(sized for run in runs if (sized := _there(run)) is not None):
        # One of them may be damaged, or there may be no place for all: rows are there.
        with suppress(OSError, duckdb.Error), TemporaryDirectory(prefix="gatelab-digests-") as place:
            whole, longest = {}, 1
            with open(f"{place}/all.ndjson", "wb") as file:
                for run, path, is_younger in batch:
                    text = path.read_bytes()
                    if text.endswith(END.encode()):
                        longest = max(longest, len(text))  # than which no line is longer
                        file.write(text[: -len(END)])
                        whole[run.fingerprint] = is_younger
            connection.execute(
                f"""INSERT INTO digest BY NAME SELECT part, run, {unnested} FROM read_json(
                    {to_read(Path(place) / "all.ndjson")}, columns={{{types}}}, format='newline_delimited',
                    maximum_object_size={longest})"""
            )
            found |= whole
    return found


def _there(run: RunFolder) -> tuple[tuple[RunFolder, Path, bool], int] | None:
    """A run with the digest that lies beside its rows and is of them, and whether their times say so; and its bytes."""
    with suppress(OSError):
        rows = os.stat(f"{run.path}/rows.jsonl")
        for name in os.listdir(run.path):
            if name.startswith(_beginning(rows.st_size)) and name.endswith(".ndjson"):
                own = os.stat(f"{run.path}/{name}")
                is_younger = own.st_mtime_ns >= max(rows.st_mtime_ns, rows.st_ctime_ns)
                if is_younger or name.endswith(f"-{zlib.crc32(run.rows_path.read_bytes()):08x}.ndjson"):
                    return (run, run.path / name, is_younger), own.st_size
    return None


def _beginning(n_bytes: int) -> str:
    return f"digest-{KIND}-{n_bytes}-"
