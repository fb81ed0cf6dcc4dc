"""The rows of runs, as DuckDB reads them: of finished ones from their Parquet caches, else from their lines."""

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..record import Row
from .files import DamagedError, StoreError
from .run import RunFolder

if TYPE_CHECKING:
    from .study import StudyFolder

_TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}
_RUNS = {"cell": "VARCHAR", "arm": "VARCHAR", "seed": "BIGINT", "fingerprint": "VARCHAR", "n_parameters": "BIGINT"}
_ALL = tuple(f.name for f in fields(Row))


def connected(planned: Sequence[tuple[dict[str, Any], RunFolder]]) -> Any:
    """The connection of `StudyFolder.connect`, of a plan's entries and their runs."""
    import duckdb

    connection = duckdb.connect()
    columns = ", ".join(f"{f.name} {_sql_type(f.type)}" for f in fields(Row))
    connection.execute(f"CREATE TABLE read ({columns})")
    fill(connection, "runs", _RUNS, [entry for entry, _ in planned])
    with_rows = {run.fingerprint: run for _, run in planned if run.rows_path.exists() and run.rows_path.stat().st_size}
    _view_all(connection, list(with_rows.values()))
    connection.execute(
        "CREATE VIEW rows AS SELECT runs.cell, runs.arm, runs.seed, measured.* FROM measured JOIN runs ON fingerprint = run"
    )
    return connection


def query(folder: "StudyFolder", sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a SQL query over `rows` and `runs` (see `StudyFolder.connect`) as dictionaries.

    Raises:
        StoreError: an empty query.
    """
    cursor = folder.connect().execute(sql, parameters or [])
    if cursor is None or cursor.description is None:
        raise StoreError(f"query {sql!r}: asks for nothing; write a SELECT, such as SELECT * FROM rows LIMIT 5")
    names = [d[0] for d in cursor.description]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def fill(connection: Any, table: str, columns: dict[str, str], records: Sequence[dict[str, Any]]) -> None:
    """Make a table with columns of these types, of records with their names."""
    names = ", ".join(columns)
    connection.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
    connection.execute(
        f"INSERT INTO {table} SELECT {names} FROM (SELECT unnest(from_json($1, $2), recursive := true))",
        [json.dumps([{name: record[name] for name in columns} for record in records]), json.dumps([columns])],
    )


def _view_all(connection: Any, runs: list[RunFolder]) -> None:
    """Make the view `measured` of the rows of runs: caches that stand where they lie, the rest in the table `read`."""
    import duckdb

    cached: list[RunFolder] = []
    for run in runs:
        if _has_ended(run):
            # A read-only folder is no obstacle: the cache is a convenience.
            with suppress(OSError, duckdb.Error):
                if not _is_fresh(run):
                    _write_cache(connection, run)
                cached.append(run)
    try:
        _view(connection, cached)
    except (OSError, duckdb.Error):
        # One of them is damaged; each is made anew where it can be.
        cached = [run for run in cached if _is_mended(connection, run)]
        _view(connection, cached)
    read = {run.fingerprint for run in cached}
    for run in runs:
        if run.fingerprint not in read:
            _insert(connection, run)


def _view(connection: Any, cached: list[RunFolder]) -> None:
    # `read` has every column; a cache of an older version may lack some.
    whole = f" UNION ALL BY NAME SELECT * FROM {_caches(cached)}"
    connection.execute(f"CREATE OR REPLACE VIEW measured AS SELECT * FROM read{whole if cached else ''}")


def _is_mended(connection: Any, run: RunFolder) -> bool:
    """Whether a run's cache can be read, as it is or made anew."""
    import duckdb

    cache = run.path / "rows.parquet"
    check = f"SELECT count(*) FROM read_parquet({to_read(cache)}, hive_partitioning=false)"
    for mend in (lambda: None, lambda: _write_cache(connection, run)):
        with suppress(OSError, duckdb.Error):
            mend()
            connection.execute(check)
            return True
    return False


def _has_ended(run: RunFolder) -> bool:
    """Whether a run's rows are all that it will have; a damaged one's are read as they are, and its cache is not believed."""
    try:
        run.check_rows()
        return run.done() is not None
    except DamagedError:
        return False


def _is_fresh(run: RunFolder) -> bool:
    cache = run.path / "rows.parquet"
    return cache.exists() and cache.stat().st_mtime >= run.rows_path.stat().st_mtime


def _insert(connection: Any, run: RunFolder) -> None:
    """Read one run's rows into the table `read`."""
    import duckdb

    try:
        connection.execute(f"INSERT INTO read BY NAME SELECT * FROM {_lines([run])}")
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{run.rows_path}: cannot be read ({reason})") from None


def take_rows(connection: Any, table: str, runs: Sequence[RunFolder], names: Sequence[str]) -> None:
    """Make a temporary table of some columns of the rows of runs, of their caches where there are any; none is made.

    Raises:
        StoreError: rows that cannot be read.
    """
    import duckdb

    runs = [run for run in runs if run.rows_path.exists() and run.rows_path.stat().st_size]
    cached = [run for run in runs if _has_ended(run) and _is_fresh(run)]
    try:
        connection.execute(_taken(table, cached, [run for run in runs if run not in cached], names))
    except (OSError, duckdb.Error):
        connection.execute(_taken(table, [], [], names))
        for run in runs:  # each by itself, and a damaged cache is none
            try:
                connection.execute(f"INSERT INTO {table} BY NAME SELECT {', '.join(names)} FROM {_lines([run], names)}")
            except duckdb.Error as error:
                reason = str(error).partition("\n")[0]
                raise StoreError(f"{run.rows_path}: cannot be read ({reason})") from None


def _taken(table: str, cached: Sequence[RunFolder], others: Sequence[RunFolder], names: Sequence[str]) -> str:
    empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in _sql_types(names).items())
    parts = [f"SELECT {empty} WHERE false"]
    if cached:
        # A cache of an older version may lack columns.
        parts.append(f"SELECT * FROM {_caches(cached)}")
    if others:
        parts.append(f"SELECT * FROM {_lines(others, names)}")
    ours = ", ".join(f"'{run.fingerprint}'" for run in (*cached, *others)) or "''"
    every = " UNION ALL BY NAME ".join(parts)
    return f"CREATE TEMP TABLE {table} AS SELECT {', '.join(names)} FROM ({every}) WHERE run IN ({ours})"


def _caches(runs: Sequence[RunFolder]) -> str:
    files = ", ".join(to_read(run.path / "rows.parquet") for run in runs)
    return f"read_parquet([{files}], hive_partitioning=false, union_by_name=true)"


def _sql_types(names: Iterable[str]) -> dict[str, str]:
    of = {f.name: f.type for f in fields(Row)}
    return {name: _sql_type(of[name]) for name in names}


def _lines(runs: Sequence[RunFolder], names: Iterable[str] = _ALL) -> str:
    """The rows of runs as SQL reads them."""
    types = ", ".join(f"'{name}': '{kind}'" for name, kind in _sql_types(names).items())
    files = ", ".join(to_read(run.rows_path) for run in runs)
    # A line that a killed worker left half-written is skipped; its owner takes it back on resume. So is what is no row.
    # A folder called `lr=1` is a name, not a column.
    return (
        f"(SELECT * FROM read_json([{files}], format='newline_delimited', ignore_errors=true, "
        f"hive_partitioning=false, columns={{{types}}}) WHERE run IS NOT NULL AND metric IS NOT NULL AND value IS NOT NULL)"
    )


def _write_cache(connection: Any, run: RunFolder) -> None:
    cache = run.path / "rows.parquet"
    temporary = cache.with_name(f".{cache.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        connection.execute(f"COPY {_lines([run])} TO {quoted(temporary)} (FORMAT parquet)")
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)


def quoted(path: Path) -> str:
    """A path as SQL writes to it."""
    return "'" + str(path).replace("'", "''") + "'"


def to_read(path: Path) -> str:
    """A path as SQL reads it: DuckDB takes brackets, stars and question marks of it for a pattern of several files."""
    return quoted(Path(escape(str(path))))


def _sql_type(annotation: Any) -> str:
    return next(sql for kind, sql in _TYPES.items() if annotation in (kind, kind | None))
