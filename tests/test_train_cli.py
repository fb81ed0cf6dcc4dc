"""gatelab train: what it says of a run that is done, that diverged, and that somebody else is at."""

import os

import pytest
from test_cli import STUDY, gatelab

from gatelab.store import StudyFolder
from gatelab.study.ledger import claim

SMALL = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "data.tokenizer=byte", "train.seq_len=16", "train.batch_size=2",
    "probe.times=2", "probe.sequences=2", "probe.eval_sequences=2", "execution.slots=1",
)  # fmt: skip


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "good.txt").write_text("the cat sat on the mat\n" * 100)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    return folder


@pytest.fixture
def train(text, tmp_path):
    def go(*words):
        return gatelab("train", "data=text", f"data.paths={text}", *SMALL, *words, "--out", tmp_path / "out")

    return go


def test_state_and_held_out_loss_come_first_and_files_left_out_are_told(train):
    shown = train("train.tokens=96")
    title, _, first = [line for line in shown.out.splitlines() if line.strip()][:3]
    assert shown.status == 0 and title.startswith("done: ") and first.split()[0] == "val_loss"
    assert "1 files left out that are not UTF-8 text" in shown.err
    state, loss, *_ = train("train.tokens=96", "--json").records
    assert state["state"] == "done" and title == f"done: {state['path']}"
    assert (loss["metric"], loss["step"]) == ("val_loss", 3)


def test_diverged_run_says_its_steps_and_exits_with_1(train):
    wild = ("train.tokens=960", "optim.lr=1e30", "optim.warmup=0", "optim.clip=null", "optim.schedule=constant")
    shown = train(*wild)
    title, header, first = [line for line in shown.out.splitlines() if line.strip()][:3]
    assert shown.status == 1 and title.startswith("diverged at step 2: ") and title.endswith("; val_loss is of step 0")
    assert header.split()[:2] == ["step", "metric"] and first.split()[:2] == ["0", "val_loss"]
    state, *rows = train(*wild, "--json").records
    assert state["state"] == "diverged" and {r["step"] for r in rows if r["metric"] == "val_loss"} == {0}


def test_run_that_another_process_is_at_has_no_results_yet(train, tmp_path):
    train("train.tokens=96")
    (run,) = (run for _, run in StudyFolder.open(tmp_path / "out").planned())
    (run.path / "done.json").unlink()
    claim(run, "another", driver=os.getpid())
    shown, told = train("train.tokens=96"), train("train.tokens=96", "--json")
    assert (shown.status, told.status) == (1, 1)
    assert "is being carried out elsewhere; `gatelab status" in shown.out and "val_loss" not in shown.out
    assert [r["state"] for r in told.records] == ["running"]


def test_run_tells_what_its_cells_of_text_read(text, tmp_path):
    study = tmp_path / "tiny.py"
    study.write_text(STUDY)
    words = ("data=text", f"data.paths={text}", "train.tokens=0", "seed=0", "execution.slots=1", "--json")
    said = gatelab("run", study, *words, "--out", tmp_path / "out")
    assert said.status == 0, said
    assert "toy: 2.3 kB of text, " in said.err and "1 files left out that are not UTF-8 text" in said.err


def test_a_run_whose_texts_lie_elsewhere_is_probed_where_it_was_made(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("All texts of this run. " * 400)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    said = gatelab("train", "data=text", "data.paths=texts", *SMALL, "train.tokens=96", "--out", "out")
    assert said.status == 0, said
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert gatelab("probe", run).status == 0
    monkeypatch.chdir(tmp_path / "other")
    said = gatelab("probe", os.path.relpath(run))
    assert said.status == 1 and "'texts': no such file or folder" in said.err, said.err
    assert (
        f"count from where it was made: give this command there, with the run's folder as {run.resolve()}\n" in said.err
    )
