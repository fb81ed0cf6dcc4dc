"""Folders that others wrote, that cannot be written, or whose caches are damaged: nothing leaves them, and nothing is lost."""

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gatelab import SCHEMA
from gatelab.cli import _status
from gatelab.record import Row
from gatelab.store import Appender, RunFolder, StoreError, StudyFolder, query, read_json, write_json
from gatelab.store import rows as of_rows
from gatelab.study import ledger

NAMES = ("00aaaaaaaaaa", "11bbbbbbbbbb", "22cccccccccc")


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Three finished runs, each with two rows, read once so that each has its cache."""
    plan = [
        {"cell": "toy", "arm": "none", "seed": i, "fingerprint": name, "n_parameters": 1}
        for i, name in enumerate(NAMES)
    ]
    made = StudyFolder.create(tmp_path / "study", {"name": "fake", "plan": plan})
    for i, (_, run) in enumerate(made.planned()):
        run.create({"seed": i})
        appender = Appender(run.rows_path)
        appender.write([Row(run.fingerprint, 1, "train", "loss", i + part / 10, "nats") for part in (0, 1)])
        appender.close()
        run.mark_done("done", {"steps": 1})
    assert len(values(made)) == 6 and all((run.path / "rows.parquet").exists() for _, run in made.planned())
    return made


def values(folder: StudyFolder) -> list[float]:
    return sorted(r["value"] for r in query(folder, "SELECT value FROM rows"))


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "report.html")


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", ".", "a/b", "a\\b", "", "-rf", "a\n"])
@pytest.mark.parametrize("field", ["fingerprint", "init_from"])
def test_a_fingerprint_that_leads_out_of_the_folder_is_refused(folder: StudyFolder, name: str, field: str, capsys):
    study = read_json(folder.path / "study.json")
    study["plan"][0][field] = name
    write_json(folder.path / "study.json", study | {"schema": SCHEMA})
    with pytest.raises(StoreError, match="is no fingerprint of a run; was it edited"):
        StudyFolder.open(folder.path)
    assert _status(["status", str(folder.path)]) == 1
    assert "no fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"PAR1 not really", b"PAR1" + bytes(200) + b"PAR1"])
def test_one_damaged_cache_among_others_is_made_again(folder: StudyFolder, damage: bytes):
    before, cache = values(folder), folder.run(NAMES[1]).path / "rows.parquet"
    cache.write_bytes(damage)
    assert values(folder) == before
    assert cache.read_bytes() != damage


def test_a_damaged_cache_that_cannot_be_made_again_is_no_obstacle(folder: StudyFolder, monkeypatch):
    before = values(folder)
    (folder.run(NAMES[1]).path / "rows.parquet").write_bytes(b"damaged")
    monkeypatch.setattr(of_rows, "_write_cache", refuse)
    assert values(folder) == before


def test_a_cache_of_before_a_coordinate_was_added_has_it_empty(folder: StudyFolder):
    cache = folder.run(NAMES[0]).path / "rows.parquet"
    folder.connect().execute(
        f"COPY (SELECT run, step, source, metric, value, unit FROM read_parquet('{cache}')) TO '{cache}' (FORMAT parquet)"
    )
    os.utime(cache)
    found = query(folder, "SELECT value, dose FROM rows ORDER BY value")
    assert [r["dose"] for r in found] == [None] * 6


def test_a_folder_that_cannot_be_written_is_read_all_the_same(folder: StudyFolder, monkeypatch):
    before = values(folder)
    for _, run in folder.planned():
        (run.path / "rows.parquet").unlink()
    monkeypatch.setattr(of_rows, "_write_cache", refuse)
    assert values(folder) == before
    assert _status(["status", str(folder.path)]) == 0


def test_where_no_file_can_be_made_a_foreign_owner_is_judged_by_the_readers_clock(tmp_path: Path, monkeypatch):
    run = RunFolder(tmp_path / NAMES[0])
    (run.path / "attempts").mkdir(parents=True)
    there = {"host": "elsewhere", "machine": "another", "pid": 1, "process": "1", "driver": None}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(
        run.path / "attempts/0001.json", {"number": 1, "owner": "x", "outcome": "running", "started": started, **there}
    )
    monkeypatch.setattr(ledger, "open", refuse, raising=False)
    assert ledger.state_of(run) == "running"
    os.utime(run.path / "attempts/0001.json", (0, 0))
    assert ledger.state_of(run) == "lost"


def test_a_page_that_cannot_be_written_is_one_message(folder: StudyFolder, monkeypatch, capsys):
    monkeypatch.setattr("gatelab.lab.analyse", lambda _: None)
    monkeypatch.setattr("gatelab.lab.report", refuse)
    assert _status(["report", str(folder.path)]) == 1
    assert capsys.readouterr().err == "gatelab: report.html: Read-only file system\n"
