"""A checkpoint holds every bit, and one that cannot be used is refused in words."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

from gatelab.config import OptimConfig
from gatelab.models import build_model
from gatelab.train.checkpoint import CheckpointError, load_weights, read_tensors, write_tensors
from gatelab.train.group import Group
from gatelab.train.loop import train

RUNS = [tiny.run(seed=0), tiny.run(seed=1, optim=OptimConfig(lr=3e-3))]


def stopped_at(step: int) -> Group:
    group = Group(RUNS)
    list(islice(train(group), step))
    return group


def saved(group: Group, path: Path) -> Path:
    write_tensors(path, *group.state())
    return path


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    group = stopped_at(3)
    path = saved(group, tmp_path / "c.safetensors")
    tensors, state = read_tensors(path)
    expected, expected_state = group.state()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[n], t) and tensors[n].dtype == t.dtype for n, t in expected.items())
    assert {k: state[k] for k in expected_state} == {"step": 3, "alive": [True, True]}
    other = Group(RUNS)
    other.restore(tensors, state, path)
    again, again_state = other.state()
    assert again_state == expected_state and all(torch.equal(again[n], t) for n, t in expected.items())


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_group_continues_bit_for_bit(tmp_path: Path, at: int) -> None:
    whole = Group(RUNS)
    steps = list(train(whole))
    path = saved(stopped_at(at), tmp_path / "c.safetensors")
    resumed = Group(RUNS)
    resumed.restore(*read_tensors(path), path)
    assert list(train(resumed)) == steps[at:]
    expected, found = whole.state()[0], resumed.state()[0]
    assert all(torch.equal(found[n], t) for n, t in expected.items())


def test_a_checkpoint_before_the_first_step_is_the_start(tmp_path: Path) -> None:
    path = saved(Group(RUNS), tmp_path / "c.safetensors")
    resumed = Group(RUNS)
    resumed.restore(*read_tensors(path), path)
    assert list(train(resumed)) == list(train(Group(RUNS)))


def test_a_finished_group_that_is_resumed_does_nothing(tmp_path: Path) -> None:
    path = saved(stopped_at(6), tmp_path / "c.safetensors")
    resumed = Group(RUNS)
    resumed.restore(*read_tensors(path), path)
    assert list(train(resumed)) == [] and len(resumed.members[0].losses) == 6


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    run = tiny.run(model=tiny.model(tied_embeddings=True, max_seq_len=8))
    group = Group([run])
    list(islice(train(group), 2))
    path = saved(group, tmp_path / "c.safetensors")
    other = Group([run])
    other.restore(*read_tensors(path), path)
    model = other.members[0].model
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.embedding.weight, group.members[0].model.embedding.weight)


def weights_file(path: Path, **changes: object) -> Path:
    model = build_model(tiny.model(**changes), seed=5)
    write_tensors(path, dict(model.named_parameters()), {"step": 12})
    return path


def test_final_weights_are_loaded_with_their_step(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "w.safetensors")
    model = build_model(tiny.model())
    assert load_weights(model, path) == 12
    expected = build_model(tiny.model(), seed=5).state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def damage_the_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"x" * 40 + content[48:])


def from_somebody_else(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def from_another_version(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata={"gatelab": json.dumps({"schema": 99, "step": 1})})


def from_an_unnumbered_version(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path, metadata={"gatelab": "{}"})


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "cannot be read .* it was cut or damaged. Delete it to start this run from step 0"),
        (cut_to_nothing, "it was cut or damaged"),
        (damage_the_header, "it was cut or damaged"),
        (from_somebody_else, "safetensors, but not written by Gatelab"),
        (from_another_version, r"written by another version \(schema 99, this one reads 1\)"),
        (from_an_unnumbered_version, r"written by another version \(schema None"),
        (remove, "no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    path = weights_file(tmp_path / "w.safetensors")
    harm(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(build_model(tiny.model()), path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_ff": 23}, r"blocks.0.mlp.w1.weight has shape \(23, 16\), expected \(24, 16\)"),
        ({"n_layers": 1}, "blocks.1.attention_norm.weight is missing"),
        ({"n_layers": 3}, "(blocks.2.* is no parameter here; ){2}blocks.2.* and 6 more: it belongs to another model"),
        ({"qk_norm": "rms"}, "k_norm.weight is no parameter here"),
        ({"vocab_size": 18}, r"embedding.weight has shape \(18, 16\), expected \(17, 16\); head.weight has shape"),
        ({"gate": "sdpa-headwise"}, "gates.sdpa.g_proj.weight is no parameter here"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = weights_file(tmp_path / "w.safetensors", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_weights(build_model(tiny.model()), path)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights_file(tmp_path / "w.safetensors")
    before = path.read_bytes()

    def full(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gatelab.train.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.zeros(1)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def later(path: Path, **changes: object) -> nn.Module:
    """A model of another seed and with `changes`, on top of the weights in `path`; four heads read two kv heads."""
    shape = {"n_heads": 4, "n_kv_heads": 2, "init": "fan-in"}
    write_tensors(path, dict(build_model(tiny.model(**shape), seed=5).named_parameters()), {"step": 12})
    model = build_model(tiny.model(**shape, **changes), seed=6)
    assert load_weights(model, path) == 12
    return model


def test_a_gate_that_starts_open_and_is_inserted_later_changes_no_bit(tmp_path: Path) -> None:
    ids_BT = torch.randint(0, 17, (3, 9))
    plain_BTV = later(tmp_path / "w.safetensors")(ids_BT)
    for gate in (
        "sdpa-elementwise-two_sigmoid-init=1",
        "sdpa-headwise-two_sigmoid-init=1+value-headwise-two_sigmoid-init=1",
    ):
        assert torch.equal(later(tmp_path / "w.safetensors", gate=gate)(ids_BT), plain_BTV)
    assert not torch.allclose(later(tmp_path / "w.safetensors", gate="sdpa-elementwise")(ids_BT), plain_BTV, atol=1e-2)


@pytest.mark.parametrize("changes", [{"gate": "sdpa-headwise"}, {"softmax": "key-bias"}, {"registers": 2}], ids=str)
def test_what_was_inserted_keeps_its_start_and_the_rest_is_loaded(tmp_path: Path, changes: dict[str, object]) -> None:
    model = later(tmp_path / "w.safetensors", **changes)
    fresh = build_model(model.config, seed=6).state_dict()
    stored, _ = read_tensors(tmp_path / "w.safetensors")
    assert len(stored) < len(fresh)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored.get(name, fresh[name]))
        assert name not in stored or not torch.equal(stored[name], fresh[name]) or "norm" in name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": True, "gate": "sdpa-headwise"}, "q_proj.bias is missing, .*k_proj.bias is missing, .* and 11 more"),
        ({"qk_norm": "rms"}, "attention.q_norm.weight is missing"),
        ({"n_layers": 3, "gate": "sdpa-headwise"}, "blocks.2.attention_norm.weight is missing"),
        ({"positions": "learned"}, "position_embedding.weight is missing, expected .* may be added"),
    ],
    ids=str,
)
def test_only_gates_registers_and_normalisers_may_be_inserted(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = weights_file(tmp_path / "w.safetensors")
    model = build_model(tiny.model(**changes))
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, path)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_checkpoint_is_not_resumed_with_a_gate_that_it_does_not_have(tmp_path: Path) -> None:
    path = saved(Group([tiny.run(model=tiny.model(max_seq_len=8))]), tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"gates.sdpa.g_proj.weight is missing"):
        Group([tiny.run()]).restore(*read_tensors(path), path)
