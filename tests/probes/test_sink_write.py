"""What a planted sink writes into the output of its head, before the gate and after it; and the gap of its logit."""

import math

import planting
import pytest
import tiny
import torch
from planting import T, looked_at, plant_sink, plant_sink_at, set_tap, values
from torch import Tensor, nn

from gatelab.config import ProbeConfig
from gatelab.models import build_model
from gatelab.nn.attention import GatedAttention
from gatelab.probes import capture

UNIFORM = sum(1 / (i + 1) for i in range(1, T)) / (T - 1)
CHANNELS = torch.arange(1.0, 9.0)
PLACES = [(layer, head) for layer in (0, 1) for head in (None, 0, 1)] + [(None, None)]


def equal_values(model: nn.Module, *, first: float = 1.0, at: tuple[int, ...] = (0,)) -> nn.Module:
    """Values alike at every token, but for a factor at the first tokens."""

    def change(v_BSGK: Tensor) -> None:
        v_BSGK.copy_(CHANNELS.expand_as(v_BSGK))
        v_BSGK[:, list(at)] *= first

    for module in model.modules():
        if isinstance(module, GatedAttention):
            set_tap(module.tap_v, change)
    return model


def gated(model: nn.Module, score: Tensor) -> nn.Module:
    """The scores of every gate at the output: [heads, channels], or what broadcasts to them."""
    for block in model.blocks:
        set_tap(block.attention.gates["sdpa"].tap_logits, lambda g: g.copy_(score.logit().expand_as(g)))
    return model


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.9, 0.999])
def test_where_values_are_alike_a_sink_writes_its_mass(mass: float) -> None:
    model = equal_values(planting.model())
    plant_sink(model, layer=1, head=0, mass=mass)
    found = values(looked_at(model, "sinks"), "sink_write", stage="before")
    assert found[1, 0] == pytest.approx(mass, rel=1e-4)
    assert found[0, 0] == found[1, 1] == pytest.approx(UNIFORM, rel=1e-5)
    assert found[1, None] == pytest.approx((mass + UNIFORM) / 2, rel=1e-4)
    assert found[None, None] == pytest.approx((mass + 3 * UNIFORM) / 4, rel=1e-4)


@pytest.mark.parametrize("drain", [0.0, 0.05, -0.2, 3.0])
def test_a_drained_value_writes_little_however_large_its_mass(drain: float) -> None:
    model = equal_values(planting.model(), first=drain)
    plant_sink(model, layer=0, head=1, mass=0.9)
    rows = looked_at(model, "sinks")
    assert values(rows, "first_token_mass")[0, 1] == pytest.approx(0.9, rel=1e-4)
    # y = 0.9 d v + 0.1 v
    expected = abs(0.9 * drain) / abs(0.9 * drain + 0.1)
    assert values(rows, "sink_write")[0, 1] == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_what_a_slot_takes_makes_the_output_smaller() -> None:
    model = equal_values(planting.model(softmax={"kind": "sink-logit", "init": math.log(5.0)}))
    rows = looked_at(model, "sinks")
    assert values(rows, "sink_write")[0, 1] == pytest.approx(UNIFORM, rel=1e-5)
    assert values(rows, "first_token_mass")[0, 1] < UNIFORM / 1.5
    assert not values(rows, "sink_write", stage="after")


@pytest.mark.parametrize("gate", ["sdpa-headwise", "sdpa-headwise-output", "sdpa-elementwise-shared"])
def test_a_gate_of_one_score_scales_what_reaches_the_projection(gate: str) -> None:
    model = equal_values(gated(planting.model(gate=gate), torch.tensor(0.3)))
    plant_sink(model, layer=1, head=1, mass=0.8)
    rows = looked_at(model, "sinks")
    before, after = (values(rows, "sink_write", stage=stage) for stage in ("before", "after"))
    assert before[1, 1] == pytest.approx(0.8, rel=1e-4)
    assert after == pytest.approx({place: 0.3 * value for place, value in before.items()}, rel=1e-5)
    assert set(before) == set(PLACES)


def test_an_elementwise_gate_weighs_channels() -> None:
    score_K = torch.linspace(0.1, 0.8, 8)
    model = equal_values(gated(planting.model(gate="sdpa-elementwise"), score_K))
    plant_sink(model, layer=0, head=0, mass=0.9)
    rows = looked_at(model, "sinks")
    share = ((score_K * CHANNELS).norm() / CHANNELS.norm()).item()
    assert values(rows, "sink_write", stage="before")[0, 0] == pytest.approx(0.9, rel=1e-4)
    assert values(rows, "sink_write", stage="after")[0, 0] == pytest.approx(0.9 * share, rel=1e-4)


def test_a_gate_shut_on_the_channels_of_the_sink_lets_nothing_of_it_through() -> None:
    """The first value lies in one channel, the others in the rest: the output is as large as ever."""
    model = planting.model(gate="sdpa-elementwise-identity")

    def apart(v_BSGK: Tensor) -> None:
        v_BSGK.fill_(1.0)
        v_BSGK[..., 0] = 0.0
        v_BSGK[:, 0] = 0.0
        v_BSGK[:, 0, :, 0] = 4.0

    for block in model.blocks:
        set_tap(block.attention.tap_v, apart)
        shut_K = (torch.arange(8) > 0).float()
        set_tap(block.attention.gates["sdpa"].tap_logits, lambda g, shut_K=shut_K: g.copy_(shut_K.expand_as(g)))
    plant_sink(model, layer=0, head=0, mass=0.5)
    rows = looked_at(model, "sinks")
    expected = 2.0 / math.sqrt(4.0 + 7 * 0.25)
    assert values(rows, "sink_write", stage="before")[0, 0] == pytest.approx(expected, rel=1e-4)
    assert values(rows, "sink_write", stage="after")[0, 0] == 0.0


def test_heads_of_a_group_write_the_same_value_with_scores_of_their_own() -> None:
    score_H1 = torch.tensor([0.1, 0.2, 0.4, 0.8])[:, None]
    model = equal_values(gated(planting.model(gate="sdpa-headwise", n_heads=4, n_kv_heads=2, d_model=32), score_H1))
    attention = model.blocks[1].attention
    set_tap(attention.tap_v, lambda v: v[:, 0, 1].mul_(0.0))  # the first value of the second group

    def sink_key(k_BSGK: Tensor) -> None:
        k_BSGK.zero_()
        k_BSGK[:, 0, :, 0] = math.sqrt(k_BSGK.shape[-1])

    def three_quarters(q_BTHK: Tensor) -> None:
        q_BTHK.zero_()
        for t in range(1, T):
            q_BTHK[:, t, 1::2, 0] = math.log(3 * t)

    set_tap(attention.tap_k, sink_key)
    set_tap(attention.tap_q, three_quarters)
    rows = looked_at(model, "sinks")
    before, after = (values(rows, "sink_write", stage=stage) for stage in ("before", "after"))
    assert [before[1, h] for h in range(4)] == pytest.approx([UNIFORM, 0.75, 0.0, 0.0], rel=1e-5)
    assert [after[1, h] for h in range(4)] == pytest.approx([0.1 * UNIFORM, 0.2 * 0.75, 0.0, 0.0], rel=1e-5)
    gap = values(rows, "sink_logit_gap")
    assert [gap[1, h] for h in (1, 3)] == pytest.approx([math.log(3.0)] * 2, rel=1e-4)


def test_with_documents_the_value_is_that_of_the_documents_first_token() -> None:
    starts = (0, 5, 6)
    ids_BT = torch.tensor([0] * 5 + [1] + [2] * 10).expand(2, T)
    model = equal_values(planting.model(), first=0.0, at=starts)
    plant_sink(model, layer=0, head=0, mass=0.8, first=starts)
    assert values(looked_at(model, "sinks", segment_ids_BT=ids_BT), "sink_write")[0, 0] == 0.0
    model = equal_values(planting.model(), first=0.0)  # the others keep theirs
    plant_sink(model, layer=0, head=0, mass=0.8, first=starts)
    rows = looked_at(model, "sinks", segment_ids_BT=ids_BT)
    # Of the 13 queries that count, 4 stand in the first document.
    assert values(rows, "sink_write")[0, 0] == pytest.approx(0.8 * 9 / 13, rel=1e-4)
    assert values(rows, "sink_logit_gap")[0, 0] == pytest.approx(math.log(4.0), rel=1e-4)


def test_a_window_that_hides_the_first_token_leaves_it_nothing_to_write_and_no_gap() -> None:
    rows = looked_at(equal_values(planting.model(window=4)), "sinks")
    # The queries 1 to 3 see it, 4 to 15 do not.
    expected = (1 / 2 + 1 / 3 + 1 / 4) / (T - 1)
    assert values(rows, "sink_write")[0, 0] == pytest.approx(expected, rel=1e-5)
    gap = -(math.log(1) + math.log(2) + math.log(3)) / 3
    assert values(rows, "sink_logit_gap")[0, 0] == pytest.approx(gap, rel=1e-5)
    alone = looked_at(equal_values(planting.model(window=1)), "sinks")
    assert not values(alone, "sink_logit_gap") and set(values(alone, "sink_write").values()) == {0.0}


def test_queries_whose_output_is_zero_do_not_count() -> None:
    model = planting.model()
    for block in model.blocks:
        # Values of the first eight tokens are 0: queries see nothing else before.
        set_tap(block.attention.tap_v, lambda v: v.copy_((torch.arange(T) >= 8).float()[:, None, None].expand_as(v)))
    assert set(values(looked_at(model, "sinks"), "sink_write").values()) == {0.0}
    model = planting.model()
    for block in model.blocks:
        set_tap(block.attention.tap_v, lambda v: v.zero_())
    assert not values(looked_at(model, "sinks"), "sink_write")


@pytest.mark.parametrize("skip", [1, 6])
def test_what_is_written_is_a_mean_over_the_queries_that_count(skip: int) -> None:
    rows = looked_at(equal_values(planting.model()), "sinks", config=ProbeConfig(skip_queries=skip))
    expected = sum(1 / (i + 1) for i in range(skip, T)) / (T - skip)
    assert values(rows, "sink_write")[0, 0] == pytest.approx(expected, rel=1e-5)
    gap = -sum(math.log(i) for i in range(skip, T)) / (T - skip)
    assert values(rows, "sink_logit_gap")[0, 0] == pytest.approx(gap, rel=1e-5)


def test_a_sink_elsewhere_writes_nothing_in_the_first_tokens_name() -> None:
    model = equal_values(planting.model())
    plant_sink_at(model, 5, layer=0, head=1, mass=0.9)
    # Query i ≥ 5 leaves a tenth to its other i keys.
    shares = [1 / (i + 1) for i in range(1, 5)] + [0.1 / i for i in range(5, T)]
    found = values(looked_at(model, "sinks"), "sink_write")
    assert found[0, 1] == pytest.approx(sum(shares) / len(shares), rel=1e-4)


def test_where_every_query_sees_every_key_the_first_of_them_writes() -> None:
    config = tiny.model(arch="encoder-decoder", positions="none", n_heads=4, n_kv_heads=2, d_model=32)
    model = equal_values(build_model(config))
    for module in model.modules():
        if isinstance(module, GatedAttention):
            nn.init.zeros_(module.q_proj.weight)
    with torch.no_grad(), capture(model, ["sinks"]) as recorder:
        model(torch.randint(0, 17, (2, 9)), torch.randint(0, 17, (2, 6)))
    for stack in ("encoder", "cross"):
        assert values(recorder.rows(), "sink_write", stack=stack)[1, 3] == pytest.approx(1 / 9, rel=1e-5)
        gap = values(recorder.rows(), "sink_logit_gap", stack=stack)[1, 3]
        assert gap == pytest.approx(-math.log(8.0), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"gate": "value-headwise"}, {"before"}),
        ({"gate": "sdpa-headwise-add"}, {"before"}),
        ({"gate": "sdpa-headwise-lse"}, {"before"}),
        ({"gate": "sdpa-elementwise", "output_map": "rms"}, {"before"}),
        ({"gate": "sdpa-headwise", "output_map": "rms"}, {"before", "after"}),
        ({"gate": "sdpa-headwise-static"}, {"before", "after"}),
        ({"softmax": "sigmoid"}, set()),
        ({"softmax": "differential", "gate": "sdpa-headwise"}, set()),
        ({"softmax": "off-by-one"}, {"before"}),
    ],
)
def test_what_cannot_be_told_has_no_rows(changes: dict[str, object], stages: set[str]) -> None:
    rows = looked_at(planting.model(init="fan-in", **changes), "sinks")
    assert {r.stage for r in rows if r.metric == "sink_write"} == stages
