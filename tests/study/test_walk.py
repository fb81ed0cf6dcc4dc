"""The walk of docs/scale.md, as far as nothing is trained: the study that it shows is planned, and what it says is printed is."""

import re
import sys
from pathlib import Path

import pytest

from gatelab.cli import _status

TEXT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
WALK = TEXT[: TEXT.index("\n## Who can reach what")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (study,) = re.findall(r"```python\n(.*?)```", WALK, re.DOTALL)
    (tmp_path / "study.py").write_text(study)
    return tmp_path


def test_the_plan_is_the_one_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["plan", "study.py"]) == 0
    said = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert f"$ gatelab plan study.py\n{said}\n" in WALK


def test_the_batch_script_is_the_one_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^\$ gatelab (submit study\.py .*)$", WALK, re.MULTILINE)
    assert _status([*command.split(), "--dry-run"]) == 0
    path = here / "shared" / "walk" / "slurm" / "submit.sh"
    script = path.read_text().replace(f"{here.resolve()}/", "…/").replace(sys.executable, "python")
    assert f"```\n{script}```\n" in WALK
    assert f"of {path.relative_to(here)}\n" in WALK


@pytest.mark.parametrize(
    "words", re.findall(r"^\$ gatelab run study\.py (seed=\S+|execution\S+(?: execution\S+)*)", WALK, re.M)
)
def test_what_is_typed_on_one_machine_can_be_planned(words: str, here: Path) -> None:
    assert _status(["plan", "study.py", *words.split()]) == 0


def test_help_warns_that_a_study_file_is_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "plan", "submit"):
        assert _status([command, "--help"]) == 0
        said = " ".join(re.sub(r"[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
        assert "A study file is Python, and planning it runs it" in said
