"""gatelab find and plan --pilot of a pack: what the folder says, and what would have to be written refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import toy

from gatelab import lab
from gatelab.cli import _status
from gatelab.config import override
from gatelab.record import Row
from gatelab.store import Appender, StudyFolder, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

STUDY = """
from gatelab import Arm, BigramBackcopy, ModelConfig, Run, Study, TrainConfig
run = Run(model=ModelConfig(d_model=16, n_layers=1, n_heads=2), data=BigramBackcopy(vocab_size=16), train=TrainConfig(seq_len=8))
study = Study("next", "?", {"a": run}, (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"})), seeds=7)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> StudyFolder:
    """Two cells, in one of which the gate harms."""
    arms = (Arm("none", {}), Arm("gated", {"model.gate": "sdpa-headwise"}))
    cells = {name: override(toy(), {"optim.lr": lr}) for name, lr in (("a", 1e-3), ("b", 2e-3))}
    out = tmp_path_factory.mktemp("runs") / "fake"
    there = lab.save_plan(make_plan(Study("fake", "?", cells, arms, seeds=5, primary=("val_loss",))), out)
    for entry, run in there.planned():
        rng = np.random.default_rng([entry["seed"], *entry["cell"].encode()])
        base, noise = rng.normal(3, 1), rng.normal(0, 0.05)
        loss = base + (0.5 * (entry["cell"] == "a") + noise) * (entry["arm"] == "gated")
        # Packs keep seven digits.
        looks = ((0, 9.0), (1, round(loss, 4)))
        rows = Appender(run.rows_path)
        rows.write([Row(run.fingerprint, step, "eval", "val_loss", value, "nats") for step, value in looks])
        rows.close()
        write_json(run.path / "environment.json", {"git": {"commit": "a" * 40, "modified": False}, "versions": {}})
        run.mark_done("done", {"steps": 1})
    return there


@pytest.fixture
def pack(folder, tmp_path) -> Path:
    """Alone in a folder, as results lie in docs/results."""
    home = tmp_path / "results" / "fake"
    home.mkdir(parents=True)
    return lab.pack(folder.path, home / "folder.parquet")


def said(capsys, *words) -> tuple[int, str, str]:
    status = _status([str(w) for w in words])
    found = capsys.readouterr()
    return status, found.out, found.err


def test_find_says_of_a_pack_or_its_folder_what_it_says_of_the_study(folder, pack, capsys):
    expected = said(capsys, "find", folder.path)
    assert expected[0] == 0 and "gated" in expected[1]
    assert said(capsys, "find", pack) == said(capsys, "find", pack.parent) == expected
    assert said(capsys, "find", folder.path, "--json")[1] == said(capsys, "find", pack, "--json")[1]
    assert sorted(p.name for p in pack.parent.iterdir()) == ["folder.parquet"], "nothing is written beside it"


def test_the_commands_of_a_card_name_the_packs_folder_and_no_copy(pack, capsys):
    status, out, err = said(capsys, "find", pack, "--explain", "a")
    assert status == 0 and f"--out {pack.parent}-" in out and "gatelab-study-" not in out + err
    assert f"in {pack.parent}; these runs anew" in out


@pytest.mark.parametrize("option", [["--register"], ["--explain", "a", "--edit"]])
def test_what_would_be_written_is_refused_with_the_command_that_unpacks(pack, capsys, option):
    status, out, err = said(capsys, "find", pack, *option)
    assert status != 0 and not out and len(err.splitlines()) == 1
    assert f"{pack} is read and not written; `gatelab unpack {pack} --out runs/fake` makes a folder of it" in err


def test_a_folder_of_several_packs_asks_for_one(pack, tmp_path, capsys):
    shutil.copytree(pack.parent, tmp_path / "results" / "other")
    status, _, err = said(capsys, "find", tmp_path / "results")
    assert status != 0 and "holds 2 studies; name one of them" in err and len(err.splitlines()) == 1


def test_a_pilot_may_be_a_pack(folder, pack, tmp_path, capsys):
    (tmp_path / "next.py").write_text(STUDY, encoding="utf-8")
    expected = said(capsys, "plan", tmp_path / "next.py", "--pilot", folder.path)
    assert expected[0] == 0 and "gated, val_loss (nats): a pair spreads " in expected[1]
    assert said(capsys, "plan", tmp_path / "next.py", "--pilot", pack) == expected


def test_what_is_neither_is_refused_as_before(tmp_path, capsys):
    status, _, err = said(capsys, "find", tmp_path / "nowhere")
    assert status != 0 and "no such folder" in err
    (tmp_path / "empty").mkdir()
    status, _, err = said(capsys, "find", tmp_path / "empty")
    assert status != 0 and "holds no study (no study.json)" in err and len(err.splitlines()) == 1
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    status, _, err = said(capsys, "find", tmp_path / "cut.parquet")
    assert status != 0 and "cut.parquet" in err and len(err.splitlines()) == 1 and "Traceback" not in err
