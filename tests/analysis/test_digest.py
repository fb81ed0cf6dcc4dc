"""The digest of a study: it answers as all rows do, it is kept and read again, and it never outlives what it is of."""

import os
from pathlib import Path

import pytest

from gatelab.analysis import digest as made
from gatelab.analysis import run_digest
from gatelab.analysis.anomalies.readings import FINAL, NAMED, READINGS
from gatelab.analysis.digest import digest, table
from gatelab.analysis.digest_parts import COURSES, TABLES
from gatelab.analysis.run_digest import take
from gatelab.record import Row
from gatelab.store import Appender, StudyFolder
from gatelab.study.metrics import MAIN_ROWS, STUDY_METRICS

ARMS = ("none", "gated")
WHOLE = "domain IS NULL AND intervention IS NULL AND threshold IS NULL"
# The places of rows: looks at steps 0, 4 and 8, a training that goes on alone, other stacks and sites, edited runs.
ROWS = (
    *((step, "train", "loss", 4.0 - step / 8, {}) for step in range(1, 11)),
    (7, "train", "loss", 9.5, {}),  # said twice, with two values
    (10, "train", "first_token_mass", 0.9, {"layer": 0, "head": 0}),
    (10, "train", "loss_spikes", 2.0, {"threshold": 0.1}),
    *((step, "eval", "val_loss", 3.0 - step / 8, {}) for step in (0, 4, 8)),
    (8, "eval", "val_loss", 7.0, {"domain": "code"}),
    (9, "eval", "val_loss", 1.0, {"intervention": "gate=open", "dose": 1.0}),
    *((s, "sinks", "first_token_mass", 0.1 * s + 0.01 * h, {"layer": 0, "head": h}) for s in (0, 4, 8) for h in (0, 1)),
    *((s, "sinks", "first_token_mass", 0.05 * s, {}) for s in (0, 4, 8)),
    (8, "sinks", "first_token_mass", 0.6, {"layer": 0, "head": 0, "stack": "cross"}),
    (8, "sinks", "sink_rate", 0.5, {"threshold": 0.3}),
    (4, "sinks", "sink_rate", 0.7, {"threshold": 0.3, "stage": "before"}),
    *((s, "massive", "massive_max", 10.0 + s, {"layer": n}) for s in (4, 8) for n in (0, 1)),
    (8, "massive", "massive_max", float("nan"), {"layer": 2}),
    (8, "massive", "massive_max", 11.0, {}),
    *((s, "gate_scores", "gate_histogram", 0.25, {"layer": 0, "bin": b, "site": "sdpa"}) for s in (4, 8) for b in range(4)),
    (8, "gate_scores", "gate_histogram", 0.9, {"layer": 0, "bin": 0, "site": "value"}),
    (8, "gate_scores", "gate_below", 0.97, {"layer": 0, "site": "sdpa", "threshold": 0.1}),
    *((s, "tasks", "exact_match", 0.1 * s, {"task": "mqar", "length": n}) for s in (4, 8) for n in (8, 16)),
    (12, "sizes", "gradient_noise", 1.0, {}),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    plan = [
        {"cell": "a, b", "arm": arm, "seed": seed, "fingerprint": f"{arm}{seed}", "n_parameters": 9}
        for arm in ARMS
        for seed in range(2)
    ]
    study = StudyFolder.create(tmp_path / "study", {"name": "x", "plan": plan})
    for number, (_, run) in enumerate(study.planned()):
        run.create({})
        rows = Appender(run.rows_path)
        rows.write(
            Row(run.fingerprint, step, source, metric, value + number / 1000, "1", **at)
            for step, source, metric, value, at in ROWS
        )
        rows.close()
        run.mark_done("done", {})
    return study


def settled(folder: StudyFolder) -> None:
    """As if its files had been written a minute ago."""
    for _, run in folder.planned():
        for path in (p for p in (run.rows_path, run.path / "done.json") if p.exists()):
            was = path.stat().st_mtime_ns - 60_000_000_000
            os.utime(path, ns=(was, was))


def kept(folder: StudyFolder) -> list[Path]:
    return sorted(folder.path.glob("digest-*.parquet"))


def refuse(*_: object) -> None:
    raise AssertionError("rows were read")


def numbers(connection, sql: str) -> list[tuple]:
    """The rows in order, not-a-number as a word, since it equals nothing."""
    return sorted((tuple("nan" if x != x else x for x in row) for row in connection.execute(sql).fetchall()), key=repr)


def of_all_rows(folder: StudyFolder):
    connection = folder.connect()
    connection.execute(MAIN_ROWS)
    return connection


@pytest.mark.parametrize("metric", sorted({*STUDY_METRICS, *NAMED}))
@pytest.mark.parametrize(
    ("where", "by"),
    [
        # As `gatelab.lab.outcomes` asks, and as the readings do.
        ("layer IS NULL AND head IS NULL AND domain IS NULL AND intervention IS NULL AND bin IS NULL AND stage IS NULL"
         " AND (site IS NULL OR site = 'sdpa')", "run, metric"),
        ("intervention IS NULL", "run, metric"),
    ],
    ids=["outcomes", "readings"],
)  # fmt: skip
def test_what_is_judged_is_what_all_rows_say(folder, metric, where, by):
    sql = (
        f"SELECT cell, arm, seed, run, step, metric, layer, head, stage, threshold, task, length, value FROM main_rows"
        f" WHERE metric = '{metric}' AND {where} QUALIFY step = max(step) OVER (PARTITION BY {by})"
    )
    assert numbers(digest(folder), sql) == numbers(of_all_rows(folder), sql)


def test_the_tables_of_the_page_are_of_the_last_look_and_curves_of_every_step(folder):
    connection = digest(folder)
    run = ("a, b", "none", 1)
    shift = 1 / 1000
    curves = dict(table(connection, "curves"))
    losses = [(step, 4.0 - step / 8 + shift) for step in range(1, 11)]
    assert curves[*run, "loss"] == [*losses[:7], (7, 9.5 + shift), *losses[7:]]
    assert curves[*run, "val_loss"] == [(s, 3.0 - s / 8 + shift) for s in (0, 4, 8)]
    assert dict(table(connection, "heads"))[*run, "first_token_mass"] == [(0, 0, 0.8 + shift), (0, 1, 0.81 + shift)]
    layers = dict(table(connection, "layers"))[*run, "massive_max"]
    assert layers[:2] == [(0, 18 + shift), (1, 18 + shift)] and str(layers[2]) == "(2, nan)"
    assert dict(table(connection, "histograms"))[*run, "gate_histogram"] == [(0, b, 0.25 + shift) for b in range(4)]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_record_a_run_and_metric_in_order(folder, name):
    keys = [key for key, _ in table(digest(folder), name)]
    assert keys == sorted(keys) and {key[:3] for key in keys} == {
        ("a, b", arm, seed) for arm in ARMS for seed in (0, 1)
    }


def test_readings_over_the_looks_of_a_run_end_where_the_judged_ones_are(folder):
    connection = digest(folder)
    courses, shift = dict(table(connection, "courses")), 1 / 1000
    run = ("a, b", "none", 1)
    steps, heights = zip(*courses[*run, "accuracy:mqar"], strict=True)
    assert steps == (4, 8) and heights == pytest.approx([0.4 + shift, 0.8 + shift])
    assert courses[*run, "gate_shut"] == [(8, 0.97 + shift)] and courses[*run, "longer:mqar"] == [(4, 0.0), (8, 0.0)]
    connection.execute(FINAL)
    judged = {
        (name, run, f"{name}:{part}" if part else name): value
        for name in COURSES
        for run, part, value in connection.execute(READINGS[name].sql).fetchall()
    }
    names = {(e["cell"], e["arm"], e["seed"]): e["fingerprint"] for e, _ in folder.planned()}
    readings = {k: v for k, v in courses.items() if not k[3].startswith("furthest")}
    assert {(k[3].partition(":")[0], names[k[:3]], k[3]): v[-1][1] for k, v in readings.items()} == judged
    assert dict(table(connection, "courses", ["b"])) == {}


def test_rows_of_tasks_are_of_every_step_and_the_last_step_is_that_of_all_rows(folder):
    connection = digest(folder)
    sql = "SELECT run, step, task, length, value FROM {} WHERE source = 'tasks'"
    assert numbers(connection, sql.format("task_rows")) == numbers(folder.connect(), sql.format("rows"))
    assert numbers(connection, "SELECT step FROM reached") == [(12,)] * 4


def test_a_finished_study_is_kept_and_read_again(folder, monkeypatch):
    settled(folder)
    before = numbers(digest(folder), "FROM main_rows")
    assert len(kept(folder)) == 1
    monkeypatch.setattr(made, "take", refuse)
    assert numbers(digest(StudyFolder(folder.path)), "FROM main_rows") == before


def test_of_a_study_that_goes_on_only_what_is_new_is_read(folder, monkeypatch):
    settled(folder)
    runs = [run for _, run in folder.planned()]
    ends = [run.path / "done.json" for run in runs[:2]]
    said = [end.read_bytes() for end in ends]
    for end in ends:
        end.unlink()
    before = numbers(digest(folder), "FROM main_rows")
    asked = []
    monkeypatch.setattr(made, "take", lambda connection, batch: asked.append(batch) or take(connection, batch))
    assert numbers(digest(StudyFolder(folder.path)), "FROM main_rows") == before
    ends[0].write_bytes(said[0])
    assert numbers(digest(StudyFolder(folder.path)), "FROM main_rows") == before
    # The first of them has ended, just now: a file could change once more within a tick of its clock.
    assert [[run.fingerprint for run in batch] for batch in asked] == [[run.fingerprint for run in runs[:2]]] * 2
    settled(folder)
    for _ in range(2):
        assert numbers(digest(StudyFolder(folder.path)), "FROM main_rows") == before
    assert [[run.fingerprint for run in batch] for batch in asked[2:]] == [
        [run.fingerprint for run in runs],
        [runs[1].fingerprint],
    ]


def test_runs_are_taken_some_at_a_time(folder, monkeypatch):
    before = numbers(digest(folder), "FROM main_rows"), list(table(digest(folder), "courses"))
    monkeypatch.setattr(run_digest, "AT_ONCE", 1)
    again = StudyFolder(folder.path)
    assert (numbers(digest(again), "FROM main_rows"), list(table(digest(again), "courses"))) == before


def test_rows_that_change_are_seen_at_once_and_the_old_digest_goes(folder):
    settled(folder)
    digest(folder)
    (old,) = kept(folder)
    run = folder.run("none0")
    rows = Appender(run.rows_path, run.rows_path.stat().st_size)
    rows.write([Row("none0", 20, "eval", "val_loss", 0.5, "nats")])
    rows.close()
    settled(folder)
    last = "SELECT value FROM main_rows WHERE run = 'none0' AND metric = 'val_loss' AND step = 20"
    assert numbers(digest(folder), last) == [(0.5,)]
    assert numbers(digest(StudyFolder(folder.path)), last) == [(0.5,)]
    assert kept(folder) == [old]


def test_a_run_that_is_taken_off_the_plan_is_gone(folder):
    settled(folder)
    digest(folder)
    plan = folder.study()["plan"][:3]
    StudyFolder.create(folder.path, {"name": "x", "plan": plan})
    assert numbers(digest(folder), "SELECT DISTINCT run FROM reached") == [("gated0",), ("none0",), ("none1",)]


def test_a_kept_digest_that_is_damaged_is_made_anew(folder):
    settled(folder)
    before = numbers(digest(folder), "FROM main_rows")
    (path,) = kept(folder)
    path.write_bytes(b"PAR1 no more")
    assert numbers(digest(StudyFolder(folder.path)), "FROM main_rows") == before
    assert path.read_bytes()[4:12] != b" no more"


def test_every_metric_of_a_reading_is_among_those_that_are_taken():
    asked = {name for name in NAMED for reading in READINGS.values() if f"'{name}'" in reading.sql}
    assert asked == set(NAMED) and "position_mass_uniform" in asked
