"""Gates in a part of the layers: the others are plain everywhere, in the model and in all that counts, stores and looks at it."""

from pathlib import Path

import pytest
import tiny
import torch

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.interop.native import native_family
from gatelab.models.interop.shipped import check_shipped
from gatelab.models.sizes import count_parameters, gate_parameters, match_parameters, parameter_shapes
from gatelab.ops.gated_attention import chosen_for, flash
from gatelab.probes import capture
from gatelab.probes.interventions import intervened, parse
from gatelab.train.checkpoint import CheckpointError, load_weights, read_tensors, write_tensors
from gatelab.train.cost import training_bytes
from gatelab.train.group import Group
from gatelab.train.loop import train
from gatelab.train.planner import Mesh
from gatelab.train.planner.layout import lay_out
from gatelab.train.planner.memory import activations

IDS_BT = torch.arange(24).reshape(2, 12) % 17
GATES = "sdpa-elementwise+value-headwise-bias"


def model(layers: object, **changes: object) -> ModelConfig:
    return tiny.model(**{"n_layers": 3, "gate": GATES, "gate_layers": layers, "init_std": 0.3} | changes)


@pytest.mark.parametrize(("layers", "there"), [("first-third", {0}), ("last-third", {2}), ((0, 2), {0, 2})])
def test_only_these_layers_have_weights_of_gates(layers: object, there: set[int]) -> None:
    config = model(layers)
    built = build_model(config)
    assert {i for i, block in enumerate(built.blocks) if block.attention.gates} == there
    assert {name: tuple(p.shape) for name, p in built.named_parameters()} == parameter_shapes(config)
    assert gate_parameters(config) * 3 == gate_parameters(model("all")) * len(there)


def test_cross_attention_and_encoder_have_them_in_the_same_layers() -> None:
    config = tiny.model(arch="encoder-decoder", gate="sdpa-headwise", gate_layers="last-third")
    gated = {name.partition(".gates.")[0] for name in parameter_shapes(config) if ".gates." in name}
    assert gated == {"encoder_blocks.1.attention", "blocks.1.attention", "blocks.1.cross_attention"}
    assert {n: tuple(p.shape) for n, p in build_model(config).named_parameters()} == parameter_shapes(config)


@torch.no_grad()
def test_a_layer_without_its_gate_is_the_whole_gate_held_open_there() -> None:
    torch.manual_seed(0)
    whole, part = build_model(model("all")).eval(), build_model(model("first-third")).eval()
    missing, unexpected = part.load_state_dict(whole.state_dict(), strict=False)
    assert not missing and {name.split(".")[1] for name in unexpected} == {"1", "2"}
    with intervened(whole, parse("gate=open:l1,l2")):
        expected = whole(IDS_BT)
    torch.testing.assert_close(part(IDS_BT), expected)
    assert not torch.allclose(part(IDS_BT), whole(IDS_BT))
    part.is_packed = True
    torch.testing.assert_close(part(IDS_BT), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_decoding_token_by_token_is_the_whole_sequence() -> None:
    built = build_model(model("last-third", gate="scores-headwise-forget-bias")).eval()
    cache, steps = built.new_cache(2, 12), []
    for t in range(12):
        steps.append(built(IDS_BT[:, t : t + 1], cache=cache))
    torch.testing.assert_close(torch.cat(steps, dim=1), built(IDS_BT), rtol=1e-4, atol=1e-5)


def test_arms_are_matched_by_the_weights_that_are_there() -> None:
    plain, part = model("all", gate="none"), model("last-third")
    match = match_parameters(plain, part)
    assert match.target == count_parameters(plain) and match.config.gate_layers == "last-third"
    narrower = match_parameters(plain, model("all")).d_ff
    assert narrower < match.d_ff < part.d_ff


def test_bytes_grow_by_the_layers_that_have_it() -> None:
    none, third, whole = (model(at, gate=gate) for at, gate in (("all", "none"), ("last-third", GATES), ("all", GATES)))
    kept = [training_bytes(c, 2, 16).activations for c in (none, third, whole)]
    compiled = [activations(c, 16, None, is_captured=True)[0] for c in (none, third, whole)]
    assert 3 * (kept[1] - kept[0]) == kept[2] - kept[0] > 0
    assert 3 * (compiled[1] - compiled[0]) == compiled[2] - compiled[0] > 0
    # A block that is computed again is the largest there is.
    assert training_bytes(third, 2, 16).recomputed == training_bytes(whole, 2, 16).recomputed
    of_one = [activations(c, 16, None, is_captured=True)[1] for c in (third, whole)]
    assert of_one[0] == of_one[1]


@pytest.mark.parametrize("mesh", [Mesh(3), Mesh(2, 2)])
def test_a_rank_keeps_what_is_planned(mesh: Mesh) -> None:
    found = lay_out(model("first-third", n_heads=4, n_kv_heads=2), mesh)
    assert found.differs == () and found.n_weights == found.n_planned > 0


def test_the_implementation_is_told_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_missing", lambda device: None)
    config = tiny.model(gate="sdpa-headwise-silu", gate_layers="first-third", d_model=96)
    whole = config.model_copy(update={"gate_layers": "all"})
    names = [chosen_for(c, dtype=torch.bfloat16, device=torch.device("cuda")) for c in (whole, config)]
    assert names == ["sdpa", "flash-lean+sdpa"]


def test_a_run_of_it_is_stored_and_a_stack_of_them_is_each_alone(tmp_path: Path) -> None:
    runs = [tiny.run(seed=s, model=model("first-third", max_seq_len=8)) for s in (0, 1)]
    group = Group(runs)
    steps = list(train(group))
    assert group.is_stacked
    for m, run in enumerate(runs):
        alone = [s.loss[0] for s in train(Group([run]))]
        assert [s.loss[m] for s in steps] == pytest.approx(alone, rel=1e-4)
    path = tmp_path / "c.safetensors"
    write_tensors(path, *group.state())
    other = Group(runs)
    other.restore(*read_tensors(path), path)
    expected = group.state()[0]
    assert all(torch.equal(t, expected[name]) for name, t in other.state()[0].items())
    trained = group.members[0].model.state_dict()
    write_tensors(path, dict(trained), {"step": 6})
    built = build_model(runs[0].model)
    assert load_weights(built, path) == 6
    assert all(torch.equal(t, trained[name]) for name, t in built.state_dict().items())
    write_tensors(path, dict(build_model(model("all", max_seq_len=8)).state_dict()), {"step": 6})
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attention\.gates\.\S+ is no parameter here"):
        load_weights(built, path)


@torch.no_grad()
def test_a_layer_without_a_gate_has_no_rows_of_one_and_enters_no_mean() -> None:
    built = build_model(model("last-third")).eval()
    with capture(built, ["gate_scores", "gate_effect", "gate_variance"]) as recorder:
        built(IDS_BT)
    rows = recorder.rows()
    assert {row.layer for row in rows} == {None, 2}
    for metric in ("gate_mean", "gate_below", "gate_dead", "gate_openness"):
        of_layer, of_model = (
            {r.site: r.value for r in rows if (r.metric, r.layer, r.head) == (metric, layer, None)}
            for layer in (2, None)
        )
        assert of_layer == of_model and of_layer


def test_a_layout_that_knows_no_such_model_refuses_it() -> None:
    class Found:
        config = model("first-third", gate="sdpa-elementwise", mlp="swiglu")
        title = "here"

    assert native_family(Found()) is None
    with pytest.raises(ValueError, match=r"model\.gate_layers=first-third cannot be exported"):
        check_shipped(Found())
