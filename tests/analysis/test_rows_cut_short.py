"""Finished runs whose rows end early: planted studies in which one run is cut, beside the same study that is whole."""

import json
from pathlib import Path

import numpy as np
import pytest

from gatelab import lab
from gatelab.analysis.anomalies.readings import FINAL
from gatelab.analysis.digest import digest, table
from gatelab.analysis.short import Short, short_rows
from gatelab.analysis.tasks import task_rows
from gatelab.cli import _status
from gatelab.config import BigramBackcopy, ModelConfig, ProbeConfig, Run, TrainConfig
from gatelab.record import Row
from gatelab.store import Appender, StudyFolder, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

TOY = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu"),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=64, batch_size=2, seq_len=8),  # 4 steps
    probe=ProbeConfig(times=2, sequences=1, eval_sequences=1),
)
ARMS = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}))
WHY = "seed 1 of gated has rows to step 2 of 4 only"


def made(place: Path, *, keep=lambda entry, row: True, status=lambda entry: "done") -> StudyFolder:
    """Five pairs whose loss falls from 4 to 3, with 0.01 less for the gate, of which the rows `keep` are written."""
    study = Study("fake", "?", {"a": TOY}, ARMS, seeds=5, primary=("val_loss", "first_token_mass"))
    folder = lab.save_plan(make_plan(study), place)
    for entry, run in folder.planned():
        noise = np.random.default_rng([entry["seed"], len(entry["arm"])]).normal(0, 0.001)
        gain = 0.01 * (entry["arm"] == "gated") + noise
        rows = []
        for step, loss in ((0, 4.0), (2, 3.5), (4, 3.0)):
            rows += [
                Row(run.fingerprint, step, "train", "loss", loss, "nats"),
                Row(run.fingerprint, step, "eval", "val_loss", loss - gain, "nats"),
                Row(run.fingerprint, step, "sinks", "first_token_mass", step / 8 + noise, "share"),
                Row(run.fingerprint, step, "sinks", "first_token_mass", step / 8, "share", layer=0, head=0),
                Row(run.fingerprint, step, "tasks", "exact_match", 0.5, "share", task="mqar", length=8),
            ]
        file = Appender(run.rows_path)
        file.write([row for row in rows if keep(entry, row)])
        file.close()
        write_json(run.path / "environment.json", {"code": "c1", "versions": {"torch": "2.11.0"}})
        run.mark_done(status(entry), {"steps": 4})
    return folder


def is_cut(entry: dict) -> bool:
    return (entry["arm"], entry["seed"]) == ("gated", 1)


def of_loss(folder: StudyFolder):
    (found,) = (f for f in lab.analyse(folder).findings if f.metric == "val_loss")
    return found


def test_a_run_whose_rows_end_early_makes_no_pair_and_is_named(tmp_path):
    whole = of_loss(made(tmp_path / "whole"))
    folder = made(tmp_path / "cut", keep=lambda e, row: not is_cut(e) or row.step < 4)
    found = of_loss(folder)
    assert found.seeds == [0, 2, 3, 4] and f"Left out: {WHY}." in found.sentence
    assert found.differences == [d for s, d in zip(whole.seeds, whole.differences, strict=True) if s != 1]
    run = next(e["fingerprint"] for e, _ in folder.planned() if is_cut(e))
    hunt, says = (
        lab.hunt(folder),
        f"left out: rows of {run} (a, gated, seed 1) end at step 2 of 4; remove a run's done.json",
    )
    assert any(note.startswith(says) for note in hunt.notes)
    pairs = hunt.gathered.evidence.pairs("val_loss", "a", "gated")
    assert pairs.seeds == [0, 2, 3, 4] and pairs.excluded == [WHY]
    page = lab.report(folder, lab.analyse(folder)).read_text(encoding="utf-8")
    assert "Left out: rows of" in page.partition("Verdicts</h2>")[0]


def test_one_metric_that_ends_early_leaves_the_others(tmp_path, capsys):
    """The last held-out loss of every gated run is gone, which had read as half a nat worse."""
    folder = made(tmp_path / "cut", keep=lambda e, row: e["arm"] == "none" or row.metric != "val_loss" or row.step < 4)
    found = {f.metric: f for f in lab.analyse(folder).findings}
    assert (found["val_loss"].verdict, found["val_loss"].n_pairs) == ("untestable", 0)
    assert "seed 3 of gated has rows of val_loss to step 2 of 4 only" in found["val_loss"].sentence
    assert found["first_token_mass"].n_pairs == 5
    assert not [a for a in lab.hunt(folder).screened.alarms if a.reading == "val_loss" and a.n_pairs]
    assert _status(["find", str(folder.path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[0])["verdict"] == "untestable"
    assert err.count("rows of val_loss of") == 5


def test_a_run_without_rows_is_said_to_have_none(tmp_path):
    found = of_loss(made(tmp_path / "cut", keep=lambda e, row: not is_cut(e)))
    assert found.n_pairs == 4 and "seed 1 of gated has no rows" in found.sentence


def test_runs_that_diverged_or_reach_their_end_are_as_before(tmp_path):
    folder = made(
        tmp_path / "diverged",
        keep=lambda e, row: not is_cut(e) or row.step < 4,
        status=lambda e: "diverged" if is_cut(e) else "done",
    )
    assert "seed 1 of gated diverged" in of_loss(folder).sentence
    assert short_rows(digest(folder)) == Short({}, {}, {})
    # Thinned rows: losses of the training at some steps, one look at the end.
    thin = made(tmp_path / "thin", keep=lambda e, row: row.step == 4 or row.metric == "loss")
    assert of_loss(thin).n_pairs == 5 and short_rows(digest(thin)) == Short({}, {}, {})


def test_a_run_without_steps_in_its_plan_is_taken_at_its_word(tmp_path):
    """Plans of older versions."""
    folder = made(tmp_path / "old", keep=lambda e, row: row.step < 4)
    path = folder.path / "study.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    for entry in said["plan"]:
        del entry["steps"]
    path.write_text(json.dumps(said), encoding="utf-8")
    assert of_loss(StudyFolder(folder.path)).n_pairs == 5


def test_no_view_of_final_values_has_a_run_that_is_cut(tmp_path):
    folder = made(tmp_path / "cut", keep=lambda e, row: not is_cut(e) or row.step < 4)
    connection = digest(folder)
    connection.execute(FINAL)
    run = next(e["fingerprint"] for e, _ in folder.planned() if is_cut(e))
    for view in ("main_rows", "final", "task_rows"):
        runs = {name for (name,) in connection.execute(f"SELECT DISTINCT run FROM {view}").fetchall()}
        assert len(runs) == 9 and run not in runs, view
    assert ("a", "gated", 1) not in {key[:3] for key, _ in table(connection, "heads")}
    # Over training there is what there is.
    curves = dict(table(connection, "curves"))
    assert curves["a", "gated", 1, "loss"] == [(0, 4.0), (2, 3.5)]
    assert {(r.arm, r.seed) for r in task_rows(folder)} == {(a, s) for a in ("none", "gated") for s in range(5)} - {
        ("gated", 1)
    }
    assert short_rows(connection).rows == {run: (2, 4)} == short_rows(connection).answers


def test_answers_alone_that_end_early_are_no_final_answers(tmp_path):
    folder = made(tmp_path / "cut", keep=lambda e, row: not is_cut(e) or row.source != "tasks" or row.step < 4)
    short = short_rows(digest(folder))
    assert (short.rows, list(short.answers.values())) == ({}, [(2, 4)])
    assert ("gated", 1) not in {(r.arm, r.seed) for r in task_rows(folder)}
    assert of_loss(folder).n_pairs == 5
    (note,) = short.notes((e, "done") for e, _ in folder.planned())
    assert "(a, gated, seed 1) end at step 2 of 4" in note and "rows of tasks of" in note


@pytest.mark.parametrize("n", [6, 8])
def test_a_note_names_a_few_runs_and_counts_the_rest(n):
    entries = [{"cell": "a", "arm": "gated", "seed": s, "fingerprint": f"r{s}"} for s in range(n)]
    short = Short({f"r{s}": (1_000, 2_000) for s in range(n)}, {}, {})
    (note,) = short.notes((e, "done") for e in entries)
    assert "rows of r5 (a, gated, seed 5) end at step 1,000 of 2,000" in note and ("r6" in note) is False
    assert ("; and 2 more;" in note) == (n == 8)
    assert short.notes((e, "running") for e in entries) == []
