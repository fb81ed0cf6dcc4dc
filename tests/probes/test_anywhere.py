"""A sink that is not on the first token is found: where, how strong, which id, how drained; and nothing else is."""

import math
from types import SimpleNamespace

import planting
import pytest
import tiny
import torch
from planting import T, looked_at, plant_sink, plant_sink_at, set_tap, tokens, values

from gatelab import override
from gatelab.config import ProbeConfig
from gatelab.models import build_model
from gatelab.ops.attention_stats import Columns, Stretch, one_pass
from gatelab.probes import capture
from gatelab.probes.anywhere import against_others, strongest
from gatelab.record import Row
from gatelab.studies.quickstart import toy
from gatelab.train.group import Group
from gatelab.train.loop import train

FIRST = sum(1 / (i + 1) for i in range(T)) / T  # importance of key 0 in uniform attention


def places(rows: list[Row], metric: str) -> dict[tuple[int | None, int | None, int | None], float]:
    return {(r.layer, r.head, r.key): r.value for r in rows if r.metric == metric}


@pytest.mark.parametrize("at", [(0, 1), (1, 0)])
def test_a_sink_planted_elsewhere_is_found_where_it_is_and_only_there(at: tuple[int, int]) -> None:
    model = planting.model()
    plant_sink_at(model, 5, layer=at[0], head=at[1], mass=0.8)
    rows = looked_at(model, "anywhere")
    heads = [(layer, head) for layer in range(2) for head in range(2)]
    found = values(rows, "sink_importance")
    assert {h: found[h] for h in heads} == pytest.approx({h: 0.8 if h == at else FIRST for h in heads}, rel=1e-5)
    assert found[None, None] == pytest.approx((0.8 + 3 * FIRST) / 4, rel=1e-5)
    uniform = sum(1 / (i + 1) for i in range(5, T)) / (T - 5)
    excess = values(rows, "sink_excess")
    assert {h: excess[h] for h in heads} == pytest.approx({h: 0.8 / uniform if h == at else 1 for h in heads}, rel=1e-5)
    assert places(rows, "sink_position") == {(*h, 5 if h == at else 0): 1.0 for h in heads}
    assert values(rows, "sink_rate_any", threshold=0.5) == {
        **{h: float(h == at) for h in heads},
        **{(layer, None): 0.5 * (layer == at[0]) for layer in range(2)},
        (None, None): 0.25,
    }
    assert values(rows, "sink_elsewhere", threshold=0.5) == {
        **{(layer, None): 0.5 * (layer == at[0]) for layer in range(2)},
        (None, None): 0.25,
    }


def test_a_sink_on_the_first_token_is_not_elsewhere() -> None:
    model = planting.model()
    plant_sink(model, layer=1, head=1)
    rows = looked_at(model, "anywhere")
    assert values(rows, "sink_rate_any", threshold=0.5)[1, None] == 0.5
    assert values(rows, "sink_elsewhere", threshold=0.5)[1, None] == 0.0


def test_the_first_token_of_a_document_is_a_first_key() -> None:
    model = planting.model()
    plant_sink(model, layer=0, head=0, mass=0.8, first=(0, 5))
    rows = looked_at(model, "anywhere", segment_ids_BT=torch.tensor([0] * 5 + [1] * 11).expand(2, T))
    # Five queries see key 0, which is less than half of the eleven that see key 5.
    assert (0, 0, 5) in places(rows, "sink_position")
    assert values(rows, "sink_importance")[0, 0] == pytest.approx((1 + 10 * 0.8) / 11, rel=1e-5)
    assert values(rows, "sink_rate_any", threshold=0.5)[0, 0] == 1.0
    assert values(rows, "sink_elsewhere", threshold=0.5)[0, None] == 0.0


@pytest.mark.parametrize("block", [7, 256])
def test_a_key_that_few_queries_see_is_no_sink(block: int) -> None:
    """Every query looks at itself, so that key k has the importance 1 / (40 − k), the last one 1."""
    q_BTHK = 40.0 * torch.eye(40)[None, :, None]
    columns = Columns()
    one_pass([columns], Stretch(q_BTHK=q_BTHK, k_BSGK=q_BTHK), block=block)
    assert columns.importance_BHS[0, 0, -1] == pytest.approx(1.0)
    importance_BH, key_BH = strongest(columns)
    assert key_BH.item() == 40 - 16 and importance_BH.item() == pytest.approx(1 / 16)


def test_the_ids_at_which_sinks_sit_are_named() -> None:
    model, ids_BT = planting.model(), tokens(4) % 7
    plant_sink_at(model, 5, layer=1, head=0)
    ids_BT[:, 5] = torch.tensor([9, 11, 9, 9])
    # The other three heads are uniform: none of their tokens is named.
    expected = {(None, None, 9): 3 / 16, (None, None, 11): 1 / 16}
    assert places(looked_at(model, "anywhere", tokens_BT=ids_BT), "sink_token") == expected
    assert not places(looked_at(model, "anywhere"), "sink_token")


def test_no_more_than_five_ids_are_named() -> None:
    model = planting.model()
    plant_sink_at(model, 5, layer=1, head=0)
    ids_BT = torch.arange(8)[:, None].expand(8, T).clone()
    assert list(places(looked_at(model, "anywhere", tokens_BT=ids_BT), "sink_token")) == [
        (None, None, i) for i in range(5)
    ]


def test_the_drain_and_the_peak_are_those_of_the_sink() -> None:
    model = planting.model()
    plant_sink_at(model, 5, layer=1, head=1)

    def drain(v_BSGK: torch.Tensor) -> None:
        v_BSGK /= v_BSGK.norm(dim=-1, keepdim=True)
        v_BSGK[:, 5, 1] *= 0.05

    def peak(x_BTD: torch.Tensor) -> None:
        x_BTD /= x_BTD.norm(dim=-1, keepdim=True)
        x_BTD[:, 5] *= 30.0

    set_tap(model.blocks[1].attention.tap_v, drain)
    set_tap(model.blocks[1].tap_residual, peak)
    rows = looked_at(model, "anywhere")
    found = values(rows, "sink_value_drain")
    assert found[1, 1] == pytest.approx(0.05, rel=1e-4) and found[1, 0] == pytest.approx(1.0)
    peaks = values(rows, "sink_residual_peak")
    assert peaks[1, None] == peaks[None, None] == pytest.approx(30.0, rel=1e-4) and peaks[0, None] < 3


def test_heads_share_the_values_of_their_group() -> None:
    model = planting.model(n_heads=4, n_kv_heads=2)

    def drain(v_BSGK: torch.Tensor) -> None:
        v_BSGK /= v_BSGK.norm(dim=-1, keepdim=True)
        v_BSGK[:, 0, 1] *= 0.2

    set_tap(model.blocks[0].attention.tap_v, drain)
    found = values(looked_at(model, "anywhere"), "sink_value_drain")
    assert [found[0, h] for h in range(4)] == pytest.approx([1.0, 1.0, 0.2, 0.2], rel=1e-4)


def test_the_mass_on_keys_is_told_apart_by_their_domain() -> None:
    model = planting.model()
    plant_sink_at(model, 5, layer=0, head=1, mass=0.8)
    late_BT = (torch.arange(T) >= 8).long().expand(2, T)
    rows = looked_at(model, "anywhere", domains=("early", "late"), domain_BT=late_BT)
    # Query 0 sees one key alone and does not count.
    uniform = sum((i - 7) / (i + 1) for i in range(8, T)) / (T - 1)
    sunk = sum(0.2 * (i - 7) / i for i in range(8, T)) / (T - 1)
    late, expected = values(rows, "key_mass", domain="late"), (uniform + sunk) / 2
    assert late == pytest.approx({(0, None): expected, (1, None): uniform, (None, None): (expected + uniform) / 2})
    early = values(rows, "key_mass", domain="early")
    assert early == pytest.approx({place: 1 - value for place, value in late.items()})
    assert values(rows, "key_mass_uniform", domain="late")[0, None] == pytest.approx(uniform)


def test_a_sink_in_the_middle_of_a_context_is_found_in_cross_attention() -> None:
    config = tiny.model(n_heads=4, n_kv_heads=2, init_std=0.3, arch="encoder-decoder", positions="none")
    model = build_model(config)
    cross = model.blocks[1].cross_attention
    set_tap(cross.tap_k, lambda k_BSGK: k_BSGK.copy_((torch.arange(9) == 4).float()[:, None, None].expand_as(k_BSGK)))
    set_tap(cross.tap_q, lambda q_BTHK: q_BTHK.fill_(20.0))
    with torch.no_grad(), capture(model, ["anywhere"]) as recorder:
        model(torch.randint(0, 17, (2, 9)), torch.randint(0, 17, (2, 6)))
    rows = [r for r in recorder.rows() if r.stack == "cross" and r.layer == 1]
    assert {(r.head, r.key) for r in rows if r.metric == "sink_position"} == {(h, 4) for h in range(4)}
    assert values(rows, "sink_elsewhere", threshold=0.5)[1, None] == 1.0
    assert {r.stack for r in recorder.rows() if r.metric == "sink_importance"} == {None, "cross", "encoder"}


def test_where_all_keys_are_alike_the_strongest_is_the_first() -> None:
    model = build_model(tiny.model(arch="encoder"))
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.q_proj.weight)
    rows = looked_at(model, "anywhere", config=ProbeConfig(thresholds=(0.01,)))
    assert {key for _, _, key in places(rows, "sink_position")} == {0}
    assert values(rows, "sink_elsewhere", threshold=0.01)[None, None] == 0.0
    assert values(rows, "sink_importance")[None, None] == pytest.approx(1 / T)


def test_a_window_leaves_every_key_as_many_queries_as_it_can() -> None:
    rows = looked_at(planting.model(window=4), "anywhere")
    # Key 0 is seen by the queries 0 to 3, which see 1, 2, 3 and 4 keys.
    expected = sum(1 / n for n in (1, 2, 3, 4)) / 4
    assert values(rows, "sink_importance")[0, 0] == pytest.approx(expected, rel=1e-5)
    assert not math.isnan(values(rows, "sink_excess")[0, 0])


def test_keys_that_differ_by_rounding_are_equal() -> None:
    columns = SimpleNamespace(
        importance_BHS=torch.tensor([[[0.2, 0.25 - 5e-8, 0.25]]]), n_queries_BS=torch.tensor([[3.0, 3.0, 3.0]])
    )
    assert strongest(columns)[1].item() == 1


def test_the_others_of_a_median_are_all_but_the_sink() -> None:
    values_BT = torch.tensor([[2.0, 20.0, 5.0], [7.0, 5.0, 35.0]])
    assert against_others(values_BT, torch.tensor([1, 2])).tolist() == [10.0, 7.0]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "is_on_bos"), [(0, True), (4, False)])
def test_the_toy_of_the_quickstart_looks_where_its_page_says(seed: int, is_on_bos: bool) -> None:
    """docs/results/bigram-backcopy.md: seed 0 looks at BOS, seed 4 at the trigger tokens, wherever they stand."""
    group = Group([override(toy, {"seed": seed})])
    for _ in train(group):
        pass
    source, model = group.members[0].source, group.members[0].model
    batch = source.heldout_batch(0, 64, toy.train.seq_len)
    with torch.no_grad(), capture(model, ["anywhere"], domains=source.domains) as recorder:
        recorder.tokens_BT, recorder.domain_BT = torch.from_numpy(batch.inputs_BT), torch.from_numpy(batch.domain_BT)
        model(recorder.tokens_BT)
    rows = recorder.rows()
    named = places(rows, "sink_token")
    assert {key for _, _, key in named} == ({source.bos_id} if is_on_bos else set(range(toy.data.n_triggers)))
    assert sum(named.values()) > 0.95
    assert values(rows, "sink_elsewhere", threshold=0.1)[None, None] == (0.0 if is_on_bos else 1.0)
    # Triggers are the keys of the domain backcopy.
    on_triggers = values(rows, "key_mass", domain="backcopy")[None, None]
    uniform = values(rows, "key_mass_uniform", domain="backcopy")[None, None]
    assert on_triggers < uniform / 5 if is_on_bos else on_triggers > 2 * uniform
