"""A study packed in one Parquet file: a row a measurement, and the rest of its folder in the file's own metadata.

    columns   cell, arm, seed, and those of a row (record.py); `value` in single precision, unless some value needs double
    metadata  `gatelab`        JSON, for who opens it with something else: the study's question, what its cells and arms are
              `gatelab.files`  the folder's JSON files, {"study": {name: content}, "runs": {fingerprint: {name: content}}}, of
                               .jsonl a list of lines: JSON, xz, base64, since thousands of configurations that are nearly alike
                               take a sixtieth of their size together

One file, because a pack that is moved or replaced is then whole or not there. `lab/packing.py` writes it.
"""

import base64
import binascii
import json
import lzma
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import SCHEMA
from ..record import Row
from ..store import StoreError, to_read
from ..store.files import line_of

SUFFIX = ".parquet"
VERSION = 1
FACTS, FILES = "gatelab", "gatelab.files"
# Of the study, and of a run; of a .jsonl a list of lines.
STUDY_FILES = ("study.json", "screen.json", "confirmation.json", "causes.jsonl")
RUN_FILES = ("run.json", "environment.json", "done.json", "items.jsonl")
_ATTEMPT = re.compile(r"attempts/\d{4,8}\.json")
_FINGERPRINT = re.compile(r"\w[\w-]{0,63}")
# Bytes of files that are unpacked, and of a row as JSON: fifty times those of the largest study here.
_MOST, _ROW = 2**30, 400
_MOST_ROWS = 8 * 2**30 // _ROW


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack whose metadata were read: what it says of itself, and its files, `study` {name: content} and `runs` {fingerprint:
    {name: content}}."""

    path: Path
    facts: Mapping[str, Any]
    study: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, Any]]

    def query(self, sql: str) -> Iterator[tuple]:
        """The records of a query over `packed`, its rows: values are the decimal numbers that they were before single precision.

        Raises:
            StoreError: rows that cannot be read.
        """
        import duckdb

        file = f"read_parquet({to_read(self.path)}, hive_partitioning=false)"
        table = f"(SELECT * REPLACE (value::VARCHAR::DOUBLE AS value) FROM {file})"
        try:
            cursor = duckdb.connect().execute(f"WITH packed AS {table} {sql}")
            while some := cursor.fetchmany(10_000):
                yield from some
        except duckdb.Error as error:
            raise StoreError(f"{self.path}: its rows cannot be read ({_first(error)}); pack the study again") from None


def is_other(path: Path) -> bool:
    """Whether it is a whole Parquet file that is no pack; one that was cut is not."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 8, 0))
            tail = file.read()
            if tail[-4:] != b"PAR1":
                return False
            file.seek(max(size - 8 - int.from_bytes(tail[:4], "little"), 0))
            return FILES.encode() not in file.read()
    except OSError:
        return False


def read_pack(path: Path) -> Pack:
    """A pack without its rows.

    Raises:
        StoreError: it is damaged, another Parquet file, of a newer Gatelab, or holds what no study does.
    """
    import duckdb

    found: dict[str, bytes] = {}
    try:
        pairs = duckdb.connect().execute(f"SELECT key, value FROM parquet_kv_metadata({to_read(path)})").fetchall()
        found = {key.decode(errors="replace"): value for key, value in pairs}
    except duckdb.Error as error:
        raise StoreError(f"{path}: cannot be read as Parquet ({_first(error)}); was it cut?") from None
    if FACTS not in found or FILES not in found:
        raise StoreError(
            f"{path}: is a Parquet file, but no packed study; `gatelab pack STUDY --out {path.name}` makes one"
        )
    try:
        facts = json.loads(found[FACTS])
        version, schema = facts["pack"], facts["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StoreError(f"{path}: what it says of itself cannot be read; pack the study again") from None
    if (version, schema) != (VERSION, SCHEMA):
        raise StoreError(
            f"{path}: was packed by Gatelab {facts.get('version')} (pack {version}, schema {schema}; this one reads pack {VERSION},"
            f" schema {SCHEMA}); use that version, or pack the study again"
        )
    files = _files(path, found[FILES])
    return Pack(path, facts, files["study"], files["runs"])


def write_files(text: Mapping[str, Any]) -> str:
    """The metadata `gatelab.files`."""
    packed = lzma.compress(json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode(), preset=9)
    return base64.b64encode(packed).decode()


def _files(path: Path, packed: bytes) -> dict[str, dict]:
    why = None
    try:
        whole = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        text = whole.decompress(base64.b64decode(packed, validate=True), max_length=_MOST)
        if not whole.eof and len(text) >= _MOST:
            raise StoreError(f"{path}: is not unpacked, since its files have more than {_MOST:,} bytes")
        files = json.loads(text)
        study, runs = files["study"], files["runs"]
        names = [*(name for name in study if name not in STUDY_FILES), *_strange(runs)]
        if not whole.eof or not isinstance(study["study.json"], dict):
            why = "was it cut?"
        if odd := [
            name for files in (study, *runs.values()) for name, content in files.items() if not _is_meant(name, content)
        ]:
            why = f"{odd[0]} is no such file"
    except (lzma.LZMAError, binascii.Error, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        why = f"{type(error).__name__}: {_first(error)}"
    if why is not None:
        raise StoreError(f"{path}: the study's files in it cannot be read ({why}); pack the study again")
    if names:
        raise StoreError(f"{path}: is not unpacked, since it holds what no study does ({names[0]!r})")
    return files


def _is_meant(name: str, content: Any) -> bool:
    return isinstance(content, list if name.endswith(".jsonl") else dict)


def _strange(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Names that no run has: each would name a file."""
    for run, files in runs.items():
        if not _FINGERPRINT.fullmatch(run):
            yield run
        yield from (name for name in files if name not in RUN_FILES and not _ATTEMPT.fullmatch(name))


def unpack(path: Path, place: Path) -> Path:
    """Write a pack's study into an empty folder as `gatelab run` does, without weights and logs; returns the folder.

    Raises:
        StoreError: as `read_pack` and `Pack.query` do, or it has more rows than a disk holds.
    """
    pack = read_pack(path)
    for run, files in pack.runs.items():
        there = place / "runs" / run
        there.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if "/" in name:
                (there / name).parent.mkdir(exist_ok=True)
            _write(there / name, content)
    for run, text in _lines(pack):
        if run in pack.runs:
            (place / "runs" / run / "rows.jsonl").write_text(text, encoding="utf-8")
    for name, content in pack.study.items():
        _write(place / name, content)
    return place


def _write(path: Path, content: Any) -> None:
    # Compact: an indented one takes four times as long to make, and a study has thousands.
    lines = content if path.suffix == ".jsonl" else [content]
    path.write_text("".join(f"{line_of(line)}\n" for line in lines), encoding="utf-8")


def _lines(pack: Pack) -> Iterator[tuple[str, str]]:
    """(run, its rows as lines of JSON): without what a row has not, a value that is no number as a string."""
    ((n_rows,),) = pack.query("SELECT count(*) FROM packed")
    if n_rows > _MOST_ROWS:
        raise StoreError(
            f"{pack.path}: is not unpacked, since it has more than {_MOST_ROWS:,} rows; read it with DuckDB"
        )
    # By hand: DuckDB's own JSON takes twice as long. What is joined with NULL is NULL, and `concat` leaves it out.
    facts = ", ".join(
        _SPELLED.get(f.type, f"',\"{f.name}\":' || to_json({f.name})").format(f.name) for f in fields(Row)
    )
    line = f"concat('{{', substr(concat({facts}), 2), '}}')"
    yield from pack.query(f"SELECT run, string_agg({line}, chr(10)) || chr(10) FROM packed GROUP BY run")


# Of a kind of column its part of a line.
_SPELLED = {
    float: """',"{0}":' || CASE WHEN isfinite({0}) THEN {0}::VARCHAR ELSE '"' || {0}::VARCHAR || '"' END""",
    int: """',"{0}":' || {0}""",
    int | None: """',"{0}":' || {0}""",
}


def _first(error: Exception) -> str:
    """The first line of what is said."""
    return str(error).partition("\n")[0].strip().rstrip(".")
