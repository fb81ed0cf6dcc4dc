"""`gatelab convert` of a run that has not finished: its newest whole checkpoint, whichever it is."""

import itertools
import json
from pathlib import Path

import pytest
import tiny
import torch
from command import gatelab
from safetensors.torch import load_file

from gatelab.config import Execution, ModelConfig, canonical, fingerprint
from gatelab.models.interop import load_model
from gatelab.store import RunFolder
from gatelab.study import checkpoints
from gatelab.study.carry_out import carry_out
from gatelab.train.checkpoint import read_tensors, write_tensors
from gatelab.train.group import Group, resolve
from gatelab.train.loop import train

RUN = tiny.run(steps=6, model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1))


def planned(place: Path) -> RunFolder:
    config = resolve(RUN)
    run = RunFolder(place / fingerprint(config, ""))
    run.create(canonical(config))
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """After three of six steps."""
    run, looks = planned(tmp_path_factory.mktemp("stopped")), itertools.count(1)
    carry_out([run], Execution(), should_stop=lambda: next(looks) >= 3)
    return run


def after(steps: int) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run after so many."""
    group = Group([RUN])
    for step in train(group):
        if step.step == steps:
            break
    return {name: p.detach() for name, p in group.members[0].model.named_parameters()}


def test_its_newest_checkpoint_becomes_a_model_of_ours(stopped: RunFolder, tmp_path: Path) -> None:
    step = read_tensors(stopped.path / "checkpoint.safetensors")[1]["step"]
    status, _, said = gatelab("convert", stopped.path, tmp_path / "ours", "--to", "gatelab")
    assert status == 0 and f"has not finished; these are its weights at step {step} of 6" in said
    model, weights = load_model(tmp_path / "ours"), after(step)
    found = dict(model.named_parameters())
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    about = json.loads((tmp_path / "ours" / "model.json").read_text())
    assert about["from"]["name"] == f"run {stopped.fingerprint}"
    assert f"Its weights are those of step {step}: the run had not finished." in about["notes"]
    assert [path.name for path in tmp_path.iterdir()] == ["ours"] and stopped.done() is None


def test_it_goes_to_transformers_as_one_folder(stopped: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    status, _, said = gatelab("convert", stopped.path, tmp_path / "out", "--to", "hf")
    assert status == 0 and "llama (native)" in said and "at step" in said
    stored = load_file(tmp_path / "out" / "model.safetensors")
    step = read_tensors(stopped.path / "checkpoint.safetensors")[1]["step"]
    assert torch.equal(stored["model.embed_tokens.weight"], after(step)["embedding.weight"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"those of step {step}: the run had not finished" in card and "## Measured" not in card


def test_a_run_without_a_checkpoint_says_so_and_nothing_is_made(tmp_path: Path) -> None:
    run = planned(tmp_path / "runs")
    for to in ("hf", "gatelab"):
        status, out, said = gatelab("convert", run.path, tmp_path / "out", "--to", to)
        assert status == 1 and not out and said.count("\n") == 1
        assert f"{run.path}: this run has not finished, and has no checkpoint yet" in said
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_finished_run_becomes_a_model_of_ours_too(tmp_path: Path) -> None:
    run = planned(tmp_path / "runs")
    carry_out([run], Execution(), should_stop=lambda: False)
    assert gatelab("convert", run.path, tmp_path / "ours", "--to", "gatelab")[0] == 0
    weights = read_tensors(run.path / "weights.safetensors")[0]
    assert all(torch.equal(p, weights[name]) for name, p in load_model(tmp_path / "ours").named_parameters())
    status, _, said = gatelab("convert", tmp_path / "ours", tmp_path / "again", "--to", "gatelab")
    assert status == 1 and "is a model of Gatelab already" in said


def test_one_that_is_replaced_while_it_is_read_is_read_again(
    stopped: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path / "runs")
    path = run.path / "checkpoint.safetensors"
    tensors, state = read_tensors(stopped.path / "checkpoint.safetensors")
    path.write_bytes(b"cut")
    whole = checkpoints._whole
    looks = itertools.count()

    def replaced(place: Path) -> tuple[object, ...]:
        """The second look comes after the reading, which failed."""
        if next(looks) == 1:
            write_tensors(path, tensors, state)
        return whole(place)

    monkeypatch.setattr(checkpoints, "_whole", replaced)
    assert checkpoints.export_weights(run, tmp_path / "w.safetensors") == state["step"]
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="it was cut or damaged"):
        checkpoints.export_weights(run, tmp_path / "w.safetensors")
