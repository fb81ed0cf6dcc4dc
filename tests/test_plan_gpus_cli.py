"""gatelab plan on GPUs: tables, records, the layout's check, and one message for what cannot be."""

import json
import subprocess
import sys

import pytest

from gatelab.cli import _status

STEP = ("--size", "64x2x4x256", "--tokens", "4096", "--context", "64")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = _status(["plan", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_one_number_of_gpus_is_planned_and_laid_out(capsys):
    status, out, _ = plan(capsys, *STEP, "--gpus", "8", "--tp", "2", "model.gate=sdpa-headwise")
    assert status == 0
    assert "dp 4 tp 2" in out and "layout on 8 fake ranks holds" in out


def test_several_numbers_are_rows_of_one_table_each_of_which_has_a_record(capsys):
    status, out, _ = plan(capsys, *STEP, "--gpus", "1..8")
    assert status == 0 and "fake ranks" not in out
    _, out, _ = plan(capsys, *STEP, "--gpus", "1..8", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["gpus"] for r in records] == [1, 2, 4, 8]
    assert [r["timed"] for r in records] == ["timed", "not timed", "not timed", "not timed"]
    first = records[0]
    assert first["bytes"]["total"] == sum(v for k, v in first["bytes"].items() if k != "total")
    assert all(sent == 0 for sent in first["sent_bytes"].values()) and first["layout"] is None


def test_speeds_are_ranges_that_say_whether_such_a_mesh_was_timed(capsys):
    _, out, _ = plan(capsys, *STEP, "--gpus", "1,64")
    speeds = [line.split() for line in out.partition("such a mesh\n")[2].splitlines()[:2]]
    assert [line[0] for line in speeds] == ["1", "64"] and all(line.count("to") == 3 for line in speeds)
    assert speeds[0][-1] == "timed" and speeds[0][-2] != "not" and speeds[1][-2:] == ["not", "timed"]
    assert "no step on such a mesh of H100s was, nor any on more than two GPUs" in out
    assert "again" not in out and "micro-batch: sequences of a group" in out


def test_a_study_says_its_own_steps(capsys):
    status, out, _ = plan(capsys, "paper-long-context", "--gpus", "8,1024", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert {r["job"] for r in records} == {
        f"{c} / {a}" for c in ("short", "long") for a in ("none", "sdpa-elementwise")
    }
    assert {(r["tokens"], r["context"]) for r in records} == {(2048 * 4096, 4096), (2048 * 4096, 32_768)}
    weights = {r["n_parameters"] for r in records}
    assert max(weights) / min(weights) < 1.001  # the gated arm is narrowed as its runs are


def test_of_several_numbers_those_that_cannot_be_are_told_and_the_others_shown(capsys):
    status, out, err = plan(capsys, *STEP, "--gpus", "64,128", "--tp", "1")
    assert status == 0 and "dp 64" in out and "dp 128" not in out
    assert "on 128 GPUs" in err and "64 has fewer sequences than 128" in err


def test_what_fits_with_recompute_alone_does_not_fit_and_says_so(capsys):
    words = ("--size", "70b", "--context", "16384", "--gpus", "32,64,128")
    _, out, _ = plan(capsys, *words)
    assert "NO as it is; with --recompute 64 GPUs would do, and execution.recompute=layer trains so" in out
    _, out, _ = plan(capsys, *words, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["fits"] for r in records] == [False, False, True] and not any(r["recompute"] for r in records)
    _, out, _ = plan(capsys, *words, "--recompute")
    assert (
        "again: blocks are computed a second time" in out
        and "execution.recompute=layer" in out
        and "NO as it is" not in out
    )


BAD = {
    "": "name a study, or a size",
    "--gpus 8": "name a study, or a size",
    "--gpus 8 --tp 2": "name a study, or a size",
    "--size 8bb": "no size|expected one of",
    "--size 64x2x4x256 --gpus 3 --tp 3": "tp=3 does not divide model.n_heads=4",
    "--size 64x2x4x256 --gpus 4 --tp 3": "tp=3 does not divide 4 GPUs",
    "--size moe-80m --gpus 3 --ep 3 --tokens 3072": "ep=3 does not divide model.moe.n_experts=32",
    "--size 64x2x4x256 --gpus 2 --ep 2": "this model has none",
    "--size 64x2x4x256 --gpus x": "--gpus x: expected a number",
    "--size 64x2x4x256 --gpus 8..2": "--gpus 8..2: expected a number",
    "--size 64x2x4x256 --gpus 2 --dp 0": "dp=0: expected 1 or more",
    "--size 64x2x4x256 --gpus 2 --micro-batch -1": "micro_batch=-1 does not divide",
    "--size 64x2x4x256 --gpus 0": "--gpus 0: expected a number",
    "--size 64x2x4x256 --tokens 0": "--tokens 0: expected 1 or more",
    "--size 64x2x4x256 --tokens 100 --context 64": "tokens=100 is not a number of whole sequences",
    "--size 64x2x4x256 optim.lr=1": "optim",
    "--size 64x2x4x256 model.gate=[none,sdpa-headwise]": "one size takes one value",
    "quickstart --size 8b": "a study or a size",
    "quickstart --tp 2": "say how many, as in --gpus 64",
    "quickstart --gpus 2": "state model.vocab_size",
    "quickstart --gpus 2 --tokens 5": "set train.batch_size",
    "--size 8b --pilot runs/x": "leave out one of the two",
}


@pytest.mark.parametrize("words", BAD)
def test_a_mistake_is_one_message(words: str, capsys):
    status, out, err = plan(capsys, *words.split())
    assert status == 2 and out == ""
    assert any(part in err for part in BAD[words].split("|")), err
    assert "Traceback" not in err


def test_planning_for_many_gpus_loads_no_torch():
    code = (
        "import sys; from gatelab.cli import _status\n"
        "assert _status(['plan', '--size', '8b', '--gpus', '8,64']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "MFU" in done.stdout
