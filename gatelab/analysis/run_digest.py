"""What a study's digest takes of one run, kept beside its rows by the worker that has finished it.

`digest-<kind>-<bytes>-<sum>.parquet`: `kind` stands for what is taken, bytes and sum (CRC-32) are those of the rows. Where rows are
as old as it or older they are not read to see that it is theirs; in a folder that was copied they may not look it, and are.
"""

import hashlib
import os
import uuid
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import SCHEMA
from ..config import Execution
from ..store import RunFolder, quoted, take_rows, to_read
from ..study import carry_out as carrying_out
from .digest_parts import EMPTY, NAMES, TAKE

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
        connection.execute(EMPTY)
        take(connection, runs)
        for run in runs:
            rows = run.rows_path.read_bytes()
            path = run.path / f"{_beginning(len(rows))}{zlib.crc32(rows):08x}.parquet"
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                own = f"FROM digest WHERE run = '{run.fingerprint}'"
                connection.execute(f"COPY ({own}) TO {quoted(temporary)} (FORMAT parquet, COMPRESSION zstd)")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def take(connection: Any, runs: Sequence[RunFolder]) -> None:
    """Add to the table `digest` what is taken of the rows of these runs.

    Raises:
        StoreError: rows that cannot be read.
    """
    take_rows(connection, "rows", runs, NAMES)
    connection.execute(TAKE)


def digests_of(connection: Any, runs: Sequence[RunFolder]) -> set[str]:
    """Add to the table `digest` those that were kept of these runs; returns of which."""
    import duckdb

    there = {run.fingerprint: path for run in runs if (path := _there(run)) is not None}
    if not there:
        return set()
    with suppress(OSError, duckdb.Error):
        files = ", ".join(map(to_read, there.values()))
        connection.execute(f"INSERT INTO digest BY NAME FROM read_parquet([{files}], hive_partitioning=false)")
        return set(there)
    return set()  # one of them is damaged, and rows are there


def _there(run: RunFolder) -> Path | None:
    """The digest that lies beside a run's rows and is of them."""
    with suppress(OSError):
        rows = run.rows_path.stat()
        for name in os.listdir(run.path):
            if name.startswith(_beginning(rows.st_size)) and name.endswith(".parquet"):
                path = run.path / name
                is_younger = path.stat().st_mtime_ns >= max(rows.st_mtime_ns, rows.st_ctime_ns)
                if is_younger or name.endswith(f"-{zlib.crc32(run.rows_path.read_bytes()):08x}.parquet"):
                    return path
    return None


def _beginning(n_bytes: int) -> str:
    return f"digest-{KIND}-{n_bytes}-"
