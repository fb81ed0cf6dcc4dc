"""The rows of a study that its analysis and its page look at, taken once: a small part of the millions that a thousand runs have.

Of a study whose runs have all ended they are kept beside its page as `digest-<state>.parquet`. `state` stands for the plan, for
every file that the rows come from (name, size, times) and for what is taken of them, so what is kept never speaks of another
folder than the one that is there. It may be removed at any time.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from .. import SCHEMA
from ..store import StudyFolder, quoted
from ..study.metrics import MAIN_ROWS, STUDY_METRICS
from .anomalies.readings import NAMED, READINGS

# A file changed this recently could change again without a new time (file systems count in ticks).
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Table:
    """Values of a run by their places, of the rows that fulfil `where`; at the last step of a run and metric, unless the step is
    a place. A run and metric is one record of lists, a list a place."""

    metrics: tuple[str, ...]
    places: tuple[str, ...]
    where: str

    def sql(self, name: str) -> str:
        """The query that makes it of `found`, in order; of two values in one place the larger comes last."""
        order = ", ".join((*self.places, "value"))
        last = "" if "step" in self.places else "QUALIFY step = max(step) OVER (PARTITION BY cell, arm, seed, metric)"
        return f"""
            SELECT '{name}' AS part, cell, arm, seed, metric, list(value ORDER BY {order}) AS heights,
                {", ".join(f"list({place} ORDER BY {order}) AS {place}s" for place in self.places)}
            FROM (SELECT DISTINCT cell, arm, seed, metric, step, {order} FROM found WHERE metric IN ({_quoted(self.metrics)})
                AND domain IS NULL AND intervention IS NULL AND threshold IS NULL AND {self.where} {last}) GROUP BY ALL
        """


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


TABLES = {
    "curves": Table(
        ("loss", "val_loss", "first_token_mass", "first_token_uniform"), ("step",),
        "layer IS NULL AND head IS NULL AND bin IS NULL",
    ),
    # Of the probe: a training may have rows of its own, step by step.
    "heads": Table(("first_token_mass",), ("layer", "head"), "head IS NOT NULL AND source = 'sinks'"),
    "layers": Table(("massive_max", "massive_ratio", "gate_mean"), ("layer",), "layer IS NOT NULL AND head IS NULL"),
    "histograms": Table(("gate_histogram",), ("layer", "bin"), "layer IS NOT NULL AND bin IS NOT NULL"),
}  # fmt: skip

# Readings that rules look at, over the looks of a run; `curves` has the held-out loss and first-token mass.
COURSES = ("massive_ratio", "massive_max", "value_drain", "gate_shut", "gate_open", "gate_dead", "sink_elsewhere", "new_places",
           "new_tokens", "accuracy", "longer")  # fmt: skip
# The layer that is furthest, over the looks of a run; that of shut scores is a reading.
FURTHEST = {"first_token_mass": "max", "massive_ratio": "max", "value_drain": "min"}
_PLACES = {name: table.places for name, table in TABLES.items()} | {"courses": ("step",)}

_JUDGED = {*STUDY_METRICS, *NAMED}
_FOUND = sorted(_JUDGED.union(*(table.metrics for table in TABLES.values())))
_PLACE = "cell, arm, seed, run, step, source, metric, value"
_COORDINATES = "layer, head, site, stage, bin, threshold, length, domain, task, intervention"
# What the queries over `main_rows` tell rows apart by, besides the step. Of rows that are alike in it all or none are taken by a
# query, so the last step of those that it takes is the last step of one such kind.
_KIND = (
    "run, metric, source, site, stage, layer IS NULL, head IS NULL, bin IS NULL, threshold IS NULL, domain IS NULL,"
    " intervention IS NULL"
)
_EACH = " UNION ALL ".join(
    [
        *(f"SELECT '{name}' AS name, look, part::VARCHAR AS part, value FROM ({READINGS[name].sql}) AS one(look, part, value)"
          for name in COURSES),
        *(f"SELECT 'furthest', run, '{metric}', {furthest}(value) FROM final WHERE metric = '{metric}' AND layer IS NOT NULL AND"
          " threshold IS NULL AND domain IS NULL AND bin IS NULL GROUP BY run" for metric, furthest in FURTHEST.items()),
    ]
)  # fmt: skip
# A reading's query takes one value a run and part of `final`: here a look at a run is its `run`.
_LOOKS = f"""
    CREATE TEMP TABLE looks AS SELECT row_number() OVER () AS look, * FROM
        (SELECT DISTINCT cell, arm, seed, step FROM found WHERE source <> 'train' AND metric IN ({_quoted(NAMED)}));
    CREATE TEMP TABLE final AS SELECT look AS run, metric, value, layer, head, bin, stage, task, domain, threshold, length,
        layer IS NULL AND head IS NULL AS is_model FROM found JOIN looks USING (cell, arm, seed, step)
        WHERE intervention IS NULL AND source <> 'train' AND head IS NULL AND metric IN ({_quoted(NAMED)});
"""
_COURSES = f"""SELECT 'courses' AS part, cell, arm, seed, metric, list(value ORDER BY step, value) AS heights,
    list(step ORDER BY step, value) AS steps FROM (SELECT cell, arm, seed, step, name || coalesce(':' || part, '') AS metric, value
    FROM ({_EACH}) JOIN looks USING (look) WHERE value IS NOT NULL) GROUP BY ALL"""
_TAKEN = f"""
    CREATE TEMP TABLE found AS SELECT {_PLACE}, {_COORDINATES} FROM main_rows WHERE metric IN ({_quoted(_FOUND)});
    {_LOOKS}
    CREATE TABLE digest AS
        SELECT 'main' AS part, * FROM found WHERE metric IN ({_quoted(sorted(_JUDGED))})
            QUALIFY step = max(step) OVER (PARTITION BY {_KIND})
        UNION ALL BY NAME {" UNION ALL BY NAME ".join(table.sql(name) for name, table in TABLES.items())}
        UNION ALL BY NAME {_COURSES}
        UNION ALL BY NAME SELECT 'tasks' AS part, {_PLACE}, {_COORDINATES} FROM rows WHERE source = 'tasks'
        UNION ALL BY NAME SELECT 'reached' AS part, cell, arm, seed, run, max(step) AS step FROM rows GROUP BY ALL;
    DROP TABLE found; DROP TABLE looks; DROP TABLE final
"""
_LISTS = "heights, steps, layers, heads, bins"
_PARTS = f"""
    CREATE TEMP VIEW main_rows AS SELECT {_PLACE}, {_COORDINATES} FROM digest WHERE part = 'main';
    CREATE TEMP VIEW task_rows AS SELECT {_PLACE}, {_COORDINATES} FROM digest WHERE part = 'tasks';
    CREATE TEMP VIEW tables AS SELECT part AS name, cell, arm, seed, metric, {_LISTS} FROM digest
        WHERE part IN ({_quoted(_PLACES)});
    CREATE TEMP VIEW reached AS SELECT cell, arm, seed, run, step FROM digest WHERE part = 'reached'
"""

Stamp = tuple[int, int, int]
Stamps = dict[str, Stamp | None]

_open: WeakKeyDictionary[StudyFolder, tuple[Stamps, Any]] = WeakKeyDictionary()


def digest(folder: StudyFolder) -> Any:
    """A DuckDB connection with four views, each with the cell, arm and seed of a run: `main_rows`, of the one stack and site that
    it is judged by; `tables`, of what its page shows (see `table`); `task_rows`, of source `tasks`; and `reached`, the last step
    of a run.

    Of `main_rows` only the metrics that are judged are there, and of them the last step at which rows of their kind were written.

    Raises:
        StoreError: rows that cannot be read.
    """
    stamps, connection = _open.get(folder, ({}, None))
    if not stamps or any(_stamp(path) != stamp for path, stamp in stamps.items()):
        stamps = _stamps(folder)
        state = _state(folder, stamps)
        connection = _kept(folder, state)
        if connection is None:
            connection = _made(folder)
            if _may_be_kept(stamps):
                _keep(connection, folder, state)
        _open[folder] = (stamps, connection)
    own = connection.cursor()
    own.execute(_PARTS)
    return own


def table(
    connection: Any, name: str, cells: Iterable[str] | None = None
) -> Iterator[tuple[tuple[str, str, int, str], list[tuple]]]:
    """A table of `TABLES`, or `courses`: the readings of `COURSES` with their parts, and `furthest:METRIC`. By run: (cell, arm,
    seed, metric) and (place, …, value) of each value, in order; of some `cells`, or all."""
    lists = ", ".join((*(f"{place}s" for place in _PLACES[name]), "heights"))
    records = connection.execute(
        f"""SELECT cell, arm, seed, metric, {lists} FROM tables WHERE name = $1 AND ($2 IS NULL OR list_contains($2, cell))
            ORDER BY cell, arm, seed, metric""",
        [name, None if cells is None else list(cells)],
    )
    for cell, arm, seed, metric, *columns in records.fetchall():
        yield (cell, arm, seed, metric), list(zip(*columns, strict=True))


def _stamps(folder: StudyFolder) -> Stamps:
    """{path: size and times} of every file that a digest comes from, None of one that is not there."""
    runs = [str(run.path) for _, run in folder.planned()]
    paths = [
        str(folder.path / "study.json"),
        *(f"{run}/{name}" for run in runs for name in ("rows.jsonl", "done.json")),
    ]
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> Stamp | None:
    try:
        s = os.stat(path)
    except FileNotFoundError:
        return None
    return s.st_size, s.st_mtime_ns, s.st_ctime_ns


def _state(folder: StudyFolder, stamps: Stamps) -> str:
    """What a digest is of, as a word. Of study.json only the plan counts, which every `gatelab run` writes anew."""
    plan = [[e["cell"], e["arm"], e["seed"], e["fingerprint"]] for e, _ in folder.planned()]
    facts = [SCHEMA, MAIN_ROWS, _TAKEN, plan, list(stamps.values())[1:]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _may_be_kept(stamps: Stamps) -> bool:
    """Whether all runs have ended, and none of their files was written just now."""
    newest = max((stamp[1] for stamp in list(stamps.values())[1:] if stamp), default=0)
    has_ended = all(stamp for path, stamp in stamps.items() if path.endswith("done.json"))
    return has_ended and time.time_ns() - newest > _SETTLED_NS


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
        connection.execute(f"SELECT part, {_PLACE}, {_COORDINATES}, {_LISTS} FROM digest LIMIT 0")
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
