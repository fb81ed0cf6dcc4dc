"""gatelab submit of a study's folder: what is left of it, and the confirmation that is registered there."""

from pathlib import Path

import pytest

from gatelab import lab
from gatelab.analysis.registration import Claim, Registration
from gatelab.cli import _status
from gatelab.config import BigramBackcopy, ModelConfig, Run, TrainConfig
from gatelab.store import StudyFolder, write_json
from gatelab.study.study import Arm, Study

TOY = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2, mlp="relu", d_ff=40),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=1000, batch_size=2, seq_len=8),
)
ARMS = (Arm("none", {}), Arm("headwise", {"model.gate": "sdpa-headwise"}))


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Four runs, of which one is not done."""
    study = Study(name="fake", question="?", cells={"toy": TOY}, arms=ARMS, seeds=2)
    folder = lab.save_plan(lab.plan(study), tmp_path / "t1")
    for _, run in list(folder.planned())[1:]:
        run.mark_done("done", {"steps": 1})
    return folder


def submitted(folder: StudyFolder, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The script."""
    assert _status(["submit", str(folder.path), "--to", "slurm", "--dry-run", *words]) == 0
    path = folder.path / "slurm" / "submit.sh"
    assert str(path) in capsys.readouterr().out
    return path.read_text()


def test_what_is_left_is_handed_in(folder: StudyFolder, capsys: pytest.CaptureFixture[str]):
    before = folder.study()
    text = submitted(folder, capsys, "execution.threads=2", "--gpus", "2")
    assert "#SBATCH --array=0-0\n" in text and "#SBATCH --gres=gpu:2\n" in text
    assert f"-m gatelab.study.pull {folder.path} " in text and '{"threads": 2}' in text
    assert folder.study() == before


def test_so_is_a_registered_confirmation(folder: StudyFolder, capsys: pytest.CaptureFixture[str]):
    claim = Claim("effect", "toy", "headwise", "val_loss", -1, 0.001, 0.01)
    found = Registration([claim], [5, 6, 7], [0, 1], 0.05, 0.10, [])
    write_json(folder.path / "confirmation.json", found.as_json())
    assert _status(["submit", str(folder.path), "--to", "slurm", "--gpus", "1", "execution.processes=2"]) == 2
    assert len(folder.study()["plan"]) == 4
    assert "#SBATCH --array=0-6\n" in submitted(folder, capsys)
    assert [e["seed"] for e in folder.study()["plan"][4:]] == [5, 6, 7] * 2
