"""The script that compares merges: it runs through in Triton's interpreter, chooses by known times and writes the name."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "ops" / "decode_merge.py"
SOURCE = ROOT / "gatelab" / "ops" / "gated_decode" / "merges.py"
IN_USE = re.search(r'^MERGE = "(.+)"$', SOURCE.read_text(encoding="utf-8"), re.MULTILINE)[1]
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
        spec = importlib.util.spec_from_file_location("decode_merge", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def test_it_runs_in_the_interpreter_with_every_merge_and_gate(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out), "--seconds", "60"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    judged = {row["name"].split(",")[0] for row in rows if row["kind"] == "contract" and row["holds"]}
    timed = {(row["merge"], row["gate"]) for row in rows if row["kind"] == "time"}
    assert len(judged) == 7
    assert timed == {(merge, gate) for merge in judged for gate in ("none", "headwise", "elementwise")}
    assert {row["kind"] for row in rows} >= {"about", "prepared", "reason", "rank", "verdict", "cut"}
    # Two rounds are too few to take anything.
    assert [row["best"] for row in rows if row["kind"] == "verdict"] == [IN_USE]


US = {
    "today": (10.0, 10.7, 10.4),
    "faster, in ratio worse": (9.0, 9.3, 9.2),
    "within the goal": (9.5, 9.6, 9.6),
    "gated alone": (10.2, 9.0, 9.0),
}


def test_the_goal_comes_first_and_nothing_may_be_slower(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    shape = script.TIMED[0]
    times = {
        f"{name}, {word}": [us + 0.001 * i for i in range(30)]
        for name, of in US.items()
        for word, us in zip(script.WORDS, of, strict=True)
    }
    log = script.Log(None)
    assert script.verdict(log, {shape: times}, list(US), (shape,)) == "within the goal"
    assert script.verdict(log, {shape: times}, list(US)[:2], (shape,)) == "faster, in ratio worse"
    assert script.verdict(log, {shape: times}, ["today", "gated alone"], (shape,)) == "today"
    # A shape that was not timed: nothing is known.
    assert script.verdict(log, {shape: times}, list(US), script.TIMED) == "today"
    ranks = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"rank"' in line]
    assert [row["missed"] for row in ranks[:4]] == [2, 2, 0, 0]
    assert ranks[3]["slower"] == [f"none, {tuple(shape)}"]


def test_adopting_changes_the_name_and_nothing_else(script: ModuleType, tmp_path: Path) -> None:
    file, before = tmp_path / "merges.py", SOURCE.read_text(encoding="utf-8")
    file.write_text(before, encoding="utf-8")
    script.adopt(file, "another")
    after = file.read_text(encoding="utf-8")
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert changed == [(f'MERGE = "{IN_USE}"', 'MERGE = "another"')]
