"""gatelab run and submit of a study's folder that lies where leases cannot be taken: one line, before anything starts."""

import errno
import os
from pathlib import Path

import pytest
from command import gatelab

from gatelab import lab
from gatelab.config import BigramBackcopy, Execution, ModelConfig, Run, TrainConfig
from gatelab.store import StudyFolder
from gatelab.study import ledger
from gatelab.study.drive import drive
from gatelab.study.executor import EXITS, Ended, Task
from gatelab.study.local import LocalExecutor
from gatelab.study.study import Arm, Study

TOY = Run(
    model=ModelConfig(d_model=16, n_layers=1, n_heads=2),
    data=BigramBackcopy(vocab_size=16),
    train=TrainConfig(tokens=1000, batch_size=2, seq_len=8),
)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    study = Study(name="fake", question="?", cells={"toy": TOY}, arms=(Arm("none", {}),), seeds=2)
    return lab.save_plan(lab.plan(study), tmp_path / "t1")


def refuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system without links, or without renames, does."""

    def refused(source: Path, target: Path, **_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(target))

    monkeypatch.setattr(os, name, refused)


@pytest.mark.parametrize("call", ["link", "replace"])
@pytest.mark.parametrize("words", [("run",), ("submit", "--to", "slurm"), ("submit", "--to", "slurm", "--dry-run")])
def test_a_folder_without_links_or_renames_is_refused_before_anything_starts(
    words: tuple[str, ...], call: str, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    monkeypatch.setattr(LocalExecutor, "__init__", lambda *_: pytest.fail("workers were started"))
    refuse(call, monkeypatch)
    status, out, err = gatelab(words[0], folder.path, *words[1:])
    assert status == 2 and out == ""
    assert err.count("\n") == 1 and f"{folder.path}: leases need a file system with hard links and renames" in err
    assert {
        path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()
    }.items() <= before.items()
    assert not list(folder.path.rglob("*.tmp"))


class Vanishing:
    """An executor whose workers left without a word, as those do that cannot take a lease."""

    slots, has_gpus = 1, False

    def __init__(self) -> None:
        self.handles: list[str] = []

    def submit(self, task: Task) -> str:
        self.handles.append(task.owner)
        return task.owner

    def poll(self, timeout: float) -> list[Ended]:
        ended, self.handles = self.handles, []
        return [Ended(handle, EXITS["lost"], None) for handle in ended]


def test_runs_whose_leases_cannot_be_taken_any_more_are_not_called_damaged(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are refused once the study has begun: the drive ends in one sentence, and the runs are as they were."""
    refuse("link", monkeypatch)
    summary = drive(folder, Vanishing(), Execution(), entries=folder.study()["plan"])
    assert "leases need a file system with hard links): 2 runs keep what they had" in summary.halted
    assert ledger.DAMAGED not in summary.states.values()
    assert {ledger.state_of(run) for _, run in folder.planned()} == {"planned"}
