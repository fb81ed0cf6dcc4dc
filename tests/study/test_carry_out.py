"""What carrying out a run writes, what it refuses, and that several processes write once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from carrier import LONG, SHORT, WILD, folder, rows
from safetensors.torch import save_file

from gatelab.config import Execution, ProbeConfig, Text, TrainConfig
from gatelab.models import build_model
from gatelab.store import read_json
from gatelab.study.carry_out import carry_out
from gatelab.study.code import code_hash
from gatelab.train.checkpoint import CheckpointError, load_weights, read_tensors, write_tensors
from gatelab.train.group import resolve


def never() -> bool:
    return False


def test_every_step_and_every_look_has_its_rows(tmp_path: Path) -> None:
    run = folder(tmp_path, SHORT)
    carry_out([run], Execution(), should_stop=never)
    found = rows(run)
    for metric in ("loss", "grad_norm", "lr"):
        assert [r["step"] for r in found if r["metric"] == metric] == [1, 2]
    whole = [r["step"] for r in found if r["metric"] == "val_loss" and "domain" not in r]
    assert whole == [0, 1, 2] and {r["run"] for r in found} == {run.fingerprint}
    assert [r.get("threshold") for r in found if r["metric"] == "loss_spikes"] == [0.1, 7.0, None]
    assert run.done()["status"] == "done" and run.done()["steps"] == 2
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["device"] == "cpu" and facts["threads"] == 1 and facts["compute_dtype"] == "float32"
    assert facts["code"] == code_hash()
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    model = build_model(resolve(SHORT).model)
    assert load_weights(model, run.path / "weights.safetensors") == 2


def test_rows_of_steps_may_be_kept_now_and_then(tmp_path: Path) -> None:
    probe = ProbeConfig(times=1, sequences=1, eval_sequences=1, every=3)
    run = folder(tmp_path, tiny.run(steps=7, probe=probe))
    carry_out([run], Execution(), should_stop=never)
    for metric in ("loss", "grad_norm", "lr"):
        assert [r["step"] for r in rows(run) if r["metric"] == metric] == [3, 6, 7]


def test_a_stack_that_was_stopped_keeps_the_same_steps(tmp_path: Path) -> None:
    probe = ProbeConfig(times=1, sequences=1, eval_sequences=1, every=3)
    optims = (tiny.run().optim, WILD)  # the second diverges between two steps that are kept
    at_once, stopped = (
        [folder(tmp_path / name, tiny.run(steps=11, probe=probe, optim=optim)) for optim in optims] for name in "ab"
    )
    carry_out(at_once, Execution(), should_stop=never)
    while not stopped[0].done():
        calls = iter((False, True))
        carry_out(stopped, Execution(), should_stop=lambda calls=calls: next(calls))
    assert [rows(run) for run in stopped] == [rows(run) for run in at_once]
    assert [[r["step"] for r in rows(run) if r["metric"] == "loss"] for run in at_once] == [[3, 6, 9, 11], [2]]


def test_a_run_that_goes_on_under_other_code_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = [folder(tmp_path / "run", tiny.run(steps=4))]
    for code in ("c1", "c2"):
        monkeypatch.setattr("gatelab.study.carry_out.code_hash", lambda code=code: code)
        calls = iter((False, True))
        carry_out([run], Execution(), should_stop=lambda calls=calls: next(calls))
    told = read_json(run.path / "environment.json")
    assert (told["earlier_code"], told["code"]) == (["c1"], "c2")


def test_a_divergence_is_a_result(tmp_path: Path) -> None:
    runs = [folder(tmp_path, LONG.model_copy(update={"optim": WILD})), folder(tmp_path, LONG)]
    carry_out(runs, Execution(), should_stop=never)
    assert [r.done()["status"] for r in runs] == ["diverged", "done"]
    (row,) = (r for r in rows(runs[0]) if r["metric"] == "diverged")
    steps = [r["step"] for r in rows(runs[0]) if r["metric"] == "loss"]
    assert steps == list(range(1, row["step"] + 1)) and row["step"] < 20
    assert not [r for r in rows(runs[0]) if r["metric"] == "val_loss" and r["step"] >= row["step"]]
    assert not [r for r in rows(runs[1]) if r["metric"] == "diverged"] and runs[1].done()["steps"] == 120


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_version(path: Path) -> None:
    tensors, state = read_tensors(path)
    save_file(tensors, path, metadata={"gatelab": json.dumps({**state, "schema": 0})})


def of_another_model(path: Path) -> None:
    tensors, state = read_tensors(path)
    tensors["model.head.weight"] = torch.zeros(3, 3)
    write_tensors(path, tensors, state)


def weights_alone(path: Path) -> None:
    tensors, _ = read_tensors(path)
    write_tensors(path, tensors, {"step": 1})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "cut or damaged. Delete it to start this run from step 0"),
        (of_another_version, "written by another version"),
        (of_another_model, r"head.weight has shape \(3, 3\), expected \(17, 16\)"),
        (weights_alone, "holds weights only, no training state"),
    ],
)
def test_a_damaged_checkpoint_is_told_and_nothing_is_lost(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    run = folder(tmp_path, SHORT)
    carry_out([run], Execution(), should_stop=lambda: True)
    harm(run.path / "checkpoint.safetensors")
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    with pytest.raises(CheckpointError, match=message):
        carry_out([run], Execution(), should_stop=never)
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before


def test_data_that_changed_since_planning_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATELAB_CACHE", str(tmp_path / "cache"))
    texts = [tmp_path / f"{i}.txt" for i in range(40)]
    for i, text in enumerate(texts):
        text.write_text(f"document {i}: " + "what a gate does to attention. " * (i + 3))
    run = tiny.run(
        model={"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16},
        data=Text(paths=tuple(map(str, texts))),
        train=TrainConfig(tokens=64, batch_size=2, seq_len=16),
    )
    planned, other = folder(tmp_path / "a", run), folder(tmp_path / "b", run)
    carry_out([planned], Execution(), should_stop=never)
    assert planned.done()["status"] == "done"
    texts[3].write_text("changed since. " * 20)
    with pytest.raises(
        ValueError, match=r"its data or configuration changed since it was planned .* plan the study again"
    ):
        carry_out([other], Execution(), should_stop=never)
    assert not other.rows_path.exists() and not (other.path / "environment.json").exists()


def test_a_run_starts_from_the_weights_that_it_names(tmp_path: Path) -> None:
    first = folder(tmp_path, SHORT)
    carry_out([first], Execution(), should_stop=never)
    second = folder(tmp_path, SHORT.model_copy(update={"init_from": first.fingerprint, "seed": 5}))
    carry_out([second], Execution(), should_stop=never)
    last, start = (
        [r["value"] for r in rows(run) if r["metric"] == "val_loss" and "domain" not in r] for run in (first, second)
    )
    assert start[0] == last[-1] and start[0] != last[0]
    lost = folder(tmp_path, SHORT.model_copy(update={"init_from": "0123456789ab"}))
    with pytest.raises(CheckpointError, match=r"0123456789ab/weights.safetensors: no such file"):
        carry_out([lost], Execution(), should_stop=never)


def test_two_processes_write_once_and_stop_together(tmp_path: Path) -> None:
    """One of the two is asked to stop after a step: both leave, and the other has saved. Then they carry on."""
    run, alone = folder(tmp_path / "two", SHORT), folder(tmp_path / "one", SHORT)
    carry_out([alone], Execution(), should_stop=never)

    def as_two(part: str) -> None:
        script = Path(__file__).with_name("carry_out_as_two.py")
        environ = os.environ | {"PYTHONPATH": str(Path(tiny.__file__).parent)}
        subprocess.run([sys.executable, script, run.path, part], env=environ, check=True, timeout=300)

    as_two("stopped")
    assert run.done() is None and read_tensors(run.path / "checkpoint.safetensors")[1]["step"] == 1
    as_two("finished")
    found, expected = rows(run), rows(alone)
    assert [{**r, "value": 0} for r in found] == [{**r, "value": 0} for r in expected]
    assert [r["value"] for r in found] == pytest.approx([r["value"] for r in expected], rel=1e-3, abs=1e-5)
    assert json.loads((run.path / "environment.json").read_text())["processes"] == 2


def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    """A hundred steps with a checkpoint each and ten looks leave less than 4 MB more in use."""
    probe = ProbeConfig(times=15, sequences=1, eval_sequences=1)
    run = folder(tmp_path, tiny.run(steps=150, probe=probe))
    in_use: list[int] = []

    def look() -> bool:
        in_use.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
        return False

    carry_out([run], Execution(checkpoint_s=0), should_stop=look)
    assert len(in_use) == 150 and in_use[-1] - in_use[50] < 4e6
