"""The store: nothing is ever half there, what is damaged is said so, and every number comes back as it was."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from gatelab import SCHEMA
from gatelab.record import Item, Row
from gatelab.store import (
    Appender,
    DamagedError,
    RunFolder,
    StoreError,
    StudyFolder,
    query,
    read_json,
    write_json,
    write_lines,
    write_text,
)
from gatelab.study.ledger import damage_of, state_of

FINGERPRINT = "0123456789ab"


def row(value: float, **where: Any) -> Row:
    return Row(FINGERPRINT, 1, "train", "loss", value, "nats", **where)


def study(path: Path, *, seeds: int = 1, arms: tuple[str, ...] = ("none",)) -> StudyFolder:
    plan = [
        {"cell": "toy", "arm": arm, "seed": seed, "fingerprint": f"{seed:02d}{FINGERPRINT[2:]}", "n_parameters": 10}
        for arm in arms
        for seed in range(seeds)
    ]
    return StudyFolder.create(path, {"name": "fake", "plan": plan})


def run_with(folder: StudyFolder, rows: list[Row], *, done: bool = False) -> RunFolder:
    run = folder.run("00" + FINGERPRINT[2:])
    run.create({"seed": 0})
    appender = Appender(run.rows_path)
    appender.write(rows)
    appender.close()
    if done:
        run.mark_done("done", {"steps": 1})
    return run


def values(folder: StudyFolder) -> list[float]:
    return [r["value"] for r in query(folder, "SELECT value FROM rows")]


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return study(tmp_path / "study")


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_on_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch, fails: str):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("write, value", [(write_json, {"new": object()}), (write_text, 3)])
def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path: Path, write: Any, value: Any):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write(path, value)
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json: not readable as JSON"):
        read_json(path)


def test_an_appender_forgets_what_lies_behind_its_offset(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    first = Appender(path)
    first.write([{"n": 1}])
    offset = first.flush()
    first.write([{"n": 2}, {"n": 3}])
    first.close()
    resumed = Appender(path, offset)
    resumed.write([{"n": 4}])
    resumed.close()
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 4]


def test_an_appender_does_not_invent_what_is_missing_before_its_offset(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n')
    with pytest.raises(StoreError, match="has 9 bytes, and the checkpoint was made when it had 10"):
        Appender(path, 10)
    assert path.read_text() == '{"n": 1}\n'


def test_an_appender_is_closed_even_on_a_full_disk(tmp_path: Path, monkeypatch):
    appender = Appender(tmp_path / "rows.jsonl")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        appender.close()
    with pytest.raises(ValueError, match="closed"):
        appender.write([{"n": 1}])


@pytest.mark.parametrize("done", [False, True])
def test_numbers_come_back_as_they_were(folder: StudyFolder, done: bool):
    given = [1.5, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, -0.1]
    run_with(folder, [row(v, layer=i) for i, v in enumerate(given)], done=done)
    found = [r["value"] for r in query(folder, "SELECT value FROM measured ORDER BY layer")]
    assert [str(v) for v in found] == [str(v) for v in given]


@pytest.mark.parametrize("sql", ["", " ", "-- nothing"])
def test_a_query_that_asks_for_nothing_is_told(folder: StudyFolder, sql: str):
    with pytest.raises(StoreError, match=f"query '{sql}': asks for nothing; write a SELECT"):
        query(folder, sql)


def test_every_line_is_json(folder: StudyFolder):
    run = run_with(folder, [row(math.nan), row(math.inf)])
    item = Item(run.fingerprint, 1, "needle", 0, None, math.nan, "a", "b", {"depth": 0.5})
    appender = Appender(run.path / "items.jsonl")
    appender.write([item])
    appender.close()
    for path in (run.rows_path, run.path / "items.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)


def test_a_row_keeps_its_coordinates_and_leaves_out_those_it_has_not(folder: StudyFolder):
    given = row(0.5, layer=2, head=1, threshold=0.3, domain="bigram", site="sdpa", bin=7, depth=0.25)
    assert "query" not in given.as_dict()
    run_with(folder, [given], done=True)
    (found,) = query(folder, "SELECT * FROM measured")
    assert Row(**found) == given


@pytest.mark.parametrize("done", [False, True])
def test_a_torn_last_line_and_garbage_are_skipped(folder: StudyFolder, done: bool):
    run = run_with(folder, [])
    whole = row(1.0).as_dict() | {"run": run.fingerprint}
    lines = [
        json.dumps(whole).encode(), b"garbage", b"[1, 2]", b"5", b"", b"\xff\xfe", b'{"run": "x"}',
        json.dumps(whole | {"value": "many"}).encode(), json.dumps(whole | {"value": 2.0}).encode(), b'{"run": "01',
    ]  # fmt: skip
    run.rows_path.write_bytes(b"\n".join(lines))
    if done:
        run.mark_done("done", {})
    assert values(folder) == [1.0, 2.0]


def test_the_parquet_cache_equals_the_lines(folder: StudyFolder):
    run = run_with(folder, [row(1.0, layer=0), row(math.nan, head=3), row(2.0, site="sdpa")])
    from_lines = query(folder, "SELECT * FROM measured ORDER BY value, layer, head")
    run.mark_done("done", {})
    from_cache = [query(folder, "SELECT * FROM measured ORDER BY value, layer, head") for _ in range(2)]
    assert (run.path / "rows.parquet").exists()
    assert str(from_cache) == str([from_lines, from_lines])


def test_a_cache_older_than_the_lines_is_made_again(folder: StudyFolder):
    run = run_with(folder, [row(1.0)], done=True)
    assert len(query(folder, "SELECT * FROM measured")) == 1
    with open(run.rows_path, "a", encoding="utf-8") as f:
        f.write(json.dumps(row(2.0).as_dict()) + "\n")
    os.utime(run.path / "rows.parquet", (0, 0))
    assert len(query(folder, "SELECT * FROM measured")) == 2


def test_a_damaged_cache_is_no_obstacle(folder: StudyFolder):
    run = run_with(folder, [row(1.0)], done=True)
    (run.path / "rows.parquet").write_bytes(b"PAR1 not really")
    assert len(query(folder, "SELECT * FROM measured")) == 1


@pytest.mark.parametrize("name", ["lr=1", "a[1]", "b*c?", "it's", "ünï cödé"])
def test_any_name_of_a_folder_will_do(tmp_path: Path, name: str):
    folder = study(tmp_path / name)
    run_with(folder, [row(1.0)], done=True)
    for _ in range(2):
        assert len(query(folder, "SELECT * FROM measured")) == 1


def test_arms_that_share_a_run_both_have_its_rows(tmp_path: Path):
    folder = study(tmp_path / "study", arms=("none", "same"))
    run = folder.run("00" + FINGERPRINT[2:])
    run_with(folder, [Row(run.fingerprint, 1, "train", "loss", 1.0, "nats")])
    assert query(folder, "SELECT arm, value FROM rows ORDER BY arm") == [
        {"arm": "none", "value": 1.0},
        {"arm": "same", "value": 1.0},
    ]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"holds something else \(thesis.txt\)"):
        study(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "a").write_text("precious")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StoreError, match=r"name an?"):
            study(path)
    assert (tmp_path / "a").read_text() == "precious"


def test_another_study_is_left_alone(folder: StudyFolder):
    before = (folder.path / "study.json").read_bytes()
    with pytest.raises(StoreError, match="holds the study 'fake', not 'other'"):
        StudyFolder.create(folder.path, {"name": "other", "plan": []})
    assert (folder.path / "study.json").read_bytes() == before


def test_a_first_write_that_was_killed_does_not_block_the_next(tmp_path: Path):
    (tmp_path / ".study.json.0a1b2c3d.tmp").write_text('{"na')
    assert study(tmp_path).study()["name"] == "fake"


def test_another_version_is_refused_in_words(folder: StudyFolder):
    run = run_with(folder, [])
    for path in (folder.path / "study.json", run.path / "run.json"):
        write_json(path, read_json(path) | {"schema": SCHEMA + 1})
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}, this one reads {SCHEMA}.*new folder"):
        StudyFolder.open(folder.path)
    with pytest.raises(StoreError, match="another version"):
        StudyFolder.create(folder.path, {"name": "fake", "plan": []})
    with pytest.raises(StoreError, match="another version"):
        run.create({"seed": 1})


@pytest.mark.parametrize("content", [{}, {"name": "x"}, {"name": "x", "plan": [3]}, {"name": 3, "plan": []}])
def test_a_study_that_was_edited_is_refused(folder: StudyFolder, content: dict):
    write_json(folder.path / "study.json", {"schema": SCHEMA, **content})
    with pytest.raises(StoreError, match="was it edited"):
        StudyFolder.open(folder.path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"status": "fine"}', '{"status": 3}'])
def test_a_done_that_was_edited_is_refused(folder: StudyFolder, content: str):
    run = run_with(folder, [])
    (run.path / "done.json").write_text(content)
    with pytest.raises(StoreError, match=r"done\.json"):
        run.done()


def test_missing_folders_are_answered_with_what_makes_them(tmp_path: Path):
    with pytest.raises(StoreError, match=f"gatelab run STUDY --out {tmp_path / 'x'}"):
        StudyFolder.open(tmp_path / "x")
    with pytest.raises(StoreError, match=r"no study\.json"):
        StudyFolder.open(tmp_path)


def test_a_run_is_found_by_its_fingerprint_or_its_place(tmp_path: Path):
    folder = study(tmp_path / "study", seeds=2)
    assert folder.find("01").fingerprint == folder.find("toy/none/1").fingerprint == "01" + FINGERPRINT[2:]
    for name, n in (("0", 2), ("", 0), ("toy/none/7", 0)):
        with pytest.raises(StoreError, match=f"names {n} runs.*such as toy/none/0, toy/none/1"):
            folder.find(name)


def test_data_that_moved_is_written_down_and_nothing_else_is_rewritten(folder: StudyFolder):
    run = run_with(folder, [])
    before = (run.path / "run.json").stat().st_mtime_ns
    run.create({"seed": 0})
    assert (run.path / "run.json").stat().st_mtime_ns == before
    run.create({"seed": 0, "data": {"paths": ["moved.txt"]}})
    assert run.config() == {"seed": 0, "data": {"paths": ["moved.txt"]}}


def test_items_are_written_at_once_and_read_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "0123456789ab")
    run.path.mkdir()
    assert list(run.items()) == []
    items = [Item("r", 3, "needle", i, i > 0, float("nan") if i else -1.5, "é", "2", {"length": 8}) for i in range(2)]
    write_lines(run.items_path, items)
    first, second = run.items()
    assert first == items[0].as_dict() and (second["score"], second["correct"], second["answer"]) == ("nan", True, "é")
    assert [p.name for p in run.path.iterdir()] == ["items.jsonl"]
    run.items_path.write_text('{"run": "r"}\n{"ru')
    with pytest.raises(StoreError, match=r"items.jsonl, line 2: not readable as JSON; was it cut"):
        list(run.items())


def test_a_finished_run_knows_how_many_bytes_its_rows_had(folder: StudyFolder):
    run = folder.run("00" + FINGERPRINT[2:])
    run_with(folder, [Row(run.fingerprint, step, "train", "loss", 1.0, "nats") for step in range(3)])
    whole = run.rows_path.read_bytes()
    run.mark_done("done", {"steps": 3})
    assert read_json(run.path / "done.json") == {"status": "done", "steps": 3, "rows_bytes": len(whole)}
    n_rows = len(query(folder, "SELECT value FROM rows"))
    # More is no damage; none at all were left behind.
    for content in (whole, whole + b"more", None):
        run.rows_path.unlink()
        if content is not None:
            run.rows_path.write_bytes(content)
        run.check_rows()
        assert state_of(run) == "done" and not damage_of(run)
    for n in (0, 1, len(whole) - 5):
        run.rows_path.write_bytes(whole[:n])
        with pytest.raises(
            DamagedError, match=rf"rows\.jsonl: has {n} bytes, and the run ended with {len(whole)}; was it cut"
        ):
            run.check_rows()
        assert state_of(run) == "damaged" and "Copy it again, or remove done.json" in damage_of(run)
    # What was derived of all rows is not believed, and nothing is derived of what is left.
    cache, before = run.path / "rows.parquet", (run.path / "rows.parquet").read_bytes()
    assert len(query(folder, "SELECT value FROM rows")) == n_rows - 1 and cache.read_bytes() == before
    # A result of an older version, or one that an object store keeps, counts no rows.
    for facts in ({}, {"rows_bytes": len(whole), "saved": "0001-000001"}):
        write_json(run.path / "done.json", {"status": "done", **facts})
        assert state_of(run) == "done"


def test_a_configuration_that_was_cut_is_written_again_when_the_study_is_planned(folder: StudyFolder):
    run = run_with(folder, [])
    (run.path / "run.json").write_text('{"schema": 1')
    with pytest.raises(DamagedError, match="`gatelab run` of the study, not of its folder, writes it again"):
        run.config()
    assert run.config_if_whole() is None and state_of(run) == "damaged"
    run.create({"seed": 0})
    assert run.config_if_whole() == {"seed": 0} and state_of(run) == "planned"
