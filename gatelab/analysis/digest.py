"""The rows of a study that its analysis and its page look at, taken once: of a thousand runs one row in seven.

Of a study whose runs have all ended they are kept beside its page as `digest-<state>.parquet`. `state` stands for the plan, for
every file that the rows come from (name, size, times) and for what is taken of them, so what is kept never speaks of another
folder than the one that is there. It may be removed at any time.
"""

import hashlib
import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from .. import SCHEMA
from ..store import StudyFolder, quoted
from ..study.metrics import MAIN_ROWS, STUDY_METRICS
from .anomalies.readings import NAMED

CURVES = ("loss", "val_loss", "first_token_mass", "first_token_uniform")  # of these every step is told
LAYERS = ("massive_max", "massive_ratio", "gate_mean")
HISTOGRAM = "gate_histogram"
# A file changed this recently could change again without a new time (file systems count in ticks).
_SETTLED_NS = 2_000_000_000

_PLACE = "cell, arm, seed, run, step, source, metric, value"
_COORDINATES = "layer, head, site, stage, bin, threshold, length, domain, task, intervention"
# What the queries over a digest tell rows apart by, besides the step. Of rows that are alike in it all or none are taken by a
# query, so the last step of those that it takes is the last step of one such kind.
_KIND = (
    "run, metric, source, site, stage, layer IS NULL, head IS NULL, bin IS NULL, threshold IS NULL, domain IS NULL,"
    " intervention IS NULL"
)


_METRICS = tuple(sorted({*STUDY_METRICS, *NAMED, *CURVES, *LAYERS, HISTOGRAM}))
_TAKEN = f"""
    CREATE TEMP TABLE found AS SELECT {_PLACE}, {_COORDINATES} FROM main_rows
        WHERE metric IN {_METRICS};
    CREATE TABLE digest AS
        SELECT 'main' AS part, * FROM found QUALIFY step = max(step) OVER (PARTITION BY {_KIND})
        UNION ALL BY NAME SELECT 'curve' AS part, cell, arm, seed, metric,
            list(step ORDER BY step, value) AS steps, list(value ORDER BY step, value) AS heights
            FROM (SELECT DISTINCT cell, arm, seed, metric, step, value FROM found
                WHERE metric IN {CURVES} AND layer IS NULL AND head IS NULL AND bin IS NULL AND threshold IS NULL
                AND domain IS NULL AND intervention IS NULL) GROUP BY ALL
        UNION ALL BY NAME SELECT 'tasks' AS part, {_PLACE}, {_COORDINATES} FROM rows WHERE source = 'tasks'
        UNION ALL BY NAME SELECT 'reached' AS part, cell, arm, seed, run, max(step) AS step FROM rows GROUP BY ALL;
    DROP TABLE found
"""

_PARTS = f"""
    CREATE TEMP VIEW main_rows AS SELECT {_PLACE}, {_COORDINATES} FROM digest WHERE part = 'main';
    CREATE TEMP VIEW task_rows AS SELECT {_PLACE}, {_COORDINATES} FROM digest WHERE part = 'tasks';
    CREATE TEMP VIEW curves AS SELECT cell, arm, seed, metric, steps, heights FROM digest WHERE part = 'curve';
    CREATE TEMP VIEW reached AS SELECT cell, arm, seed, run, step FROM digest WHERE part = 'reached'
"""

_open: WeakKeyDictionary[StudyFolder, tuple[str, Any]] = WeakKeyDictionary()


def digest(folder: StudyFolder) -> Any:
    """A DuckDB connection with four views, each with the cell, arm and seed of a run: `main_rows`, of the one stack and site that
    it is judged by; `curves`, of `CURVES`, with `steps` and `heights` as lists; `task_rows`, of source `tasks`; and `reached`,
    the last step of a run.

    Of `main_rows` only the metrics that are looked at are there, and of them the last step at which rows of their kind were
    written. What the page shows of a curve is the whole model's, without thresholds, domains and interventions.

    Raises:
        StoreError: rows that cannot be read.
    """
    state, may_be_kept = _state(folder)
    known, connection = _open.get(folder, ("", None))
    if known != state:
        connection = _kept(folder, state)
        if connection is None:
            connection = _made(folder)
            if may_be_kept:
                _keep(connection, folder, state)
        _open[folder] = (state, connection)
    own = connection.cursor()
    own.execute(_PARTS)
    return own


def _state(folder: StudyFolder) -> tuple[str, bool]:
    """What a digest is of, as a word, and whether it may be kept: all runs have ended, and no file was written just now."""
    facts: list[Any] = [SCHEMA, MAIN_ROWS, _TAKEN]
    has_ended, newest = True, 0
    for entry, run in folder.planned():
        stats = []
        for name in ("rows.jsonl", "done.json"):
            with suppress(FileNotFoundError):
                s = os.stat(f"{run.path}/{name}")
                stats.append([name, s.st_size, s.st_mtime_ns, s.st_ctime_ns])
                newest = max(newest, s.st_mtime_ns)
        has_ended = has_ended and any(name == "done.json" for name, *_ in stats)
        facts.append([entry["cell"], entry["arm"], entry["seed"], entry["fingerprint"], stats])
    is_settled = time.time_ns() - newest > _SETTLED_NS
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16], has_ended and is_settled


def _made(folder: StudyFolder) -> Any:
    connection = folder.connect()
    connection.execute(MAIN_ROWS)
    connection.execute(_TAKEN)
    return connection


def _path(folder: StudyFolder, state: str) -> Path:
    return folder.path / f"digest-{state}.parquet"


def _kept(folder: StudyFolder, state: str) -> Any | None:
    """A connection to what was kept; None where it is not there, or damaged."""
    import duckdb

    path = _path(folder, state)
    if not path.exists():
        return None
    connection = duckdb.connect()
    with suppress(OSError, duckdb.Error):
        connection.execute(f"CREATE TABLE digest AS FROM read_parquet({quoted(path)}, hive_partitioning=false)")
        connection.execute(f"SELECT part, {_PLACE}, {_COORDINATES}, steps, heights FROM digest LIMIT 0")
        return connection
    return None


def _keep(connection: Any, folder: StudyFolder, state: str) -> None:
    """Keep the digest instead of older ones."""
    import duckdb

    path = _path(folder, state)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    # A read-only folder is no obstacle: what is kept is a convenience.
    with suppress(OSError, duckdb.Error):
        try:
            connection.execute(f"COPY digest TO {quoted(temporary)} (FORMAT parquet)")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        for other in folder.path.glob("digest-*.parquet"):
            if other != path:
                other.unlink(missing_ok=True)
