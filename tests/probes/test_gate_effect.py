"""What a planted gate lets through of a planted output, and of a planted sink."""

import planting
import pytest
import tiny
import torch
from planting import T, looked_at, plant_sink, set_tap, tokens, values
from torch import Tensor, nn

from gatelab.models import build_model
from gatelab.ops.gated_attention import gated_attention
from gatelab.probes import capture

UNIFORM = sum(1 / (i + 1) for i in range(1, T)) / (T - 1)
CHANNELS = torch.arange(1.0, 9.0)  # a value, the same at every token, is the output too


def planted(gate: str, score_K: Tensor, **changes: object) -> nn.Module:
    """Values alike at every token; gates with the same scores, one a channel or one in all, at every token."""
    model = planting.model(gate=gate, **changes)
    for block in model.blocks:
        set_tap(block.attention.tap_v, lambda v: v.copy_(CHANNELS.expand_as(v)))
        set_tap(block.attention.gates["sdpa"].tap_logits, lambda g: g.copy_(score_K.logit().expand_as(g)))
    return model


@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-elementwise", "sdpa-elementwise-shared"])
def test_a_gate_of_one_score_lets_that_share_through(gate: str) -> None:
    rows = looked_at(planted(gate, torch.tensor([0.3])), "gate_effect")
    places = [(layer, head) for layer in (0, 1) for head in (None, 0, 1)] + [(None, None)]
    assert values(rows, "gate_openness", site="sdpa") == pytest.approx(dict.fromkeys(places, 0.3))
    assert values(rows, "effective_sink") == pytest.approx(dict.fromkeys(places, 0.3 * UNIFORM))


def test_channels_weigh_by_their_energy() -> None:
    score_K = torch.linspace(0.1, 0.8, 8)
    rows = looked_at(planted("sdpa-elementwise", score_K), "gate_effect")
    expected = (score_K * CHANNELS**2).sum() / (CHANNELS**2).sum()
    assert values(rows, "gate_openness")[1, 0] == pytest.approx(expected.item(), rel=1e-5)
    assert values(rows, "effective_sink")[1, 0] == pytest.approx(0.45 * UNIFORM, rel=1e-5)


def test_what_is_added_may_open_beyond_one() -> None:
    rows = looked_at(planted("sdpa-headwise-add", torch.tensor([0.5])), "gate_effect")
    expected = 1 + 0.5 * CHANNELS.sum() / (CHANNELS**2).sum()
    assert values(rows, "gate_openness")[0, 1] == pytest.approx(expected.item(), rel=1e-5)
    assert not values(rows, "effective_sink")


def test_a_negative_score_lets_through_as_much_as_a_positive_one() -> None:
    model = planting.model(gate="sdpa-headwise-identity")
    for block in model.blocks:
        set_tap(block.attention.gates["sdpa"].tap_logits, lambda g: g.fill_(-0.4))
    rows = looked_at(model, "gate_effect")
    assert values(rows, "effective_sink")[0, 0] == pytest.approx(0.4 * UNIFORM)
    assert values(rows, "gate_openness")[0, 0] == pytest.approx(-0.4)


def test_a_gate_leaves_the_sink_in_the_map_and_takes_it_from_the_output() -> None:
    model = planted("sdpa-headwise", torch.tensor([0.1]))
    plant_sink(model, layer=1, head=0, mass=0.9)
    rows = looked_at(model, "gate_effect")
    assert values(rows, "effective_sink")[1, 0] == pytest.approx(0.09, rel=1e-4)
    assert values(looked_at(model, "sinks"), "first_token_mass")[1, 0] == pytest.approx(0.9, rel=1e-4)


@pytest.mark.parametrize("softmax", ["softmax", "sink-logit", "differential"])
@pytest.mark.parametrize("gate", ["sdpa-elementwise", "sdpa-elementwise-shared-silu", "sdpa-headwise-tanh-add"])
def test_openness_is_that_of_what_enters_the_output_projection(gate: str, softmax: str) -> None:
    model = build_model(tiny.model(n_heads=4, n_kv_heads=2, init_std=0.4, gate=gate, softmax={"kind": softmax}))
    attention, seen = model.blocks[0].attention, {}
    for name in ("q", "k", "v"):
        getattr(attention, f"tap_{name}").register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    attention.o_proj.register_forward_pre_hook(lambda _m, inputs: seen.update(after=inputs[0].unflatten(-1, (4, -1))))
    with torch.no_grad(), capture(model, ["gate_effect"]) as recorder:
        model(tokens())
        learned = None if attention.sink is None else attention.sink.learned()
        rule = {"normaliser": attention.normaliser, "learned": learned, "heads": attention.heads}
        before = gated_attention(seen["q"], seen["k"], seen["v"], **rule)
    openness_BTH = (seen["after"] * before).sum(-1) / before.square().sum(-1)
    found = values(recorder.rows(), "gate_openness")
    for head in range(4):
        assert found[0, head] == pytest.approx(openness_BTH[:, 1:, head].mean().item(), rel=1e-4)


def test_openness_is_told_apart_by_domain() -> None:
    model = planted("sdpa-headwise", torch.tensor([0.5]))
    late_BT = (torch.arange(T) >= 8).expand(2, T)
    for block in model.blocks:
        set_tap(
            block.attention.gates["sdpa"].tap_logits,
            lambda g: g.copy_(torch.where(late_BT, 2.0, -2.0)[..., None, None].expand_as(g)),
        )
    rows = looked_at(model, "gate_effect", domains=("early", "late"), domain_BT=late_BT.long())
    early, late = torch.tensor([-2.0, 2.0]).sigmoid().tolist()
    assert values(rows, "gate_openness", domain="early")[None, None] == pytest.approx(early)
    assert values(rows, "gate_openness", domain="late")[1, None] == pytest.approx(late)


@pytest.mark.parametrize(
    ("changes", "metrics"),
    [
        ({"gate": None}, set()),
        ({"gate": "value-elementwise"}, set()),
        ({"gate": "sdpa-headwise-lse"}, set()),
        ({"gate": "sdpa-headwise", "output_map": "rms"}, {"gate_openness", "effective_sink"}),
        ({"gate": "sdpa-elementwise", "output_map": "rms"}, {"effective_sink"}),
        ({"gate": "sdpa-elementwise-static"}, {"gate_openness", "effective_sink"}),
        ({"gate": "sdpa-headwise-output"}, {"gate_openness", "effective_sink"}),
    ],
)
def test_what_cannot_be_told_has_no_rows(changes: dict[str, object], metrics: set[str]) -> None:
    rows = looked_at(planting.model(init="fan-in", **changes), "gate_effect")
    assert {r.metric for r in rows} == metrics
