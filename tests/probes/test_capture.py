"""capture: what it watches, what it refuses, and that it leaves nothing behind; massive activations."""

import re
from collections.abc import Iterator
from pathlib import Path

import planting
import pytest
import torch
from planting import looked_at, plant_sink_at, set_tap, tokens, values
from torch import Tensor, nn

import gatelab
from gatelab.nn.attention import GatedAttention
from gatelab.probes import PROBES, capture

ALL = {"gate": "sdpa-headwise", "softmax": "sink-logit"}


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Theirs(nn.Module):
    """Somebody's own model, around two of our layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": GatedAttention(d_model=16, n_heads=2, gate="value-elementwise")})
        self.last = GatedAttention(d_model=16, n_heads=4, gate="sdpa-headwise", qk_norm=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.last(self.inner["a"](x_BTD) + x_BTD)


def test_a_planted_massive_activation_is_found_in_its_layer() -> None:
    model = planting.model()

    def plant(x_BTD: Tensor) -> None:
        x_BTD.copy_(torch.where(torch.arange(x_BTD.numel()).view_as(x_BTD) % 2 == 0, 0.5, -0.5))
        x_BTD[:, 3, 7] = -400.0

    set_tap(model.blocks[1].tap_residual, plant)
    rows = looked_at(model, "massive")
    largest, ratio = values(rows, "massive_max"), values(rows, "massive_ratio")
    assert largest[1, None] == 400.0 and ratio[1, None] == 800.0
    assert largest[0, None] < 1 and ratio[0, None] < 20
    assert largest[None, None] == (largest[0, None] + 400.0) / 2 and ratio[None, None] == 800.0


def test_anyones_module_can_be_probed() -> None:
    model = Theirs()
    with capture(model) as recorder:
        model(torch.randn(2, 9, 16))
    rows = recorder.rows()
    assert {(r.layer, r.site) for r in rows if r.metric == "gate_mean" and r.layer is not None} == {
        (0, "value"),
        (1, "sdpa"),
    }
    assert {head for layer, head in values(rows, "first_token_mass") if layer == 1} == {None, 0, 1, 2, 3}
    assert not values(rows, "massive_max")


def test_several_passes_are_averaged_over_sequences() -> None:
    model, ids_BT = planting.model(init="fan-in", **ALL), tokens(5)
    with capture(model) as at_once:
        model(ids_BT)
    with capture(model) as in_parts:
        model(ids_BT[:1])
        model(ids_BT[1:])
    whole, parts = at_once.rows(), in_parts.rows()
    assert len(whole) == len(parts) > 100
    for a, b in zip(whole, parts, strict=True):
        assert (a.metric, a.layer, a.head, a.bin) == (b.metric, b.layer, b.head, b.bin)
        assert a.value == pytest.approx(b.value, rel=1e-4)


def test_looking_changes_nothing() -> None:
    model, ids_BT = planting.model(init="fan-in", **ALL), tokens()
    before = model(ids_BT)
    with capture(model):
        during = model(ids_BT)
    assert torch.equal(before, during) and torch.equal(before, model(ids_BT))


def test_a_training_step_may_be_watched() -> None:
    model, ids_BT = planting.model(**ALL), tokens()
    model(ids_BT).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with capture(model) as recorder:
        model(ids_BT).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))
    kept = [v for probe in recorder.probes for parts in probe._many.values() for v in parts]
    assert kept and not any(v.requires_grad for v in kept)


@pytest.mark.parametrize("gate", [None, "sdpa-headwise+value-elementwise"])
def test_no_hook_stays_behind(gate: str | None) -> None:
    model = planting.model(gate=gate)
    with capture(model):
        assert n_hooks(model) > 0
    assert n_hooks(model) == 0
    with pytest.raises(RuntimeError, match="theirs"), capture(model):
        raise RuntimeError("theirs")
    assert n_hooks(model) == 0


def compiled() -> Iterator[nn.Module]:
    yield torch.compile(planting.model(), backend="eager")
    in_place = planting.model()
    in_place.compile(backend="eager")
    yield in_place
    inside = planting.model()
    inside.blocks[0] = torch.compile(inside.blocks[0], backend="eager")
    yield inside


def test_a_compiled_model_is_refused() -> None:
    for model in compiled():
        with pytest.raises(ValueError, match="is compiled and would ignore the probes"), capture(model):
            pass


def test_an_unknown_probe_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no probe 'sink': expected .*; did you mean 'sinks'"):
        capture(planting.model(), ["sink"]).__enter__()


def test_one_name_is_no_list_and_a_configuration_no_module() -> None:
    with pytest.raises(
        ValueError, match=r"probes 'sinks': give a list of their names, as in capture\(model, \['sinks'\]"
    ):
        capture(planting.model(), "sinks").__enter__()
    with pytest.raises(ValueError, match="model is a NoneType: expected a module that holds GatedAttention"):
        capture(None, ["sinks"]).__enter__()


def test_a_model_without_gated_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear holds no GatedAttention layer"), capture(nn.Linear(2, 2)):
        pass


def test_decoding_is_refused() -> None:
    model = planting.model()
    with capture(model), pytest.raises(ValueError, match="without a cache; run the whole sequence at once"):
        model(tokens(), cache=model.new_cache(2))


def test_the_public_names_are_these() -> None:
    assert gatelab.capture is capture and gatelab.probe.PROBES is PROBES


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_measures_what_it_declares(probe: str) -> None:
    model = planting.model(**ALL)
    plant_sink_at(model, 3, layer=0, head=1)
    told = {"domains": ("even",), "domain_BT": (torch.arange(planting.T) % 2).expand(2, -1), "tokens_BT": tokens()}
    rows = looked_at(model, probe, **told)
    declared = PROBES[probe].metrics
    assert {r.metric for r in rows} == set(declared) and PROBES[probe].name == probe
    assert {(r.metric, r.unit) for r in rows} == set(declared.items())
    places = [tuple(sorted((k, v) for k, v in r.as_dict().items() if k != "value")) for r in rows]
    assert len(set(places)) == len(places), "two rows say the same thing"


def test_the_documentation_defines_the_metrics_of_each_probe_with_their_units() -> None:
    text = (Path(gatelab.__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    defined: dict[str, dict[str, str]] = {}
    for section in text.split("\n## "):
        for probe in re.findall(r"\(probe `(\w+)`\)", section.partition("\n")[0]):
            defined[probe] = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, flags=re.MULTILINE))
    assert defined == {name: dict(probe.metrics) for name, probe in PROBES.items()}


@pytest.mark.parametrize("name", ["tokens_BT", "domain_BT"])
def test_ids_and_domains_of_another_batch_are_refused(name: str) -> None:
    model = planting.model()
    with capture(model, ["sinks"]) as recorder:
        setattr(recorder, name, torch.zeros(3, planting.T, dtype=torch.long))
        with pytest.raises(ValueError, match=f"{name} of 3 sequences, and the model reads 2; set it before"):
            model(tokens())


@pytest.mark.parametrize("given", [torch.zeros(planting.T), torch.zeros(2, planting.T)], ids=["no-batch", "float"])
def test_ids_are_whole_numbers_by_sequence(given: Tensor) -> None:
    model = planting.model()
    with capture(model, ["anywhere"]) as recorder:
        recorder.tokens_BT = given
        with pytest.raises(ValueError, match="expected whole numbers"):
            model(tokens())


def test_a_model_of_not_a_numbers_has_no_places() -> None:
    model = planting.model()
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    with torch.no_grad(), capture(model) as recorder:
        recorder.tokens_BT = tokens()
        model(recorder.tokens_BT)
    rows = recorder.rows()
    assert not {r.metric for r in rows} & {"sink_position", "sink_token", "massive_position", "massive_channel"}
    assert all(r.value == r.value for r in rows)


def test_registers_have_no_ids() -> None:
    model = planting.model(registers=2)
    plant_sink_at(model, 1, layer=0, head=0)  # a register
    plant_sink_at(model, 6, layer=1, head=1)
    ids_BT = torch.arange(planting.T - 2).expand(2, -1)
    rows = looked_at(model, "anywhere", tokens_BT=ids_BT)
    assert {r.key: r.value for r in rows if r.metric == "sink_token"} == {4: 0.25}


def test_one_sequence_of_one_token_has_no_mass_to_tell() -> None:
    model = planting.model()
    with capture(model, ["sinks"]) as recorder:
        model(torch.zeros(1, 1, dtype=torch.long))
    assert recorder.rows() == []


def test_an_unseen_forward_pass_is_an_error_and_not_an_empty_result() -> None:
    model = planting.model()
    with capture(model, ["sinks"]) as recorder:
        pass
    with pytest.raises(ValueError, match="no forward pass was seen"):
        recorder.rows()


def test_a_module_compiled_before_is_noticed() -> None:
    model = planting.model()
    compiled = torch.compile(model, backend="eager")
    compiled(torch.zeros(1, 4, dtype=torch.long))
    with capture(model, ["sinks"]) as recorder:
        compiled(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="uncompiled module"):
        recorder.rows()


def test_a_layer_compiled_before_is_noticed_as_it_runs() -> None:
    attention, x_BTD = GatedAttention(d_model=16, n_heads=2, gate="sdpa-headwise"), torch.zeros(1, 4, 16)
    torch._dynamo.reset()
    compiled = torch.compile(attention, backend="eager")
    compiled(x_BTD)
    with (
        pytest.raises(
            ValueError, match=r"layer 0 ran and showed no q, k, v, sdpa: .* run the module that was compiled"
        ),
        capture(attention, ["sinks", "gate_scores"]),
    ):
        compiled(x_BTD)
    torch._dynamo.reset()


def test_massive_asks_for_the_taps_it_reads() -> None:
    attention = GatedAttention(d_model=16, n_heads=2)
    with pytest.raises(ValueError, match="no residual taps"), capture(attention, ["massive"]):
        pass
    with capture(attention) as recorder:
        attention(torch.zeros(1, 4, 16))
    assert "massive" not in {probe.name for probe in recorder.probes}
    assert {r.source for r in recorder.rows()} >= {"sinks", "anywhere"}
