"""Run folders: JSON lines are the truth, Parquet a derived cache, DuckDB the query; "done" is written last.

    OUT/study.json                     what was asked: cells, arms, seeds, metrics, and the plan (one entry a run)
    OUT/runs/<fingerprint>/run.json    the run's canonical configuration
                           environment.json  versions, git state, device, what was really used
                           rows.jsonl    measurements, append-only; only the run's owner writes
                           items.jsonl   answers to items of tasks at the last step, where a run is asked some
                           clock.jsonl  progress.json  step times: they differ between machines, so they stand apart
                           checkpoint.safetensors      resumable state, gone when done
                           checkpoint/                 the same of several processes (train/checkpoint_folder.py)
                           weights.safetensors         the final weights
                           attempts/0001.json …  one file an attempt: who, when, how it ended; the newest is the lease
                           log.txt       what the workers printed
                           rows.parquet  derived from the rows of a finished run
                           done.json     written last: the result is complete
    OUT/report.html  *.csv             derived, rewritten at will
    OUT/digest-<state>.parquet         derived from the rows of a finished study: what its page reads (analysis/digest.py)

Two processes never write one file: a run folder belongs to the holder of its lease. Every other file is written under
a temporary name, flushed to the disk and renamed, so a reader or a crash never sees half of one.
"""

import errno
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import SCHEMA
from .mirror import LIGHT, Mirror
from .objects import AddressError, address_of, error_words, mirror_of
from .record import Item, Row

_TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}


class StoreError(ValueError):
    """A folder that cannot be used: it is missing, holds something else, or was written by another version."""


def write_json(path: Path, value: Any, *, is_kept: bool = True) -> None:
    """Write `value` atomically: a temporary name in the same folder, flushed to the disk (not where it need not be kept through
    a crash of the machine), renamed."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", is_kept=is_kept)


def write_lines(path: Path, records: Iterable[Row | Item]) -> None:
    """Write one line of JSON a record atomically, as `write_json` does."""
    write_text(path, "".join(f"{_line(record.as_dict())}\n" for record in records))


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
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        StoreError: when it is missing or cut, naming the file.
    """
    try:
        return json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); was it cut or edited?") from None


def read_stored(path: Path) -> dict[str, Any]:
    """The content of a study.json or run.json.

    Raises:
        StoreError: when it is missing, cut, or from another version.
    """
    value = read_json(path)
    found = value.get("schema") if isinstance(value, dict) else None
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
            self._file.write(_line(value).encode() + b"\n")

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


class RunFolder:
    """One run's folder. `state` is derived from its files; nothing stores it twice. With `objects` it mirrors a run of these."""

    def __init__(self, path: Path, objects: Mirror | None = None):
        self.path, self.objects = path, objects
        self.fingerprint = path.name

    def look(self) -> None:
        """Of a run on an object store, let the mirror have what others wrote of its ledger."""
        if self.objects is not None:
            self.objects.look(self.path)

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write run.json. An existing one is checked, and rewritten where it differs: under the
        same fingerprint that can only be where the data lies.

        Raises:
            StoreError: when the folder was written by another schema version.
        """
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        if not (self.path / "run.json").exists() or self.config() != config:
            write_json(self.path / "run.json", {"schema": SCHEMA, "fingerprint": self.fingerprint, "run": config})

    def config(self) -> dict[str, Any]:
        """The canonical configuration.

        Raises:
            StoreError: when it is missing, cut, or from another version.
        """
        value = read_stored(self.path / "run.json")
        _check_keys(self.path / "run.json", value, {"run": dict})
        return value["run"]

    def done(self) -> dict[str, Any] | None:
        """What done.json says (`status`: done or diverged, steps, seconds), or None.

        Raises:
            StoreError: when it is cut or edited.
        """
        path = self.path / "done.json"
        if not path.exists():
            return None
        try:
            value = read_json(path)
            _check_keys(path, value, {"status": str})
        except StoreError as error:
            raise StoreError(f"{error} Remove it, and `gatelab run` carries this run out again") from None
        if value["status"] not in ("done", "diverged"):
            raise StoreError(f"{path}: status {value['status']!r}, expected done or diverged; was it edited?")
        return value

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts so far, oldest first: each with owner, started, ended, outcome, message."""
        folder = self.path / "attempts"
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [read_json(folder / name) for name in sorted(names) if name[0].isdecimal() and name.endswith(".json")]

    def mark_done(self, status: str, facts: dict[str, Any]) -> None:
        """Write done.json, last of all."""
        write_json(self.path / "done.json", {"status": status, **facts})

    @property
    def rows_path(self) -> Path:
        return self.path / "rows.jsonl"

    @property
    def items_path(self) -> Path:
        return self.path / "items.jsonl"

    def items(self) -> Iterator[dict[str, Any]]:
        """The answers to items of tasks at the run's last step; none where it was asked nothing.

        Raises:
            StoreError: when the file is cut or edited.
        """
        if not self.items_path.exists():
            return
        with open(self.items_path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except (json.JSONDecodeError, RecursionError):
                    raise StoreError(f"{self.items_path}, line {number}: not readable as JSON; was it cut?") from None


class StudyFolder:
    """A study's folder: study.json and its runs. With `objects` it mirrors the study that lives on these."""

    def __init__(self, path: Path, objects: Mirror | None = None):
        self.path, self.objects = path, objects

    @classmethod
    def at(cls, address: str, path: Path | None = None) -> "StudyFolder":
        """The study of an object store, which need not exist yet, with its mirror in `path`, this user's own unless stated.
        Nothing is read: `refresh` does."""
        path = path or mirror_of(address)
        return cls(path, Mirror(address, path))

    @property
    def address(self) -> str:
        """What a user names it by."""
        return str(self.path) if self.objects is None else self.objects.address

    @classmethod
    def open(cls, path: str | Path, *, is_light: bool = False) -> "StudyFolder":
        """An existing study: a folder, an address such as s3://bucket/x, or the folder that mirrors one. Of an address what changed
        is fetched first, checkpoints and weights left out; with `is_light` only what tells how the runs stand.

        Raises:
            StoreError: when the folder is missing, holds no study, or one from another version; an address that cannot be used.
        """
        if (address := address_of(path)) is not None:
            folder = cls.at(address)
            folder.refresh(LIGHT if is_light else None)
            if not (folder.path / "study.json").exists():
                raise StoreError(
                    f"{address}: holds no study (no study.json); `gatelab run STUDY --out {address}` makes one"
                )
            folder.study()
            return folder
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
        elif folder.path.exists() and address_of(folder.path) is None:
            # What a first write that was killed leaves behind is nobody's.
            held = sorted(p.name for p in folder.path.iterdir() if not _is_half_study(p))
            if held:
                some = ", ".join(held[:3]) + (" …" if len(held) > 3 else "")
                raise StoreError(
                    f"--out {path}: holds something else ({some}) and is left alone; name a new or empty folder"
                )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            # Before anything else is in the folder: it is what tells it from a stranger's.
            write_json(folder.path / "study.json", {"schema": SCHEMA, **study})
            (folder.path / "runs").mkdir(exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreError(f"--out {path}: cannot be written ({error.strerror}); name another folder") from None
        return folder

    def study(self) -> dict[str, Any]:
        """What study.json says.

        Raises:
            StoreError: when it is missing, cut, edited, or from another version.
        """
        path = self.path / "study.json"
        value = read_stored(path)
        _check_keys(path, value, {"name": str, "plan": list})
        for entry in value["plan"]:
            _check_keys(path, entry, {"cell": str, "arm": str, "seed": int, "fingerprint": str})
            # Each names a folder.
            for name in (entry["fingerprint"], entry.get("init_from")):
                if name is not None and not (isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name)):
                    raise StoreError(f"{path}: {name!r} is no fingerprint of a run; was it edited?")
        return value

    def run(self, fingerprint: str) -> RunFolder:
        """The folder of one run, which need not exist yet."""
        return RunFolder(self.path / "runs" / fingerprint, self.objects)

    def refresh(self, wants: Callable[[str], bool] | None = LIGHT, *, is_due: bool = True) -> None:
        """Of a study on an object store, let the mirror have what changed, as `Mirror.refresh` says.

        Raises:
            StoreError: when it cannot be reached.
        """
        if self.objects is None:
            return
        try:
            self.objects.refresh(wants, is_due=is_due)
        except AddressError as error:
            raise StoreError(str(error)) from None
        except PermissionError as error:
            raise StoreError(
                f"{self.address}: may not be read ({error_words(error)}); check your credentials for it"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.address}: cannot be read ({error_words(error)})") from None

    def check(self) -> None:
        """Whether the study of an address may be written, or begun, there; and have what is there in the mirror.

        Raises:
            StoreError: when it may not.
        """
        try:
            self.objects.check()
        except AddressError as error:
            raise StoreError(f"--out {error}") from None
        self.objects.forget_unpushed()
        self.refresh()

    def push(self) -> None:
        """Of a study on an object store, write there what was written into the mirror beside the runs.

        Raises:
            StoreError: when it may not be written, or cannot be reached.
        """
        if self.objects is None:
            return
        try:
            self.objects.push()
        except PermissionError as error:
            raise StoreError(
                f"{self.address}: may not be written ({error_words(error)}); check your credentials for it"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.address}: cannot be written ({error_words(error)})") from None

    def planned(self) -> Iterator[tuple[dict[str, Any], RunFolder]]:
        """The plan's entries (cell, arm, seed, fingerprint, …) with their folders."""
        runs = self.path / "runs"
        for entry in self.study()["plan"]:
            yield entry, RunFolder(runs / entry["fingerprint"], self.objects)

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
        """A DuckDB connection with a table and a view: `runs` (cell, arm, seed, fingerprint, n_parameters) and `rows` (every
        measurement with the run's cell, arm and seed). Finished runs are read from their Parquet cache, and of it what a query
        asks for."""
        import duckdb

        connection = duckdb.connect()
        columns = ", ".join(f"{f.name} {_sql_type(f.type)}" for f in fields(Row))
        connection.execute(
            "CREATE TABLE runs (cell VARCHAR, arm VARCHAR, seed BIGINT, fingerprint VARCHAR, n_parameters BIGINT)"
        )
        connection.execute(f"CREATE TABLE read ({columns})")
        planned = list(self.planned())
        names = ("cell", "arm", "seed", "fingerprint", "n_parameters")
        _fill(connection, "runs", names, [[entry[name] for name in names] for entry, _ in planned])
        with_rows = {
            run.fingerprint: run for _, run in planned if run.rows_path.exists() and run.rows_path.stat().st_size
        }
        _view_all(connection, list(with_rows.values()))
        connection.execute(
            "CREATE VIEW rows AS SELECT runs.cell, runs.arm, runs.seed, measured.* FROM measured JOIN runs ON fingerprint = run"
        )
        return connection


def query(folder: StudyFolder, sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a SQL query over `rows` and `runs` (see `StudyFolder.connect`) as dictionaries."""
    cursor = folder.connect().execute(sql, parameters or [])
    names = [d[0] for d in cursor.description]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def _fill(connection: Any, name: str, columns: Sequence[str], records: Sequence[Sequence[Any]]) -> None:
    """Insert records in one statement."""
    if records:
        row = f"({', '.join('?' * len(columns))})"
        values = [value for record in records for value in record]
        connection.execute(f"INSERT INTO {name} VALUES {', '.join([row] * len(records))}", values)


def _view_all(connection: Any, runs: list[RunFolder]) -> None:
    """Make the view `measured` of the rows of runs: caches that stand where they lie, the rest in the table `read`."""
    import duckdb

    cached: list[RunFolder] = []
    for run in runs:
        if run.done() is not None:
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
    files = ", ".join(quoted(run.path / "rows.parquet") for run in cached)
    whole = f" UNION ALL BY NAME SELECT * FROM read_parquet([{files}], hive_partitioning=false, union_by_name=true)"
    connection.execute(f"CREATE OR REPLACE VIEW measured AS SELECT * FROM read{whole if cached else ''}")


def _is_mended(connection: Any, run: RunFolder) -> bool:
    """Whether a run's cache can be read, as it is or made anew."""
    import duckdb

    cache = run.path / "rows.parquet"
    check = f"SELECT count(*) FROM read_parquet({quoted(cache)}, hive_partitioning=false)"
    for mend in (lambda: None, lambda: _write_cache(connection, run)):
        with suppress(OSError, duckdb.Error):
            mend()
            connection.execute(check)
            return True
    return False


def _is_fresh(run: RunFolder) -> bool:
    cache = run.path / "rows.parquet"
    return cache.exists() and cache.stat().st_mtime >= run.rows_path.stat().st_mtime


def _insert(connection: Any, run: RunFolder) -> None:
    """Read one run's rows into the table `read`."""
    import duckdb

    try:
        connection.execute(f"INSERT INTO read BY NAME SELECT * FROM {_lines(run)}")
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{run.rows_path}: cannot be read ({reason})") from None


def _lines(run: RunFolder) -> str:
    """A run's rows as SQL reads them."""
    types = ", ".join(f"'{f.name}': '{_sql_type(f.type)}'" for f in fields(Row))
    # A line that a killed worker left half-written is skipped; its owner takes it back on resume. So is what is no row.
    # A folder called `lr=1` is a name, not a column.
    return (
        f"(SELECT * FROM read_json({quoted(run.rows_path)}, format='newline_delimited', ignore_errors=true, "
        f"hive_partitioning=false, columns={{{types}}}) WHERE run IS NOT NULL AND metric IS NOT NULL AND value IS NOT NULL)"
    )


def _write_cache(connection: Any, run: RunFolder) -> None:
    cache = run.path / "rows.parquet"
    temporary = cache.with_name(f".{cache.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        connection.execute(f"COPY {_lines(run)} TO {quoted(temporary)} (FORMAT parquet)")
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)


def quoted(path: Path) -> str:
    """A path as SQL reads it."""
    return "'" + str(path).replace("'", "''") + "'"


def _sql_type(annotation: Any) -> str:
    return next(sql for kind, sql in _TYPES.items() if annotation in (kind, kind | None))


def _check_keys(path: Path, value: Any, kinds: dict[str, type]) -> None:
    """Refuses what somebody edited into something else."""
    found = value if isinstance(value, dict) else {}
    missing = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    if missing:
        raise StoreError(f"{path}: missing, or of another kind: {', '.join(missing)}; was it edited?")


# Made once: `json.dumps` makes one a call, and a stack of runs writes a thousand lines a step.
_line = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _is_half_study(path: Path) -> bool:
    return path.name.startswith(".study.json.") and path.name.endswith(".tmp")
