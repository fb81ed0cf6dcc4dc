"""A study's results as they are stored: one Parquet file, which analysis/packed.py describes and reads."""

import errno
import json
import os
import re
import shlex
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from .. import SCHEMA, __version__
from ..analysis import packed
from ..analysis.anomalies.gather import checked
from ..analysis.packed import FACTS, FILES, RUN_FILES, STUDY_FILES, SUFFIX, VERSION, read_pack
from ..config import ConfigError
from ..record import COORDINATES, Row
from ..store import RunFolder, StoreError, StudyFolder, quoted, read_json
from ..study.ledger import FINISHED, state_of
from .sources import Source, opened, sources_in
from .writing import written_to

# By layer and head a study's page and its cards draw these over training (analysis/digest.py, report/card_figures.py).
_OF_LAYERS = ("gate_histogram", "gate_mean", "gate_below", "gate_above", "first_token_mass", "massive_max", "massive_ratio",
              "value_drain")  # fmt: skip
_DRAWN = f"""is_look AND (layer IS NULL AND head IS NULL OR head IS NULL AND metric IN {_OF_LAYERS}
    OR metric = 'first_token_mass' AND source = 'sinks' AND threshold IS NULL)"""
# Which rows are kept; `is_last` is the run's last step, `is_look` a step at which more than training was measured.
LOOKS = {
    "all": "true",
    "drawn": f"is_last OR metric IN ('loss_spikes', 'diverged') OR {_DRAWN}",
    "last": """is_last AND metric <> 'gate_histogram' OR metric IN ('val_loss', 'loss_spikes', 'diverged')
        OR metric = 'loss' AND is_look""",
}  # fmt: skip
# What an attempt says of when, and nothing of where.
_OF_ATTEMPT = ("number", "outcome", "started", "ended")
_FOLDERS = re.compile(r"(?<![\w/.:~-])(?:~[/\\]|(?:[A-Za-z]:)?[/\\](?:[\w.+=-]+[/\\]))(?:[\w.+=-]+[/\\])*")


def pack(
    source: str | Path, out: str | Path, looks: str = "drawn", *, tell: Callable[[str], None] = lambda _: None
) -> Path:
    """Write the study of a folder, an address, an archive or another pack as one file; returns its path. Runs that have not ended
    are in its plan alone. No path of this machine is in it; `tell` is told what was left out.

    Raises:
        ConfigError: a name or a folder that a pack cannot have.
        StoreError: no study, several, or none that can be read; a file that cannot be written; no run that has ended, one without
            its rows.
        OSError: a disk that is full.
    """
    out = Path(out)
    if out.suffix != SUFFIX or out.is_dir() or not out.parent.is_dir():
        raise ConfigError([f"--out {out}: name a file that ends in {SUFFIX}, in a folder that there is"])
    if looks not in LOOKS:
        raise ConfigError([f"looks={looks!r}: expected one of {', '.join(LOOKS)}"])
    found = sources_in([source])
    if len(found) != 1:
        raise StoreError(f"{source}: holds {len(found)} studies; name one")
    if looks != "all" and out.exists() and out.samefile(found[0].path):
        raise ConfigError([f"--out {out}: is the pack that is read, and could lose rows; name another file"])
    with opened(found[0]) as folder:
        _pack(folder, out, looks, _said(found[0], looks), tell)
    return out


def unpack(path: str | Path, out: str | Path) -> StudyFolder:
    """Write a pack's study into a new or empty folder, where `gatelab run` goes on with what of it has not ended.

    Raises:
        StoreError: a folder that holds something; what `packed.unpack` refuses.
    """
    path, out = Path(path), Path(out)
    if path.is_dir():
        raise StoreError(f"{path}: is a folder; name a pack, a file that `gatelab pack STUDY --out FILE{SUFFIX}` made")
    if not path.is_file():
        raise StoreError(f"{path}: no such file; `gatelab pack STUDY --out {path}` makes one")
    if path.suffix != SUFFIX:
        of_archive = f"; `tar xf {path} -C {out}` makes a folder of an archive" if ".tar" in path.name else ""
        raise StoreError(
            f"{path}: is no pack (…{SUFFIX}), which `gatelab pack STUDY --out FILE{SUFFIX}` makes{of_archive}"
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise StoreError(f"--out {out}: holds something and is left alone; name a new or empty folder")
    with written_to(out):
        return StudyFolder.open(packed.unpack(path, out))


def _said(source: Source, looks: str) -> str:
    """Which rows a pack has: of a pack or archive no more than are in that."""
    if looks != "all" or not source.is_archive:
        return looks
    return read_pack(source.path).facts.get("looks", looks) if source.path.suffix == SUFFIX else "as in its archive"


def _pack(folder: StudyFolder, out: Path, looks: str, said_looks: str, tell: Callable[[str], None]) -> None:
    study = checked(folder)
    runs = {run.fingerprint: run for _, run in folder.planned()}
    ended = {name: run for name, run in runs.items() if state_of(run) in FINISHED}
    if not ended:
        raise StoreError(f"{folder.address}: no run has ended; there is nothing to store yet")
    if without := sum(not (run.rows_path.exists() and run.rows_path.stat().st_size) for run in ended.values()):
        which = f"{without} ended runs have" if without > 1 else "an ended run has"
        raise StoreError(f"{folder.address}: {which} no rows here; bring rows.jsonl from where they were trained")
    if n := len(runs) - len(ended):
        damaged = sum((run.path / "done.json").exists() for name, run in runs.items() if name not in ended)
        tell(
            f"{n} of {len(runs)} runs have not ended{f' or are damaged ({damaged})' if damaged else ''}: they are in the plan alone"
        )
    files = {
        "study": {name: _content(folder.path / name, study["name"]) for name in STUDY_FILES if (folder.path / name).exists()},
        "runs": {name: _of_run(run, study["name"]) for name, run in ended.items()},
    }  # fmt: skip
    facts = {
        "pack": VERSION, "schema": SCHEMA, "version": __version__, "study": study["name"], "question": study.get("question"),
        "looks": said_looks, "cells": {c["name"]: c.get("about") for c in study.get("cells", [])},
        "arms": {a["name"]: a.get("label") for a in study.get("arms", [])}, "baseline": study.get("baseline"),
    }  # fmt: skip
    said = {FACTS: json.dumps(_named(facts, study["name"]), ensure_ascii=False), FILES: packed.write_files(files)}
    _write(folder, out, list(ended), LOOKS[looks], said)


def _of_run(run: RunFolder, study: str) -> dict[str, Any]:
    here = {name: _content(run.path / name, study) for name in RUN_FILES if (run.path / name).exists()}
    here.get("done.json", {}).pop("rows_bytes", None)  # rows are written anew where a pack is unpacked
    for attempt in run.attempts():
        if not isinstance(attempt.get("number"), int):
            continue  # a file that no worker wrote
        here[f"attempts/{attempt['number']:04d}.json"] = {k: attempt.get(k) for k in _OF_ATTEMPT}
    return here


def _content(path: Path, study: str) -> Any:
    """A file's, without folders of this machine; answers to items as they are, other lines in single precision."""
    if path.suffix != ".jsonl":
        return _named(read_json(path), study)
    try:
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    except ValueError as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); was it cut or edited?") from None
    if path.name == "items.jsonl":
        return lines
    from numpy import float32

    return [
        line | {"value": float(str(float32(line["value"])))}
        if isinstance(line, dict) and isinstance(line.get("value"), float)
        else line
        for line in lines
    ]


def _named(value: Any, study: str) -> Any:
    """The same without the folders of absolute paths; a command's `--config` lies in runs/STUDY."""
    if isinstance(value, dict):
        return {
            key: _command(of, study) if key == "command" and isinstance(of, str) else _named(of, study)
            for key, of in value.items()
        }
    if isinstance(value, list):
        return [_named(one, study) for one in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def _command(words: str, study: str) -> str:
    try:
        there = [Path(word) for word in shlex.split(words) if word.endswith("run.json") and len(Path(word).parts) > 3]
    except ValueError:
        there = []
    for path in there:
        words = words.replace(str(path.parents[2]), f"runs/{study}", 1)
    return _FOLDERS.sub("", words)


def _write(folder: StudyFolder, out: Path, ended: list[str], is_kept: str, said: dict[str, str]) -> None:
    import duckdb

    names = ["cell", "arm", "seed", *(f.name for f in fields(Row))]
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    connection = folder.connect()
    try:
        connection.execute(_ENDED, [ended])
        connection.execute(_MARKED)
        (is_narrow,) = connection.execute(f"SELECT coalesce(bool_and({_NARROW}), true) FROM marked").fetchone()
        columns = ", ".join("value::FLOAT AS value" if n == "value" and is_narrow else n for n in names)
        metadata = ", ".join(f"'{key}': {_quoted(text)}" for key, text in said.items())
        connection.execute(f"""COPY (SELECT {columns} FROM marked WHERE {is_kept} ORDER BY {_ORDER}) TO {quoted(temporary)}
            ({_FORMAT}, KV_METADATA {{{metadata}}})""")
        os.replace(temporary, out)
    except duckdb.Error as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from None
        why = str(error).partition("\n")[0]
        raise StoreError(f"--out {out}: cannot be written ({why}); give another --out") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


# Of a run that stands in two cells the first; `nth` is its place in the plan.
_ENDED = """CREATE TEMP TABLE ended AS SELECT fingerprint AS run, min(rowid) AS nth, arg_min(cell, rowid) AS cell,
    arg_min(arm, rowid) AS arm FROM runs WHERE fingerprint IN (SELECT unnest($1)) GROUP BY ALL"""
_MARKED = """CREATE TEMP TABLE marked AS SELECT *, step = max(step) OVER (PARTITION BY run) AS is_last,
    bool_or(source <> 'train') OVER (PARTITION BY run, step) AS is_look FROM rows JOIN ended USING (run, cell, arm)"""
# Whether a value is the same in single precision: to its seven digits, and a whole number exactly.
_NARROW = """NOT isfinite(value) OR TRY_CAST(value AS FLOAT) IS NOT NULL AND (abs(value - TRY_CAST(value AS FLOAT)) <=
    1e-6 * abs(value) + 1e-37 AND (value <> round(value) OR TRY_CAST(value AS FLOAT)::VARCHAR::DOUBLE = value))"""
# Rows that are alike but for their run and value stand together: columns are then long runs of one word, and the runs of each
# such block come in the same order, so that what names them packs to little.
_ORDER = ", ".join(("source", "metric", "unit", *COORDINATES, "step", "nth"))
# A group is as many rows as a reader takes at once, and its dictionaries are its own.
_FORMAT = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 19, PARQUET_VERSION v2, ROW_GROUP_SIZE 1048576"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
