"""Run folders: JSON lines are the truth, Parquet a derived cache, DuckDB the query; "done" is written last.

    OUT/study.json                     what was asked: cells, arms, seeds, metrics, and the plan (one entry a run)
    OUT/runs/<fingerprint>/run.json    the run's canonical configuration
                           environment.json  versions, git state, device, what was really used
                           rows.jsonl  items.jsonl   measurements, append-only; only the run's owner writes
                           clock.jsonl   step times: they differ between machines and are kept apart from results
                           checkpoint/   resumable state       weights.safetensors   the final weights
                           attempts/0001.json …  one file an attempt: who, when, how it ended
                           lease.json    who is at it now      log.txt   what the worker printed
                           done.json     written last: the result is complete
    OUT/report.html  effects.csv       derived, rewritten at will

Two processes never write one file: a run folder belongs to the holder of its lease. Every other file is written under
a temporary name, flushed to the disk and renamed, so a reader or a crash never sees half of one.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from . import SCHEMA
from .record import Item, Row

_TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}


class StoreError(ValueError):
    """A folder that cannot be used: it is missing, holds something else, or was written by another version."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically: a temporary name in the same folder, flushed to the disk, renamed."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically, as `write_json` does."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        StoreError: when it is missing or cut, naming the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); was it cut or edited?") from None


class Appender:
    """An append-only file of JSON lines with one owner.

    Opening at an `offset` forgets everything behind it: that is how a resumed run takes back the rows which its killed
    predecessor wrote after the checkpoint.
    """

    def __init__(self, path: Path, offset: int = 0):
        self._file = open(path, "ab")  # noqa: SIM115  (closed by close)
        self._file.truncate(offset)
        self._file.seek(0, os.SEEK_END)

    def write(self, records: Iterable[Row | Item | dict[str, Any]]) -> None:
        """Append one line a record."""
        for record in records:
            value = (
                record if isinstance(record, dict) else record.as_dict() if isinstance(record, Row) else asdict(record)
            )
            self._file.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def flush(self) -> int:
        """Hand everything to the disk; returns the offset, which a checkpoint keeps."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()


class RunFolder:
    """One run's folder. `state` is derived from its files; nothing stores it twice."""

    def __init__(self, path: Path):
        self.path = path
        self.fingerprint = path.name

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write run.json; an existing one is checked, not rewritten.

        Raises:
            StoreError: when the folder was written by another schema version.
        """
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        if (self.path / "run.json").exists():
            self.config()
        else:
            write_json(self.path / "run.json", {"schema": SCHEMA, "fingerprint": self.fingerprint, "run": config})

    def config(self) -> dict[str, Any]:
        """The canonical configuration.

        Raises:
            StoreError: when it is missing, cut, or from another version.
        """
        value = read_json(self.path / "run.json")
        _check_schema(self.path / "run.json", value)
        return value["run"]

    def done(self) -> dict[str, Any] | None:
        """What done.json says (`status`: done or diverged, steps, seconds), or None."""
        path = self.path / "done.json"
        return read_json(path) if path.exists() else None

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts so far, oldest first: each with owner, started, ended, outcome, message."""
        return [read_json(p) for p in sorted((self.path / "attempts").glob("[0-9]*.json"))]

    def mark_done(self, status: str, facts: dict[str, Any]) -> None:
        """Write done.json, last of all."""
        write_json(self.path / "done.json", {"status": status, **facts})

    @property
    def rows_path(self) -> Path:
        return self.path / "rows.jsonl"


class StudyFolder:
    """A study's folder: study.json and its runs."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def open(cls, path: str | Path) -> "StudyFolder":
        """An existing study.

        Raises:
            StoreError: when the folder is missing, holds no study, or one from another version.
        """
        folder = cls(Path(path))
        if not folder.path.exists():
            raise StoreError(f"{path}: no such folder; `gatelab run STUDY --out {path}` makes one")
        if not (folder.path / "study.json").exists():
            raise StoreError(f"{path}: holds no study (no study.json); name the folder that `gatelab run` wrote to")
        folder.study()
        return folder

    @classmethod
    def create(cls, path: str | Path, study: dict[str, Any]) -> "StudyFolder":
        """Write study.json; a folder of the same study is extended, anything else is left alone.

        Raises:
            StoreError: when `path` is a file, or a folder that holds something else or another study.
        """
        folder = cls(Path(path))
        if folder.path.is_file():
            raise StoreError(f"--out {path}: is a file; name a new or empty folder")
        if (folder.path / "study.json").exists():
            there = folder.study()
            if there["name"] != study["name"]:
                raise StoreError(
                    f"--out {path}: holds the study {there['name']!r}, not {study['name']!r}; name another folder"
                )
        elif folder.path.exists() and any(folder.path.iterdir()):
            held = sorted(p.name for p in folder.path.iterdir())[:3]
            raise StoreError(
                f"--out {path}: holds something else ({', '.join(held)} …) and is left alone; name a new or empty folder"
            )
        (folder.path / "runs").mkdir(parents=True, exist_ok=True)
        write_json(folder.path / "study.json", {"schema": SCHEMA, **study})
        return folder

    def study(self) -> dict[str, Any]:
        """What study.json says."""
        value = read_json(self.path / "study.json")
        _check_schema(self.path / "study.json", value)
        return value

    def run(self, fingerprint: str) -> RunFolder:
        """The folder of one run, which need not exist yet."""
        return RunFolder(self.path / "runs" / fingerprint)

    def planned(self) -> Iterator[tuple[dict[str, Any], RunFolder]]:
        """The plan's entries (cell, arm, seed, fingerprint, …) with their folders."""
        for entry in self.study()["plan"]:
            yield entry, self.run(entry["fingerprint"])

    def find(self, name: str) -> RunFolder:
        """The run whose fingerprint starts with `name`, or that is called `cell/arm/seed`.

        Raises:
            StoreError: when none or several are meant, listing some that exist.
        """
        entries = self.study()["plan"]
        labels = {f"{e['cell']}/{e['arm']}/{e['seed']}": e["fingerprint"] for e in entries}
        hits = {f for f in labels.values() if name and f.startswith(name)} | (
            {labels[name]} if name in labels else set()
        )
        if len(hits) == 1:
            return self.run(hits.pop())
        some = ", ".join(list(labels)[:4])
        raise StoreError(
            f"{name!r} names {len(hits)} runs of {self.path}; take a fingerprint or cell/arm/seed, such as {some}"
        )

    def connect(self) -> Any:
        """A DuckDB connection with two tables: `runs` (cell, arm, seed, fingerprint, n_parameters) and `rows` (every
        measurement with the run's cell, arm and seed). Finished runs are read from their Parquet cache."""
        import duckdb

        connection = duckdb.connect()
        columns = ", ".join(f"{f.name} {_sql_type(f.type)}" for f in fields(Row))
        connection.execute(
            "CREATE TABLE runs (cell VARCHAR, arm VARCHAR, seed BIGINT, fingerprint VARCHAR, n_parameters BIGINT)"
        )
        connection.execute(f"CREATE TABLE measured ({columns})")
        seen = set()
        for entry, run in self.planned():
            connection.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?)",
                [entry["cell"], entry["arm"], entry["seed"], run.fingerprint, entry["n_parameters"]],
            )
            if run.fingerprint not in seen and run.rows_path.exists() and run.rows_path.stat().st_size:
                seen.add(run.fingerprint)
                connection.execute(f"INSERT INTO measured BY NAME SELECT * FROM {_scan(connection, run)}")
        connection.execute(
            "CREATE VIEW rows AS SELECT runs.cell, runs.arm, runs.seed, measured.* FROM measured JOIN runs ON fingerprint = run"
        )
        return connection


def query(folder: StudyFolder, sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a SQL query over `rows` and `runs` (see `StudyFolder.connect`) as dictionaries."""
    cursor = folder.connect().execute(sql, parameters or [])
    names = [d[0] for d in cursor.description]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def _scan(connection: Any, run: RunFolder) -> str:
    """The SQL that reads one run's rows, through a Parquet cache when the run is done."""
    types = ", ".join(f"'{f.name}': '{_sql_type(f.type)}'" for f in fields(Row))
    # A line that a killed worker left half-written is skipped; its owner takes it back on resume.
    lines = f"read_json({_quoted(run.rows_path)}, format='newline_delimited', ignore_errors=true, columns={{{types}}})"
    if not (run.path / "done.json").exists():
        return lines
    import duckdb

    cache = run.path / "rows.parquet"
    if not cache.exists() or cache.stat().st_mtime < run.rows_path.stat().st_mtime:
        temporary = cache.with_name(f".{cache.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            connection.execute(f"COPY (SELECT * FROM {lines}) TO {_quoted(temporary)} (FORMAT parquet)")
            os.replace(temporary, cache)
        except (OSError, duckdb.Error):
            # A read-only folder can be analysed too: the cache is a convenience.
            temporary.unlink(missing_ok=True)
            return lines
    return f"read_parquet({_quoted(cache)})"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _sql_type(annotation: Any) -> str:
    return next(sql for kind, sql in _TYPES.items() if annotation in (kind, kind | None))


def _check_schema(path: Path, value: Any) -> None:
    found = value.get("schema") if isinstance(value, dict) else None
    if found != SCHEMA:
        raise StoreError(
            f"{path}: written by another version of Gatelab (schema {found}, this one reads {SCHEMA}); "
            "use that version, or run the study into a new folder"
        )
