"""The digest that lies beside a run's rows: a page reads it instead of them, as long as it is theirs."""

import json
import math
import os
import shutil
from pathlib import Path

import duckdb
import pytest
import tiny

from gatelab.analysis import digest as of_studies
from gatelab.analysis import run_digest
from gatelab.analysis.digest import digest
from gatelab.config import Execution, canonical, fingerprint
from gatelab.data import open_source
from gatelab.store import RunFolder, StudyFolder
from gatelab.study.executor import Task, function_of


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """Two small runs as a worker leaves them."""
    runs = [tiny.run(seed=seed, steps=2) for seed in range(2)]
    names = [fingerprint(run, open_source(run.data).digest) for run in runs]
    plan = [
        {"cell": "toy", "arm": "gated", "seed": seed, "fingerprint": name, "n_parameters": 1}
        for seed, name in enumerate(names)
    ]
    folder = StudyFolder.create(tmp_path_factory.mktemp("carried") / "study", {"name": "x", "plan": plan})
    for (_, there), run in zip(folder.planned(), runs, strict=True):
        there.create(canonical(run))
    task = Task(str(folder.path), tuple(names), {})
    assert function_of(task) is run_digest.carry_out
    run_digest.carry_out([there for _, there in folder.planned()], Execution(), should_stop=never)
    return folder


@pytest.fixture
def folder(carried: StudyFolder, tmp_path: Path) -> StudyFolder:
    """A copy, with the times of its files."""
    return StudyFolder(Path(shutil.copytree(carried.path, tmp_path / "study")))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose rows are read, as they are."""
    names: list[str] = []
    take = of_studies.take
    monkeypatch.setattr(
        of_studies, "take", lambda c, batch: names.extend(run.fingerprint for run in batch) or take(c, batch)
    )
    return names


def runs_of(folder: StudyFolder) -> list[RunFolder]:
    return [run for _, run in folder.planned()]


def beside(run: RunFolder) -> list[Path]:
    return sorted(run.path.glob("digest-*"))


def content(folder: StudyFolder) -> list[tuple]:
    """All that pages read of a study, in order; not-a-number as a word."""
    connection, found = digest(folder), []
    for view in ("main_rows", "task_rows", "tables", "reached"):
        found += [(view, *map(str, row)) for row in connection.execute(f"FROM {view}").fetchall()]
    return sorted(found)


def records(path: Path) -> list[str]:
    """Of a run's digest, in order."""
    *parts, end = map(json.loads, path.read_text().splitlines())
    assert end == {"part": "end"}
    found = []
    for part in parts:
        names = part.keys() - {"part", "run"}
        found += [f"{part['part']} {values}" for values in zip(*(part[n] for n in sorted(names)), strict=True)]
    return sorted(found)


def without(folder: StudyFolder, place: Path) -> StudyFolder:
    """A copy without any digest."""
    bare = StudyFolder(Path(shutil.copytree(folder.path, place)))
    for path in bare.path.rglob("digest-*"):
        path.unlink()
    return bare


def test_a_worker_leaves_what_the_rows_say(folder, asked, tmp_path):
    assert [len(beside(run)) for run in runs_of(folder)] == [1, 1]
    found = content(folder)
    assert len(found) > 100 and not asked
    assert content(without(folder, tmp_path / "bare")) == found
    assert sorted(asked) == sorted(run.fingerprint for run in runs_of(folder))


def test_what_is_kept_of_a_run_is_the_same_whatever_is_taken_with_it(folder, monkeypatch):
    asked: list[int] = []
    take = run_digest.take
    monkeypatch.setattr(run_digest, "take", lambda c, batch: asked.append(len(batch)) or take(c, batch))
    kept = []
    for at_once in (run_digest.AT_ONCE, 1):
        monkeypatch.setattr(run_digest, "AT_ONCE", at_once)
        for path in folder.path.rglob("digest-*"):
            path.unlink()
        run_digest.keep_digests(runs_of(folder))
        kept.append({path: records(path) for run in runs_of(folder) for path in beside(run)})
    assert asked == [2, 1, 1] and kept[0] == kept[1] and [len(rows) > 20 for rows in kept[0].values()] == [True, True]


def test_rows_that_were_changed_are_read(folder, asked):
    first, second = runs_of(folder)
    text = first.rows_path.read_text()
    line = next(line for line in text.splitlines() if '"val_loss"' in line and "domain" not in line)
    # As long as it was: the size does not tell.
    value = line.partition('"value":')[2].partition(",")[0]
    first.rows_path.write_text(text.replace(line, line.replace(value, "9" * len(value))))
    second.rows_path.write_text(second.rows_path.read_text() + "\n")
    content(folder)
    assert sorted(asked) == sorted([first.fingerprint, second.fingerprint])


def test_where_one_runs_rows_are_others_only_these_are_parsed_and_no_file_is_opened_twice(folder, monkeypatch):
    """What the first page after it costs: of every other run one file, of this one its rows, and one thread, as for the others."""
    first, second = runs_of(folder)
    os.utime(beside(first)[0])  # as a worker leaves it
    lines = second.rows_path.read_bytes().splitlines(keepends=True)
    second.rows_path.write_bytes(b"".join([*lines, lines[-1]]))
    parsed, opened = [], []
    take_rows, read_bytes = run_digest.take_rows, Path.read_bytes

    def taken(connection: duckdb.DuckDBPyConnection, table: str, *rest: object) -> None:
        take_rows(connection, table, *rest)
        parsed.extend(connection.execute(f"SELECT run, count(*) FROM {table} GROUP BY run").fetchall())

    monkeypatch.setattr(run_digest, "take_rows", taken)
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    connection = digest(folder)
    assert parsed == [(second.fingerprint, len(lines) + 1)]
    assert opened == [beside(first)[0].name]
    assert connection.execute("SELECT current_setting('threads')").fetchone() == (1,)


def test_in_a_folder_whose_times_were_lost_it_is_known_by_its_content(folder, asked):
    (path,) = beside(runs_of(folder)[0])
    os.utime(path, (0, 0))
    assert content(folder) and not asked


def _cut_at_a_line(text: bytes) -> bytes:
    return b"".join(text.splitlines(keepends=True)[:-2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda text: text[: len(text) // 2],
        _cut_at_a_line,
        lambda text: text[:100] + b"\0" + text[101:],
        lambda text: b'{"part":"main","step":"late"}\n' + text,
    ],
)
def test_a_damaged_one_is_none(folder, asked, damage, tmp_path):
    found = content(without(folder, tmp_path / "bare"))
    asked.clear()
    (path,) = beside(runs_of(folder)[0])
    path.write_bytes(damage(path.read_bytes()))
    assert content(folder) == found and runs_of(folder)[0].fingerprint in asked


def test_what_lies_beside_the_rows_is_not_kept_once_more_beside_the_page(folder, asked):
    first, second = runs_of(folder)
    for run in (first, second):
        os.utime(beside(run)[0])  # as a worker leaves it; a copy of the rows looks newer than it
    before = content(folder)
    assert not list(folder.path.glob("digest-*")) and not asked
    beside(first)[0].unlink()
    # Its times were lost: that it is theirs was seen by reading the rows, which once is enough.
    os.utime(beside(second)[0], (0, 0))
    for run in (first, second):
        for name in ("rows.jsonl", "done.json"):
            os.utime(run.path / name, (1e9, 1e9))
    for _ in range(2):
        assert content(StudyFolder(folder.path)) == before
    (kept,) = folder.path.glob("digest-*")
    states = duckdb.sql(f"SELECT run FROM '{kept}' WHERE part = 'state'").fetchall()
    assert {run for (run,) in states} == {first.fingerprint, second.fingerprint} and asked == [first.fingerprint]


def test_values_that_are_no_numbers_are_kept_as_they_are(folder, asked):
    first, _ = runs_of(folder)
    rows = [json.loads(line) for line in first.rows_path.read_text().splitlines()]
    last = [r for r in rows if r["metric"] == "val_loss" and r["step"] == rows[-1]["step"] and not r.get("domain")]
    for row, value in zip(last, (math.nan, math.inf, -0.0, 1e-300), strict=False):
        row["value"] = value
    first.rows_path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    before = content(folder)
    assert asked == [first.fingerprint]
    beside(first)[0].unlink()
    run_digest.keep_digests([first])
    assert content(StudyFolder(folder.path)) == before and asked == [first.fingerprint]


def test_one_of_another_version_is_none(folder, asked, monkeypatch):
    monkeypatch.setattr(run_digest, "KIND", "0" * 16)
    content(folder)
    assert len(asked) == 2


def test_of_a_run_that_is_not_done_it_is_none(folder, asked):
    first, _ = runs_of(folder)
    (first.path / "done.json").unlink()
    content(folder)
    assert asked == [first.fingerprint]


def test_a_run_that_is_carried_out_again_loses_it_first(folder):
    first, _ = runs_of(folder)
    (first.path / "done.json").unlink()
    (old,) = beside(first)
    old.write_bytes(b"of other rows")
    calls = iter([True])
    run_digest.carry_out([first], Execution(), should_stop=lambda: next(calls))
    assert first.done() is None and not beside(first)
    run_digest.carry_out([first], Execution(), should_stop=never)
    (new,) = beside(first)
    assert first.done() and new.read_text().endswith(run_digest.END)


def test_a_result_stands_where_no_digest_can_be_made(folder, monkeypatch, capsys):
    first, _ = runs_of(folder)
    (first.path / "done.json").unlink()

    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(run_digest, "keep_digests", refuse)
    run_digest.carry_out([first], Execution(), should_stop=never)
    assert first.done() and not beside(first)
    assert "no digest was kept: OSError: no space left on device" in capsys.readouterr().out


def test_who_shares_a_run_and_does_not_write_leaves_it_to_the_first(folder, monkeypatch):
    monkeypatch.setattr(run_digest.carrying_out, "carry_out", lambda *_, **__: None)
    monkeypatch.setattr(run_digest, "keep_digests", lambda runs: pytest.fail("written twice"))
    monkeypatch.setenv("RANK", "1")
    run_digest.carry_out(runs_of(folder), Execution(), should_stop=never)
