"""The benchmark of late reads trains one group under two rules, by turns."""

import json
import sys
from pathlib import Path

import pytest

from gatelab.train import loop

# Behind everything else: a benchmark may be called what a test's module is.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import step_reads


def test_turns_of_one_group_wait_or_are_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(loop.AHEAD, "cpu", 1)
    seen, own = [], step_reads.ms_a_step

    def noted(steps, group, **given) -> float:
        ms = own(steps, group, **given)
        seen.append(group.ahead)
        return ms

    monkeypatch.setattr(step_reads, "ms_a_step", noted)
    out, words = tmp_path / "reads.jsonl", ["--device", "cpu", "--rounds", "2", "--turn-s", "0", "--host-ms", "0"]
    step_reads.main(["--cases", "tiny", *words, "--out", str(out)])
    assert seen == [0, 1, 1, 0]
    record = json.loads(out.read_text())
    assert record["waiting_ms"] > 0 < record["ahead_ms"] and "tiny" in capsys.readouterr().out


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(SystemExit, match="64"):
        step_reads.main(["--cases", "65", "--device", "cpu"])
