"""Whoever can write into a study's folder can plant pickles there: no command opens one as what it is."""

import os
import pickle
from pathlib import Path

import pytest
from command import gatelab
from tiny import toy

from gatelab import lab
from gatelab.config import override
from gatelab.study.plan import make_plan
from gatelab.study.study import Arm, Study

NAMES = (
    "checkpoint.safetensors", "weights.safetensors", "rows.jsonl", "state.pt", "run.pkl", ".metadata", "digest.json",
    "checkpoint/step-000000001/.metadata", "checkpoint/step-000000001/index.json",
    "checkpoint/step-000000001/rank-0000.safetensors",
)  # fmt: skip


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.sign),)


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """What is there once a pickle was opened."""
    sign = tmp_path / "opened"
    pickle.loads(pickle.dumps(Planted(sign)))
    assert sign.exists()
    sign.rmdir()
    return sign


@pytest.fixture
def folder(tmp_path: Path, sign: Path) -> Path:
    """A run that is not begun, with a pickle under each name that some program would trust."""
    short = override(toy(), {"train.tokens": 4 * 16 * 2, "train.batch_size": 4, "train.seq_len": 16})
    plan = make_plan(Study("made", "What?", {"toy": short}, (Arm("none", {"model.gate": "none"}),), seeds=1))
    there = lab.save_plan(plan, tmp_path / "made")
    (_, run), = there.planned()  # fmt: skip
    for place in (there.path, run.path):
        for name in NAMES:
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(Planted(sign)))
    return there.path


@pytest.mark.parametrize(
    "words", ["status {}", "find {}", "report {}", "plan {}", "logs {}", "pack {} --out {}.parquet"]
)
def test_no_command_opens_a_pickle_of_a_study(words: str, folder: Path, sign: Path) -> None:
    status, _, said = gatelab(*words.format(folder, folder).split())
    assert status in (0, 1, 2) and not sign.exists() and "Traceback" not in said


@pytest.mark.parametrize("words", ["probe {}", "convert {} {}-out --to gatelab", "eval {}"])
def test_no_command_opens_a_pickle_of_a_run(words: str, folder: Path, sign: Path) -> None:
    (run,) = (folder / "runs").iterdir()
    status, _, said = gatelab(*words.format(run, run).split())
    assert status in (1, 2) and said and not sign.exists() and "Traceback" not in said


def test_a_run_is_not_resumed_from_one(folder: Path, sign: Path) -> None:
    status, said, err = gatelab("run", folder, "execution.device=cpu")
    assert not sign.exists() and "Traceback" not in said + err
    assert status == 0 or "checkpoint" in said + err
