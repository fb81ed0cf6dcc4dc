"""What `find --explain` prints for a study's folder: given as it stands it plans the very cell, arms and seeds; and its edits."""

import json
import shlex
import subprocess

import pytest
import tiny

from gatelab import lab
from gatelab.cli import _status
from gatelab.config import parse_assignments
from gatelab.record import Row
from gatelab.store import Appender, StoreError
from gatelab.study.plan import make_plan
from gatelab.study.study import load_study

FILE = """
from gatelab import Arm, BigramBackcopy, ModelConfig, Run, Study, TrainConfig
toy = Run(model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu"), data=BigramBackcopy(vocab_size=16),
          train=TrainConfig(tokens=16, batch_size=2, seq_len=8))
study = Study(name="tiny", question="?", cells={"a": toy, "b": toy}, seeds=3, primary=("val_loss",),
              arms=(Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}), Arm("late", {"model.gate": "value-headwise"})))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a study whose file lies where it was run, with words; every run has a loss, and none its weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(FILE, encoding="utf-8")
    asked = ["optim.lr=[0.001,0.002]", "train.seq_len=4"]
    made = make_plan(load_study("tiny.py").changed({"optim.lr": [0.001, 0.002], "train.seq_len": [4]}))
    there = lab.save_plan(made, "out", asked=["tiny.py", *asked])
    for entry, run in there.planned():
        rows = Appender(run.rows_path)
        value = 3.0 + 0.1 * entry["seed"] - (0.5 if entry["arm"] == "gated" else 0.0)
        rows.write([Row(run.fingerprint, 1, "eval", "val_loss", value, "nats")])
        rows.close()
        run.mark_done("done", {"steps": 1})
    return there


CELL = "a, optim.lr=0.002"


def printed(capsys, *words):
    status = _status(["find", "out", "--explain", CELL, *words])
    out, err = capsys.readouterr()
    return status, out, err


def commands(out):
    return [line.partition("] ")[2] for line in out.splitlines() if line.startswith("  [")]


def test_every_command_plans_this_cell_with_the_baseline_and_few_arms(folder, capsys):
    status, out, _ = printed(capsys, "--arm", "gated")
    assert status == 0 and f"{CELL}, gated" in out and f"{CELL}, late" not in out
    ran = [w for line in commands(out) for w in line.split(" && ") if w.startswith("gatelab run ")]
    more = "gatelab run tiny.py 'optim.lr=[0.001,0.002]' train.seq_len=4 seed=0..5 --out out"
    assert len(ran) >= 4 and [line for line in ran if line.endswith("--out out")] == [more]
    ran.remove(more)
    for line in commands(out):
        if line.startswith("printf "):
            subprocess.run(["bash", "-c", line.split(" && ")[0]], check=True)
    n_new = 0
    for command in ran:
        _, _, study, *words, _, place = shlex.split(command)
        plan = lab.plan(study, parse_assignments(words))
        assert {p.seed for p in plan.runs} == {0, 1, 2} and place.startswith("out-")
        arms = list(dict.fromkeys(p.arm for p in plan.runs))
        assert arms[:2] == ["none", "gated"] and "late" not in arms
        n_new += len(arms) - 2
        # The very runs of the cell, but for what is asked.
        assert all(p.run.train.seq_len == 4 for p in plan.runs)
        if len(arms) > 2:
            assert {p.cell for p in plan.runs} == {"a"} and {p.run.optim.lr for p in plan.runs} == {0.002}
            own = {e["fingerprint"] for e, _ in folder.planned() if e["cell"] == CELL and e["arm"] in ("none", "gated")}
            assert own == {p.fingerprint for p in plan.runs if p.arm in ("none", "gated")}
        ask = next(line for line in commands(out) if command in line).split("--explain ")[1]
        assert shlex.split(ask)[0] in {p.cell for p in plan.runs}
    assert n_new >= 6


def test_an_arm_that_is_not_there_is_named(folder, capsys):
    status, out, err = printed(capsys, "--arm", "gatde")
    assert (
        status == 1
        and not out
        and "--arm gatde: no such gate to explain; expected gated, late; did you mean 'gated'?" in err
    )


def test_edits_without_weights_are_one_sentence(folder, capsys):
    status, out, err = printed(capsys, "--edit")
    assert status == 1 and not out and len(err.splitlines()) == 1
    assert "no run was edited, since none of the 9 that lack rows has its weights (weights.safetensors) in out" in err


def test_runs_count_that_gave_rows(folder, monkeypatch):
    runs = [run for e, run in folder.planned() if e["cell"] == CELL and e["arm"] != "late"]
    for run in runs[:-1]:
        (run.path / "weights.safetensors").write_bytes(b"")

    class Made:
        def __init__(self, n):
            self.n = n

        def rows(self, name):
            return [Row(name, 1, "intervene", "loss_change", 0.1, "nats", intervention="drop-first", dose=1.0)] * self.n

    refuse = {runs[0].path}

    def intervene(path, words):
        if path in refuse:
            raise ValueError("the file is cut")
        return Made(2)

    monkeypatch.setattr("gatelab.lab.explaining.intervene", intervene)
    told = []
    assert lab.edit(folder, CELL, arms=["gated"], tell=told.append) == len(runs) - 2
    assert told[0] == "1 of 6 runs have no weights here (weights.safetensors) and are left out"
    assert {json.loads(line)["run"] for line in (folder.path / lab.FILE).read_text().splitlines()} == {
        r.fingerprint for r in runs[1:-1]
    }
    refuse.update(r.path for r in runs)
    assert lab.edit(folder, CELL, arms=["gated"]) == 0  # what is tried again, these models cannot have
    (folder.path / lab.FILE).unlink()
    with pytest.raises(StoreError, match=r"--edit: none of 5 runs gave rows; of the first, .*: the file is cut"):
        lab.edit(folder, CELL, arms=["gated"])


def test_tiny_words_of_the_plan_are_kept_and_may_be_missing(tmp_path):
    from gatelab.study.study import Arm, Study

    made = make_plan(Study("s", "?", {"c": tiny.run()}, (Arm("none", {}),), seeds=1))
    assert "asked" not in lab.save_plan(made, tmp_path / "x").study()
    assert lab.save_plan(made, tmp_path / "x", asked=["s.py"]).study()["asked"] == ["s.py"]
