"""The command line where a shell, a folder or a signal is not as one thinks: empty words, closed streams, packs, files that were
edited, SIGTERM."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from command import gatelab
from tiny import toy

from gatelab import lab
from gatelab.evals.checkpoint import Look
from gatelab.record import Row
from gatelab.store import Appender, StoreError, StudyFolder, files, read_json, write_json
from gatelab.study.ledger import claim
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study
from gatelab.terminal import STATES, print_status

ARMS = (Arm("none", {"model.gate": "none"}, "no gate"), Arm("gated", {"model.gate": "sdpa-headwise"}, "a gate"))
STUDY = """
from gatelab import Arm, BigramBackcopy, ModelConfig, ProbeConfig, Run, Study, TrainConfig

toy = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu", positions="learned"),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=2 * 16 * 1_000_000, batch_size=2, seq_len=16),
    probe=ProbeConfig(times=1, sequences=4, eval_sequences=8),
)
arms = (Arm("none", {"model.gate": "none"}), Arm("gated", {"model.gate": "sdpa-headwise"}))
study = Study(name="long", question="Does it end?", cells={"toy": toy}, arms=arms, seeds=1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Two arms and three seeds, of which all have ended, with rows that nobody trained."""
    plan = make_plan(Study("made", "What?", {"toy": toy()}, ARMS, seeds=3, primary=("val_loss",)))
    there = lab.save_plan(plan, tmp_path / "made")
    for entry, run in there.planned():
        noise = np.random.default_rng(entry["seed"]).normal(3, 1)
        rows = Appender(run.rows_path)
        rows.write([Row(run.fingerprint, 1, "eval", "val_loss", noise + (entry["arm"] == "none"), "nats")])
        rows.close()
        run.mark_done("done", {"steps": 1})
    return there


EMPTY = (
    "run st.py --out=",
    "train --out {}",
    "probe m --text {}",
    "probe m --probes {}",
    "status {}",
    "probe m --intervene {}",
)


@pytest.mark.parametrize("line", EMPTY)
def test_an_empty_word_starts_nothing(line: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = gatelab(*("" if word == "{}" else word for word in line.split()))
    said = next((word.rstrip("=") for word in line.split() if word.startswith("--")), "a word")
    assert (status, out, err) == (2, "", f"gatelab: {said} '': is empty; give it a value, or leave it out\n")
    assert not os.listdir(tmp_path)


def test_probes_of_nothing_but_commas_are_refused():
    assert gatelab("probe", "m", "--probes", " , ")[0] == 2


@pytest.mark.parametrize("closed, words", [(">&-", "gates"), ("2>&-", "status none"), ("<&- >&- 2>&-", "gates")])
def test_a_closed_stream_is_no_traceback(closed: str, words: str):
    line = f"exec {sys.executable} -m gatelab.cli {words} {closed}"
    said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert said.returncode == (0 if words == "gates" else 1) and not said.stderr


def test_marks_differ_where_the_output_has_ascii_alone(folder, monkeypatch):
    said = StringIO()
    said_in_ascii = type("Ascii", (StringIO,), {"encoding": "ascii"})()
    for stream in (said, said_in_ascii):
        monkeypatch.setattr(sys, "stdout", stream)
        print_status(folder)
    assert "✓ done: 6" in said.getvalue()
    assert "+ done: 6" in said_in_ascii.getvalue() and said_in_ascii.getvalue().isascii()
    monkeypatch.undo()
    from gatelab.terminal import _mark

    assert len({_mark(state, "ascii") for state in STATES}) == len(STATES)


def test_status_tells_how_a_running_run_comes_along(folder):
    entry, run = next(folder.planned())
    (run.path / "done.json").unlink()
    claim(run, "somebody", driver=os.getpid())
    progress = {"step": 30, "steps": entry["steps"], "first_step": 10, "seconds": 4.0, "loss": "2.5"}
    assert "step" not in gatelab("status", folder.path)[1]
    write_json(run.path / "progress.json", progress)
    rate = 20 * entry["tokens"] / entry["steps"] / 4
    said = f"toy/none/0: step 30 of {entry['steps']:,}, loss 2.5, {rate:,.0f} tokens/s"
    assert said in gatelab("status", folder.path)[1].splitlines()
    record = json.loads(gatelab("status", folder.path, "--json")[1].splitlines()[0])
    assert (record["state"], record["step"], record["loss"], record["tokens_per_s"]) == ("running", 30, 2.5, rate)


def test_runs_that_another_process_is_at_are_no_failure(folder):
    _, run = next(folder.planned())
    (run.path / "done.json").unlink()
    claim(run, "somebody", driver=os.getpid())
    status, _, err = gatelab("run", folder.path)
    assert status == 1 and "1 runs are being carried out by another process" in err and "did not finish" not in err


def test_logs_of_a_run_that_printed_nothing_say_so(folder):
    _, run = next(folder.planned())
    (run.path / "log.txt").touch()
    assert gatelab("logs", folder.path, "toy/none/0") == (0, "", "toy/none/0: printed nothing; it is done\n")


def test_a_log_is_followed_to_the_end_of_its_run(folder, monkeypatch):
    _, run = next(folder.planned())
    done = (run.path / "done.json").read_bytes()
    (run.path / "done.json").unlink()
    log, written = run.path / "log.txt", [b"one\ntw", b"o\nthr", b"ee \xc3", b"\xa9"]

    def later(_seconds: float) -> None:
        with log.open("ab") as file:
            file.write(written.pop(0))
        if not written:
            (run.path / "done.json").write_bytes(done)

    monkeypatch.setattr("gatelab.cli.progress.time.sleep", later)
    assert gatelab("logs", folder.path, "toy/none/0", "-f") == (0, "one\ntwo\nthree é", "")
    assert gatelab("logs", folder.path, "toy/none/0", "--follow") == (0, "one\ntwo\nthree é", "")


def test_a_log_that_another_takes_the_place_of_is_followed_from_its_start(folder, monkeypatch):
    _, run = next(folder.planned())
    done = (run.path / "done.json").read_bytes()
    (run.path / "done.json").unlink()
    (run.path / "log.txt").write_bytes(b"of the first attempt\n")

    def later(_seconds: float) -> None:
        (run.path / "log.txt").write_bytes(b"of another\n")
        (run.path / "done.json").write_bytes(done)

    monkeypatch.setattr("gatelab.cli.progress.time.sleep", later)
    said = gatelab("logs", folder.path, "toy/none/0", "-f")
    assert said == (0, "of the first attempt\nof another\n", "")


def test_a_study_is_watched_until_nothing_is_left_to_do(folder, monkeypatch):
    _, run = next(folder.planned())
    done = (run.path / "done.json").read_bytes()
    (run.path / "done.json").unlink()
    slept = []

    def later(seconds: float) -> None:
        slept.append(seconds)
        (run.path / "done.json").write_bytes(done)

    monkeypatch.setattr("gatelab.cli.progress.time.sleep", later)
    status, out, err = gatelab("status", folder.path, "--watch")
    assert (status, err, len(slept)) == (0, "", 1)
    assert "planned: 1" in out and "done: 6" in out and out.index("planned: 1") < out.index("done: 6")
    status, _, err = gatelab("status", folder.path, "--watch", "--json")
    assert status == 2 and "leave one of the two out" in err


def test_a_benchmark_that_is_refused_makes_no_folder(tmp_path):
    assert gatelab("bench", "train", "--steps", "-1", "--out", tmp_path / "new")[0] == 2
    assert not (tmp_path / "new").exists()


def test_a_pack_is_no_study_to_go_on_with_and_the_way_is_said(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab.pack(folder.path, "a pack.parquet")
    for command in ("status", "retry", "run", "plan"):
        status, _, err = gatelab(command, "a pack.parquet")
        assert status in (1, 2) and err == (
            "gatelab: a pack.parquet: is a pack; first `gatelab unpack 'a pack.parquet' --out DIR`\n"
        )
    (tmp_path / "empty").mkdir()
    for command in ("run", "plan"):
        status, _, err = gatelab(command, "empty")
        assert status == 2 and "empty: holds no study (no study.json)" in err and "quickstart" not in err


def test_a_run_without_its_configuration_is_left_out_of_a_pack_and_that_is_said(folder, tmp_path):
    _, run = next(folder.planned())
    (run.path / "run.json").unlink()
    assert f"{run.path / 'run.json'}: is missing; `gatelab run` of the study" in gatelab("status", folder.path)[1]
    status, _, err = gatelab("pack", folder.path, "--out", tmp_path / "x.parquet")
    assert status == 0 and "1 of 6 runs have not ended or are damaged (1): they are in the plan alone" in err


def test_an_out_that_cannot_be_written_is_told_to_be_another(folder, tmp_path):
    made = tmp_path / "x.parquet"
    assert gatelab("pack", folder.path, "--out", made)[0] == 0
    for words in (
        ("pack", folder.path, "--out", "/proc/x.parquet"),
        ("unpack", made, "--out", "/proc/x"),
        ("report", folder.path, "--out", "/proc/x.html"),
    ):
        status, _, err = gatelab(*words)
        assert status == 1 and "--out /proc/x" in err and "; give another --out\n" in err, err
    with pytest.raises(StoreError, match=r"^--out /proc/x: cannot be written \(.*\); give another --out$"):
        lab.write_look(Look("a", "b", [], (), [], []), "/proc/x")


def test_the_plan_of_a_folder_is_what_run_would_do_there(folder):
    status, out, _ = gatelab("plan", folder.path)
    assert status == 0 and "made: What?" in out and "toy: " in out and "6 runs, " in out
    assert "6 have ended, and nothing was started" in out
    records = [json.loads(line) for line in gatelab("plan", folder.path, "--json")[1].splitlines()]
    assert records == folder.study()["plan"]
    for words in (["optim.lr=1"], ["--pilot", str(folder.path)], ["--gpus", "8"]):
        status, _, err = gatelab("plan", folder.path, *words)
        assert status == 2 and "study" in err and "quickstart" not in err


def test_a_declaration_that_cannot_be_read_is_said_by_report_and_on_the_page(folder):
    (folder.path / "screen.json").write_text("{")
    status, _, err = gatelab("report", folder.path)
    assert status == 0 and f"no anomalies were looked for: {folder.path / 'screen.json'}: not readable as JSON" in err
    assert "No anomalies were looked for:" in (folder.path / "report.html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(folder, monkeypatch):
    real = open

    def read_only(path, mode="r", **more):
        if "w" in mode and folder.path in Path(path).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, **more)

    monkeypatch.setattr(files, "open", read_only, raising=False)
    with pytest.raises(OSError, match=r"/effects\.csv'$"):
        files.write_text(folder.path / "effects.csv", "a")
    sentence = (
        f"{folder.path}: its page cannot be written there (Read-only file system); copy the folder to where it can be"
    )
    status, out, err = gatelab("report", folder.path)
    assert (status, out) == (1, "") and sentence in err
    status, out, err = gatelab("run", folder.path)
    assert status == 1 and "✓ done: 6" in out and sentence in err


WRONG = {
    "probe {model} --length -1": "--length -1:",
    "probe {model} --sequences 0": "--sequences 0:",
    "probe {model} --at-once -1": "--at-once -1:",
    "probe {model} --probes nope": "--probes nope: expected",
    "probe {model} --intervene zero": "intervention 'zero': no kind 'zero'; expected one of",
    "convert {model} {model}2 --layout nope": "layout 'nope': expected one of",
    "pack {study} --out x.txt": "--out x.txt: name a file that ends in .parquet",
    "report {study} --out {model}": "is a folder",
    "find {study} --register --seeds x": "--seeds x: ",
    "find {study} --seeds 1..2": "--seeds 1..2 is for --register and --edit",
    "train --config {null}": "holds null",
    "gates SDPA-headwise": "did you mean 'sdpa-headwise'?",
}


@pytest.mark.parametrize("line", WRONG)
def test_usage_has_one_exit_status(line: str, folder, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "null.json").write_text("null")
    names = {"model": model, "study": folder.path, "null": tmp_path / "null.json"}
    status, out, err = gatelab(*(word.format(**names) for word in line.split()))
    assert (status, out) == (2, "") and WRONG[line] in err, err


def test_a_study_without_a_version_was_edited(folder):
    write_json(folder.path / "study.json", {})
    assert "study.json: says no version (schema); was it cut or edited?" in gatelab("status", folder.path)[2]


def test_sigterm_ends_a_study_as_ctrl_c_does(tmp_path: Path):
    (tmp_path / "long.py").write_text(STUDY)
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "gatelab.cli",
        "run",
        "long.py",
        "--out",
        str(out),
        "execution.slots=1",
        "execution.device=cpu",
    ]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        try:
            until = time.monotonic() + 100
            while not list(out.glob("runs/*/progress.json")) and run.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
            run.send_signal(signal.SIGTERM)
            _, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 143, err
    assert err.splitlines()[-1] == "gatelab: stopped; what was trained is saved, the same command continues"
    outcomes = [read_json(path)["outcome"] for path in out.glob("runs/*/attempts/*.json")]
    assert outcomes == ["stopped"]
