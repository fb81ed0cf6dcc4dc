"""The rows of a study that its analysis and its page look at, taken once: a small part of the millions that a thousand runs have.

Of a run that a worker has finished it lies beside its rows (`run_digest`). What is taken of other runs that have ended is kept
beside the study's page as `digest-<kind>.parquet`, each run's with the state of the files that it comes from (sizes and times);
`kind` stands for what is taken. So what is kept never speaks of other rows than those that are there, and of a study that goes on
only what is new is read. All of it may be removed at any time.
"""

import os
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ..store import RunFolder, StoreError, StudyFolder, fill, quoted, to_read
from ..study.local import n_cores
from .digest_parts import EMPTY, PLACES, VIEWS
from .run_digest import AT_ONCE, KIND, batches, digests_of, take

# A file changed this recently could change again without a new time (file systems count in ticks).
_SETTLED_NS = 2_000_000_000

Stamp = tuple[int, int, int]
Stamps = dict[str, Stamp | None]

_open: WeakKeyDictionary[StudyFolder, tuple[Stamps, Any]] = WeakKeyDictionary()


def digest(folder: StudyFolder) -> Any:
    """A DuckDB connection with views, each with the cell, arm and seed of a run: `main_rows`, of the one stack and site that
    it is judged by; `tables`, of what its page shows (see `table`); `task_rows`, of source `tasks`; `reached`, the last step
    of a run; and `short`, which finished runs have rows that end before their plan's last step (see `gatelab.analysis.short`).

    Of `main_rows` only the metrics that are judged are there, and of them the last step at which rows of their kind were written;
    of a run that is done none of a step before its plan's last, nor in `task_rows`, nor in `tables` without steps.

    Raises:
        StoreError: rows that cannot be read.
    """
    stamps, connection = _open.get(folder, ({}, None))
    if not stamps or any(_stamp(path) != stamp for path, stamp in stamps.items()):
        stamps = _stamps(folder)
        connection = _made(folder, stamps)
        _open[folder] = (stamps, connection)
    own = connection.cursor()
    own.execute(VIEWS)
    return own


def table(
    connection: Any, name: str, cells: Iterable[str] | None = None
) -> Iterator[tuple[tuple[str, str, int, str], list[tuple]]]:
    """A table of `TABLES`, or `courses`: the readings of `COURSES` with their parts, and `furthest:METRIC`. By run: (cell, arm,
    seed, metric) and (place, …, value) of each value, in order; of some `cells`, or all."""
    lists = ", ".join((*(f"{place}s" for place in PLACES[name]), "heights"))
    records = connection.execute(
        f"""SELECT cell, arm, seed, metric, {lists} FROM tables WHERE name = $1 AND ($2 IS NULL OR list_contains($2, cell))
            ORDER BY cell, arm, seed, metric""",
        [name, None if cells is None else list(cells)],
    )
    for cell, arm, seed, metric, *columns in records.fetchall():
        yield (cell, arm, seed, metric), list(zip(*columns, strict=True))


def _stamps(folder: StudyFolder) -> Stamps:
    """{path: size and times} of every file that a digest comes from, None of one that is not there."""
    runs = [path for _, run in folder.planned() for path in _files(run)]
    return {path: _stamp(path) for path in (str(folder.path / "study.json"), *runs)}


def _files(run: RunFolder) -> tuple[str, str]:
    return f"{run.path}/rows.jsonl", f"{run.path}/done.json"


def _stamp(path: str) -> Stamp | None:
    try:
        s = os.stat(path)
    except FileNotFoundError:
        return None
    return s.st_size, s.st_mtime_ns, s.st_ctime_ns


def _made(folder: StudyFolder, stamps: Stamps) -> Any:
    """A connection with the tables `digest` and `planned`, of what was kept as far as it is of what is there."""
    import duckdb

    planned = list(folder.planned())
    runs = {run.fingerprint: run for _, run in planned if stamps[_files(run)[0]]}
    states = {name: str([stamps[path] for path in _files(run)]) for name, run in runs.items()}
    # Small files, and lists: several threads that share out a core or two took twice as long.
    connection = duckdb.connect(config={"threads": 1})
    kept = _kept(connection, folder)
    there = {name for name, state in kept.items() if states.get(name) == state}
    if len(there) < len(kept):
        connection.execute("DELETE FROM digest WHERE NOT list_contains($1, run)", [sorted(there)])
    missing = [run for name, run in runs.items() if name not in there]
    found: dict[str, bool] = {}
    if missing:
        found = digests_of(connection, [run for run in missing if stamps[_files(run)[1]]])
        of_rows = [(run, stamps[_files(run)[0]][0]) for run in missing if run.fingerprint not in found]
        if sum(size for _, size in of_rows) > AT_ONCE:
            connection.execute(f"SET threads = {n_cores()}")
        for batch in batches(of_rows):
            take(connection, batch)
        connection.execute("SET threads = 1")
    may = {
        name: state
        for name, state in states.items()
        if not found.get(name) and _may_be_kept([stamps[p] for p in _files(runs[name])])
    }
    if may != kept:
        _keep(connection, folder, may)
    columns = {"cell": "VARCHAR", "arm": "VARCHAR", "seed": "BIGINT", "run": "VARCHAR", "final": "BIGINT"}
    records = [entry | {"run": entry["fingerprint"], "final": _final(entry, run)} for entry, run in planned]
    fill(connection, "planned", columns, records)
    return connection


def _final(entry: dict[str, Any], run: RunFolder) -> int | None:
    """The step to which the rows of a run go that is done; None of other runs, and where its plan does not say."""
    with suppress(StoreError):  # a done.json that is cut ends no run
        done, steps = run.done(), entry.get("steps")
        return steps if done is not None and done["status"] == "done" and isinstance(steps, int) else None
    return None


def _may_be_kept(stamps: Collection[Stamp | None]) -> bool:
    """Whether a run has ended, and none of its files was written just now."""
    return all(stamps) and time.time_ns() - max(stamp[1] for stamp in stamps) > _SETTLED_NS


def _path(folder: StudyFolder) -> Path:
    return folder.path / f"digest-{KIND}.parquet"


def _kept(connection: Any, folder: StudyFolder) -> dict[str, str]:
    """Make the table `digest` of what was kept; returns the state of each run that it is of."""
    import duckdb

    connection.execute(EMPTY)
    path = _path(folder)
    if path.exists():
        with suppress(OSError, duckdb.Error):
            connection.execute(
                f"INSERT INTO digest BY NAME FROM read_parquet({to_read(path)}, hive_partitioning=false)"
            )
            states = connection.execute("SELECT run, metric FROM digest WHERE part = 'state'").fetchall()
            connection.execute("DELETE FROM digest WHERE part = 'state'")
            return dict(states)
        connection.execute("DELETE FROM digest")
    return {}


def _keep(connection: Any, folder: StudyFolder, states: dict[str, str]) -> None:
    """Keep what was taken of these runs instead of what was kept before."""
    import duckdb

    path = _path(folder)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    # A read-only folder is no obstacle: what is kept is a convenience.
    with suppress(OSError, duckdb.Error):
        records = [{"run": name, "metric": state} for name, state in states.items()]
        fill(connection, "states", {"run": "VARCHAR", "metric": "VARCHAR"}, records)
        try:
            connection.execute(
                f"""COPY (FROM digest SEMI JOIN states USING (run) UNION ALL BY NAME SELECT 'state' AS part, * FROM states)
                    TO {quoted(temporary)} (FORMAT parquet)"""
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        for other in folder.path.glob("digest-*.parquet"):
            if other != path:
                other.unlink(missing_ok=True)
