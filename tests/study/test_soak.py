"""A study whose workers and drivers are killed at random ends as it would have; and what is planted into one, the audit finds."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from carrier import folder as planned
from conftest import plant_attempt

from gatelab.config import Execution
from gatelab.store import RunFolder, StudyFolder, read_json
from gatelab.study import ledger
from gatelab.study.carry_out import carry_out

# Behind everything else: a benchmark may be called what a test's module is.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import audit


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """One run of six steps, done."""
    path = tmp_path_factory.mktemp("carried") / "study"
    run = tiny.run()
    made = planned(tmp_path_factory.mktemp("name"), run)
    entry = {"cell": "toy", "arm": "none", "seed": 0, "fingerprint": made.fingerprint, "n_parameters": 1}
    study = StudyFolder.create(path, {"name": "fake", "plan": [entry]})
    made = planned(path / "runs", run)
    attempt = ledger.claim(made, "me")
    carry_out([made], Execution(), should_stop=lambda: False)
    ledger.end(made, attempt, "done")
    return study


@pytest.fixture
def study(carried: StudyFolder, tmp_path: Path) -> StudyFolder:
    shutil.copytree(carried.path, tmp_path / "study")
    return StudyFolder.open(tmp_path / "study")


def found(study: StudyFolder, whole: StudyFolder) -> list[str]:
    ends = {run.fingerprint: "done" for _, run in study.planned()}
    return [
        *audit.wrong_ends(study, ends),
        *audit.done_twice(study),
        *audit.bad_rows(study),
        *audit.differing(study, whole),
        *audit.left_in_folder(study),
        *audit.leases_left(study),
    ]


def test_the_audit_finds_nothing_where_nothing_is_wrong(study: StudyFolder, carried: StudyFolder) -> None:
    assert found(study, carried) == []


def of_rows(change: Callable[[list[str]], list[str]]) -> Callable[[RunFolder], None]:
    def plant(run: RunFolder) -> None:
        run.rows_path.write_text("".join(change(run.rows_path.read_text().splitlines(keepends=True))))

    return plant


def losses(lines: list[str], step: int) -> list[str]:
    return [x for x in lines if json.loads(x)["metric"] == "loss" and json.loads(x)["step"] == step]


def second_end(run: RunFolder) -> None:
    plant_attempt(run, "done", started="2999-01-01T00:00:00.000+00:00")


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (lambda run: (run.path / "done.json").unlink(), "is planned, expected done"),
        (lambda run: run.mark_done("diverged", {}), "is diverged, expected done"),
        (second_end, "2 attempts say how it ended"),
        (second_end, "attempt 2 began after it was done"),
        (lambda run: plant_attempt(run, "running"), "attempt 2 still says running"),
        (of_rows(lambda lines: [x for x in lines if x not in losses(lines, 3)]), "has loss of 5 steps, expected 6"),
        (of_rows(lambda lines: lines + losses(lines, 3)), "has loss of step 3 twice"),
        (of_rows(lambda lines: [*lines[:-1], lines[-1][:20]]), "has a line that is no row"),
        (of_rows(lambda lines: [x.replace('"step":2', '"step":7') for x in lines]), "has lr of 6 steps, expected 6"),
        (of_rows(lambda lines: [x for x in lines if "val_loss" not in x]), "was looked at after steps []"),
        (of_rows(lambda lines: [*lines[:-1], lines[-1].replace('"value":', '"value":1')]), "its rows.jsonl differs"),
        (lambda run: os.truncate(run.path / "weights.safetensors", 100), "its weights.safetensors differs"),
        (lambda run: (run.path / ".progress.json.0a1b2c3d.tmp").touch(), "half a file"),
        (lambda run: (run.path / "checkpoint.safetensors").touch(), "done, and has checkpoint.safetensors"),
        (lambda run: (run.path / "attempts/0001.json").rename(run.path / "attempts/0002.json"), "attempts [2], expected 1"),
    ],
)  # fmt: skip
def test_what_is_planted_is_found(
    study: StudyFolder, carried: StudyFolder, plant: Callable[[RunFolder], None], says: str
) -> None:
    (_, run), *_ = study.planned()
    plant(run)
    assert any(says in problem for problem in found(study, carried)), found(study, carried)


def test_a_process_that_is_left_is_found_by_its_environment(tmp_path: Path) -> None:
    mark = f"SOAK={tmp_path}"
    name, _, value = mark.partition("=")
    assert not [*audit.orphans(mark)]
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=os.environ | {name: value}
    ) as left:
        (problem,) = audit.orphans(mark)
        assert re.match(rf"process {left.pid} is still there: .*input", problem)
        left.kill()
    assert not [*audit.orphans(mark)]


def test_what_is_left_outside_the_folder_is_found(tmp_path: Path) -> None:
    before = audit.shared()
    (tmp_path / "torchinductor_me").mkdir()
    assert not [*audit.left_outside(tmp_path, before)]
    (tmp_path / "gatelab-0a").mkdir()
    assert [*audit.left_outside(tmp_path, before)] == ["gatelab-0a: left in the folder for temporary files"]


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path) -> None:
    """Twenty runs, with something happening every two seconds for half a minute."""
    command = [
        sys.executable,
        str(Path(audit.__file__).with_name("soak.py")),
        "--minutes",
        "0.5",
        "--runs",
        "20",
        "--pace",
        "2",
    ]
    done = subprocess.run(
        [*command, "--results", str(tmp_path), "train.tokens=25600"], capture_output=True, text=True, check=False
    )
    (results,) = tmp_path.glob("soak_*.json")
    found = read_json(results)
    assert done.returncode == 0, found["checks"]
    assert found["states"] == {"done": 16, "diverged": 2, "failed": 2} and found["acts"]
    assert len(found["checks"]) == 11 and not any(found["checks"].values())
