"""Runs that processes share are carried out, killed, and resumed on other meshes: the same rows. And what their checkpoints are."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from carrier import folder, rows
from command import gatelab

from gatelab.config import Execution, ModelConfig, ProbeConfig
from gatelab.models.interop import load_model
from gatelab.store import RunFolder, StudyFolder
from gatelab.study.carry_out import carry_out
from gatelab.study.drive import drive
from gatelab.study.grouping import stands_at
from gatelab.study.local import LocalExecutor
from gatelab.train import sharded_checkpoint as sharded
from gatelab.train.checkpoint import CheckpointError, read_tensors
from gatelab.train.checkpoint_folder import clear, folder_of, steps
from gatelab.train.group import Group
from gatelab.train.loop import train

# A gate on the one kv head, which two ranks then see; experts; and a head that is not tied.
MODEL = {"d_model": 16, "n_heads": 4, "n_kv_heads": 1, "n_layers": 2, "init": "fan-in"}
EXPERTS = {"n_experts": 4, "top_k": 2, "d_expert": 8, "balance": 0.3, "z": 0.1}
RUN = tiny.run(
    steps=10,
    model=ModelConfig(**MODEL, moe=EXPERTS, gate="sdpa-headwise+value-headwise"),
    probe=ProbeConfig(times=2, sequences=1, eval_sequences=1),
)


def on_meshes(run: RunFolder, *rounds: dict[str, Any]) -> list[dict[str, Any]]:
    """Carry a run out in rounds; how the ranks of each ended, and which checkpoints were there."""
    tests = Path(tiny.__file__).parent
    paths = ":".join(str(tests / place) for place in ("", "train", "study"))
    command = [sys.executable, tests / "study" / "carry_out_on_mesh.py", run.path, json.dumps(rounds)]
    environ = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, timeout=500, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def same(run: RunFolder, alone: RunFolder) -> None:
    """The rows of one process, up to rounding; and nothing left but what a finished run has."""
    found, expected = rows(run), rows(alone)
    assert [{**r, "value": 0} for r in found] == [{**r, "value": 0} for r in expected]
    assert [r["value"] for r in found] == pytest.approx([r["value"] for r in expected], rel=1e-4, abs=1e-5)
    losses = [[r["value"] for r in of if r["metric"] == "loss"] for of in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert run.done()["status"] == "done" and not (run.path / "checkpoint").exists()
    tensors, weights = (read_tensors(r.path / "weights.safetensors")[0] for r in (run, alone))
    assert tensors.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(tensors[name], weight, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = folder(tmp_path_factory.mktemp("alone"), RUN)
    carry_out([run], Execution(), should_stop=lambda: False)
    return run


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, list[dict[str, Any]]]:
    """A run that began on one process and ended on two, with meshes between, each asked to stop but the last."""
    run = folder(tmp_path_factory.mktemp("moved"), RUN)
    found = on_meshes(
        run,
        {"n": 1, "mesh": "", "stop_after": 2, "checkpoint_s": 99},
        {"n": 2, "mesh": "shard=zero3", "stop_after": 2, "rank": 1, "checkpoint_s": 99},
        {"n": 2, "mesh": "tp=2", "stop_after": 1},
        {"n": 1, "mesh": "", "stop_after": 1},
        {"n": 2, "mesh": "ep=2 shard=zero2", "stop_after": 2},
        {"n": 2, "mesh": ""},
    )
    return run, found


def test_a_run_goes_on_at_another_world_size_and_mesh(moved: tuple[RunFolder, list], alone: RunFolder) -> None:
    run, found = moved
    assert all(not any(one["ends"]) for one in found)
    same(run, alone)


def test_a_rank_stops_all_and_what_is_whole_is_kept(moved: tuple[RunFolder, list]) -> None:
    kept = [[int(name.split("/")[1].removeprefix("step-")) for name in one["kept"]] for one in moved[1]]
    # One process writes one file; and a folder from before is removed when there is a newer checkpoint.
    assert kept == [[], [4], [4, 5], [], [7, 8], []]


def test_ranks_killed_at_any_moment_resume_to_the_same_rows(tmp_path: Path, alone: RunFolder) -> None:
    """In the middle of a step; in the middle of files, between a file and its name, before the index: by turns the first rank and
    the second."""
    run = folder(tmp_path, RUN)
    rounds = [{"n": 2, "mesh": "tp=2", "rank": 1, "die_past": [1, random.Random(0).random() * 0.01]}]
    rounds += [
        {"n": 2, "mesh": mesh, "rank": rank, "die_at": at}
        for mesh, rank, at in (
            ("shard=zero3", 0, 9),
            ("ep=2", 1, 4),
            ("tp=2", 0, 14),
            ("shard=zero2", 1, 9),
        )
    ]
    found = on_meshes(run, *rounds, {"n": 2, "mesh": "shard=zero3"})
    for one, done in zip(found, rounds, strict=False):
        assert one["ends"][done["rank"]] == -9 and one["ends"][1 - done["rank"]] in (0, 1)
    assert found[-1]["ends"] == [0, 0]
    same(run, alone)


@pytest.mark.slow
def test_ranks_killed_at_random_moments_of_training_resume_to_the_same_losses(tmp_path: Path) -> None:
    """Whatever a rank does at that moment: each is some steps on, and then anywhere within two. It saves after every step, so
    none of the steps up to that of the moment is lost."""
    long = RUN.model_copy(update={"train": RUN.train.model_copy(update={"tokens": 8 * RUN.train.tokens})})
    alone, run, moments = folder(tmp_path / "alone", long), folder(tmp_path / "killed", long), random.Random(1)
    carry_out([alone], Execution(), should_stop=lambda: False)
    rounds = [
        {"n": 2, "mesh": mesh, "rank": i % 2, "die_past": [8 * i + moments.randrange(1, 8), moments.random() * 0.06]}
        for i, mesh in enumerate(
            ("shard=zero3", "tp=2", "ep=2", "shard=zero2", "ep=2 shard=zero3", "tp=2", "shard=zero3")
        )
    ]
    found = on_meshes(run, *rounds, {"n": 2, "mesh": "shard=zero2"})
    assert [one["ends"][done["rank"]] for one, done in zip(found, rounds, strict=False)] == [-9] * len(rounds)
    reached = [max(int(name.split("-")[1].split("/")[0]) for name in one["kept"]) for one in found[:-1]]
    assert all(n >= done["die_past"][0] for n, done in zip(reached, rounds, strict=True)) and reached == sorted(reached)
    assert found[-1]["ends"] == [0, 0]
    same(run, alone)


@pytest.mark.slow
def test_every_operation_on_a_file_may_be_the_last(tmp_path: Path, alone: RunFolder) -> None:
    run = folder(tmp_path, RUN)
    rounds = [{"n": 2, "mesh": "shard=zero3", "rank": at % 2, "die_at": at // 2} for at in range(2, 44)]
    assert on_meshes(run, *rounds, {"n": 2, "mesh": "shard=zero3"})[-1]["ends"] == [0, 0]
    same(run, alone)


@pytest.mark.slow
def test_four_processes_go_on_from_two(tmp_path: Path, alone: RunFolder) -> None:
    run = folder(tmp_path, RUN)
    found = on_meshes(
        run,
        {"n": 4, "mesh": "dp=2 tp=2 shard=zero3", "stop_after": 2},
        {"n": 2, "mesh": "ep=2", "stop_after": 2},
        {"n": 4, "mesh": "ep=2 shard=zero3", "stop_after": 1},
        {"n": 4, "mesh": "tp=4", "rank": 3, "die_at": 6},
        {"n": 4, "mesh": "shard=zero2"},
    )
    assert [sorted(one["ends"])[0] for one in found] == [0, 0, 0, -9, 0]
    same(run, alone)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of which two processes left the checkpoints of steps 2 and 3."""
    run = folder(tmp_path_factory.mktemp("stopped"), RUN)
    on_meshes(run, {"n": 2, "mesh": "shard=zero3", "stop_after": 3})
    return run


def test_a_half_written_checkpoint_is_never_chosen(stopped: RunFolder, tmp_path: Path) -> None:
    assert steps(stopped.path) == [3, 2] and stands_at(stopped) == 3
    half = folder_of(stopped.path, 4)
    half.mkdir()
    (half / "rank-0000.safetensors").write_bytes(b"half")
    assert steps(stopped.path) == [3, 2] and stands_at(stopped) == 3
    clear(stopped.path, keep=[3])
    assert steps(stopped.path) == [3] and not half.exists()


def test_nothing_in_a_checkpoint_is_pickled(stopped: RunFolder) -> None:
    files = {p.name for p in folder_of(stopped.path, 3).iterdir()}
    assert files == {"index.json", "rank-0000.safetensors", "rank-0001.safetensors"}
    index = json.loads((folder_of(stopped.path, 3) / "index.json").read_text())
    pieces = index["tensors"]["model.embedding.weight"]["pieces"]
    assert [p["offset"] for p in pieces] == [[0, 0], [9, 0]] and index["state"]["step"] == 3


def test_a_checkpoint_is_exported_as_one_file(stopped: RunFolder, tmp_path: Path) -> None:
    assert sharded.export(stopped.path, tmp_path / "w.safetensors") == 3
    tensors, state = read_tensors(tmp_path / "w.safetensors")
    group_of_one = _of_one(3)
    assert state["step"] == 3 and tensors.keys() == group_of_one.keys()
    for name, weight in group_of_one.items():
        torch.testing.assert_close(tensors[name], weight, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="no whole checkpoint under checkpoint/"):
        sharded.export(tmp_path, tmp_path / "w.safetensors")


def test_one_that_ranks_shared_is_converted_before_its_run_is_done(stopped: RunFolder, tmp_path: Path) -> None:
    status, _, said = gatelab("convert", stopped.path, tmp_path / "ours", "--to", "gatelab")
    assert status == 0 and "has not finished; these are its weights at step 3 of 10" in said
    sharded.export(stopped.path, tmp_path / "w.safetensors")
    weights = read_tensors(tmp_path / "w.safetensors")[0]
    assert all(torch.equal(p, weights[name]) for name, p in load_model(tmp_path / "ours").named_parameters())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["model.json", "weights.safetensors"]


def _of_one(n: int) -> dict[str, torch.Tensor]:
    group = Group([RUN])
    for step in train(group):
        if step.step == n:
            break
    return {name: p.detach() for name, p in group.members[0].model.named_parameters()}


def test_damage_and_another_model_are_said_in_a_sentence(stopped: RunFolder) -> None:
    weight = torch.zeros(17, 16)
    with pytest.raises(CheckpointError, match=r"embedding.weight has shape \(17, 16\), expected \(3, 3\)"):
        sharded.load(stopped.path, 3, {"model.embedding.weight": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match=r"model.other is missing"):
        sharded.load(stopped.path, 3, {"model.other": weight})
    sharded.load(stopped.path, 3, {"model.embedding.weight": weight})
    assert weight.abs().sum() > 0
    index = folder_of(stopped.path, 3) / "index.json"
    content = index.read_text()
    index.write_text(content.replace('"schema": ', '"schema": 9'))
    with pytest.raises(CheckpointError, match="written by another version"):
        sharded.read_state(stopped.path, 3)
    index.write_text(content[:-9])
    with pytest.raises(
        CheckpointError, match=r"index.json: cannot be read .* Delete the folder to start from an earlier"
    ):
        sharded.read_state(stopped.path, 3)
    index.write_text(content)
    piece = folder_of(stopped.path, 3) / "rank-0001.safetensors"
    piece.write_bytes(piece.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"rank-0001.safetensors: cannot be read"):
        sharded.load(stopped.path, 3, {"model.embedding.weight": weight})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("file", "../../elsewhere/rank-0000.safetensors", "lies in '../../elsewhere/rank-0000.safetensors'; expected"),
        ("file", "{elsewhere}", "; expected rank-NUMBER.safetensors"),
        ("file", "rank-0000.safetensors\n", "; expected rank-NUMBER.safetensors"),
        ("file", "weights.safetensors", "; expected rank-NUMBER.safetensors"),
        ("file", 3, "TypeError"),
        ("key", None, "without a key"),
        ("offset", [-1, 0], "without a key, an offset"),
        ("shape", "all", "without a key, an offset or a shape"),
        ("dtype", "load", "has dtype 'load'; expected float32"),
        ("dtype", "__loader__", "has dtype '__loader__'"),
        ("dtype", ["float32"], "TypeError"),
        ("pieces", None, "TypeError"),
        ("state", None, "the state is no object"),
    ],
)
def test_an_index_cannot_name_what_lies_elsewhere(
    stopped: RunFolder, tmp_path: Path, field: str, value: object, message: str
) -> None:
    """Although the file is there, and whole."""
    here, step = RunFolder(tmp_path / "study" / "run"), 3
    there = folder_of(here.path, step)
    shutil.copytree(folder_of(stopped.path, step), there)
    elsewhere = there.parent.parent / "elsewhere" / "rank-0000.safetensors"
    elsewhere.parent.mkdir()
    for copy in (elsewhere, there / "weights.safetensors"):
        shutil.copy(there / "rank-0000.safetensors", copy)
    index = json.loads((there / "index.json").read_text())
    name = "model.embedding.weight"
    entry = index["tensors"][name]
    of = next(part for part in (entry["pieces"][0], entry, index) if field in part)
    of[field] = str(elsewhere) if value == "{elsewhere}" else value
    (there / "index.json").write_text(json.dumps(index))
    for read in (
        lambda: sharded.load(here.path, step, {name: torch.zeros(17, 16)}),
        lambda: sharded.export(here.path, tmp_path / "w.safetensors"),
        lambda: sharded.read_state(here.path, step),
    ):
        with pytest.raises(CheckpointError, match=rf"index.json: was not written by Gatelab.*{re.escape(message)}"):
            read()
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.slow
def test_torchrun_starts_the_ranks_of_a_worker(tmp_path: Path, alone: RunFolder) -> None:
    words = json.dumps({"parallel": {"tp": 2}, "checkpoint_s": 0})
    study = StudyFolder.create(tmp_path, {"name": "one", "plan": []})
    run = folder(study.path / "runs", RUN)
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node", "2", "-m", "gatelab.study.worker"]
    done = subprocess.run([*command, study.path, run.fingerprint, "--execution", words], timeout=300)
    assert done.returncode == 0
    same(run, alone)
    assert json.loads((run.path / "environment.json").read_text())["parallel"]["tp"] == 2


@pytest.mark.slow
def test_a_driver_goes_on_where_a_rank_was_killed(
    tmp_path: Path, alone: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the first, which it would see; with the rows of one process in the end."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
    study = StudyFolder.create(tmp_path, {"name": "one", "plan": []})
    run = folder(study.path / "runs", RUN)
    entry = {"cell": "toy", "arm": "none", "seed": 0, "fingerprint": run.fingerprint}
    execution = Execution(device="cpu", parallel={"tp": 2}, checkpoint_s=0)
    executor = LocalExecutor(slots=1, threads=1, preload=())
    try:
        summary = drive(study, executor, execution, entries=[entry], target="tasks:train_and_lose_the_second")
    finally:
        executor.close()
    assert summary.is_complete, summary.messages
    first, second = run.attempts()
    assert (first["outcome"], first["message"]) == ("lost", "process 1 of 2 was ended by SIGKILL")
    assert second["resumed_from_step"] >= 3
    same(run, alone)


@pytest.mark.slow
def test_runs_of_a_group_share_a_mesh(tmp_path: Path) -> None:
    both = [folder(tmp_path / "two", RUN.model_copy(update={"seed": seed})) for seed in (1, 2)]
    ends = on_meshes(
        both[0],
        {"n": 2, "mesh": "shard=zero3", "stop_after": 3, "with": [str(both[1].path)]},
        {"n": 2, "mesh": "tp=2", "rank": 1, "die_at": 5, "with": [str(both[1].path)]},
        {"n": 2, "mesh": "shard=zero3", "with": [str(both[1].path)]},
    )
    assert [one["ends"] for one in ends][::2] == [[0, 0], [0, 0]]
    for run in both:
        seed = run.config()["seed"]
        alone = folder(tmp_path / "alone", RUN.model_copy(update={"seed": seed}))
        carry_out([alone], Execution(), should_stop=lambda: False)
        same(run, alone)
