"""What killed processes leave in a study's folder goes when a driver comes by, and nothing else does."""

import os
from pathlib import Path

import pytest
from conftest import make_study, plant_attempt, set_age
from test_drive import Scripted, go

from gatelab.store import RunFolder, StudyFolder
from gatelab.study.leftovers import OLD_S, clear_old

HALF = ".0a1b2c3d.tmp"


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A run that is done, and a planned one."""
    made = make_study(tmp_path / "study", 2)
    next(made.planned())[1].mark_done("done", {"steps": 1})
    return made


def leave(run: RunFolder) -> list[Path]:
    """What a worker may leave that is killed after its last word."""
    left = [
        *(run.path / name for name in ("checkpoint.safetensors", f".progress.json{HALF}", f".rows.parquet{HALF}")),
        *(run.path / "attempts" / name for name in (f".0001.json{HALF}", f".clock{HALF}")),
        run.path / "checkpoint" / "step-000000040" / "index.json",
    ]
    left[-1].parent.mkdir(parents=True)
    for path in left:
        path.write_text("{")
    return left


def drive_on(folder: StudyFolder) -> None:
    go(folder, Scripted(lambda run, times: "done"))


def test_a_finished_run_whose_owner_is_gone_is_cleared(folder: StudyFolder) -> None:
    (_, run), (_, other) = folder.planned()
    plant_attempt(run)
    set_age(run.path / "attempts" / "0001.json", OLD_S)
    left = leave(run)
    drive_on(folder)
    assert not any(path.exists() for path in left) and not (run.path / "checkpoint").exists()
    assert [a["outcome"] for a in run.attempts()] == ["done"] and "before it could say so" in run.attempts()[0][
        "message"
    ]
    assert run.done()["status"] == other.done()["status"] == "done"


def test_a_finished_run_whose_owner_lives_is_left_to_it(folder: StudyFolder) -> None:
    (_, run), _ = folder.planned()
    plant_attempt(run)
    left = leave(run)
    drive_on(folder)
    assert all(path.exists() for path in left)
    assert [a["outcome"] for a in run.attempts()] == ["running"]


def test_a_folder_that_cannot_be_written_is_left_as_it_is(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, run), _ = folder.planned()
    (run.path / "checkpoint.safetensors").write_text("{")
    unlink = os.unlink

    def refuse(path: str | Path, **at: int) -> None:
        if "checkpoint" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **at)

    monkeypatch.setattr(os, "unlink", refuse)
    drive_on(folder)
    assert (run.path / "checkpoint.safetensors").exists()


def test_old_halves_of_drivers_go_and_young_ones_and_all_else_stay(folder: StudyFolder) -> None:
    (_, run), (_, planned) = folder.planned()
    old = [folder.path / f".study.json{HALF}", *(r.path / f".run.json{HALF}" for r in (run, planned))]
    kept = [
        folder.path / f".report.html{HALF}",
        folder.path / ".notes.of.mine.tmp",
        planned.path / ".run.json.00000000.tmp",
    ]
    for path in (*old, *kept):
        path.write_text("{")
    for path in (*old, kept[1]):
        set_age(path, OLD_S + 60)
    clear_old(folder)
    assert not any(path.exists() for path in old) and all(path.exists() for path in kept)
