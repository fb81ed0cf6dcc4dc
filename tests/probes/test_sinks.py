"""A planted sink is found where it was planted, and nowhere else."""

import math

import planting
import pytest
import torch
from planting import T, looked_at, plant_sink, set_tap, values

from gatelab.config import ProbeConfig

UNIFORM = sum(1 / (i + 1) for i in range(1, T)) / (T - 1)


def near(expected: dict[tuple[int | None, int | None], float]) -> object:
    return pytest.approx(expected, rel=1e-4)


def layers_and_heads(elsewhere: float, found: float, at: tuple[int, int]) -> dict[tuple[int | None, int | None], float]:
    """What heads, layers and the model should say when one head says `found` and all others `elsewhere`."""
    out = {(layer, head): elsewhere for layer in range(2) for head in range(2)} | {at: found}
    out |= {(layer, None): (out[layer, 0] + out[layer, 1]) / 2 for layer in range(2)}
    return out | {(None, None): (out[0, None] + out[1, None]) / 2}


@pytest.mark.parametrize("at", [(0, 1), (1, 0)])
def test_a_planted_sink_is_found_and_only_there(at: tuple[int, int]) -> None:
    model = planting.model()
    plant_sink(model, layer=at[0], head=at[1], mass=0.9)
    rows = looked_at(model, "sinks")
    assert values(rows, "first_token_mass") == near(layers_and_heads(UNIFORM, 0.9, at))
    assert values(rows, "sink_rate", threshold=0.5) == near(layers_and_heads(0.0, 1.0, at))
    assert {r.length for r in rows} == {T} and {(r.run, r.step, r.source) for r in rows} == {("run", 3, "sinks")}


@pytest.mark.parametrize(("threshold", "expected"), [(0.2, 1.0), (0.55, 1.0), (0.58, 0.0), (0.9, 0.0)])
def test_the_sink_rate_counts_importance_above_the_threshold(threshold: float, expected: float) -> None:
    """The importance of key 0 is planted as 0.5625: the first query's 1 and 15 equal masses, over 16."""
    model = planting.model()
    plant_sink(model, layer=0, head=1, mass=(0.5625 * T - 1) / (T - 1))
    rows = looked_at(model, "sinks", config=ProbeConfig(thresholds=(threshold,)))
    assert values(rows, "sink_rate", threshold=threshold)[0, 1] == expected


def test_uniform_attention_gives_the_uniform_mass() -> None:
    rows = looked_at(planting.model(), "sinks")
    assert values(rows, "first_token_mass") == near(layers_and_heads(UNIFORM, UNIFORM, (0, 0)))
    assert values(rows, "first_token_uniform") == near({(0, None): UNIFORM, (1, None): UNIFORM, (None, None): UNIFORM})


@pytest.mark.parametrize("skip", [1, 3, 7])
def test_the_first_queries_are_left_out_of_the_means(skip: int) -> None:
    rows = looked_at(planting.model(), "sinks", config=ProbeConfig(skip_queries=skip))
    expected = sum(1 / (i + 1) for i in range(skip, T)) / (T - skip)
    assert values(rows, "first_token_mass")[0, 0] == pytest.approx(expected, rel=1e-5)
    assert values(rows, "first_token_uniform")[None, None] == pytest.approx(expected, rel=1e-5)


def test_with_documents_the_first_token_is_that_of_the_document() -> None:
    starts = (0, 5, 6)
    ids_BT = torch.tensor([0] * 5 + [1] + [2] * 10).expand(2, T)
    model = planting.model()
    plant_sink(model, layer=1, head=0, mass=0.8, first=starts)
    rows = looked_at(model, "sinks", segment_ids_BT=ids_BT)
    # The second document has one token, whose query is left out as the first of a document.
    inside = [t - max(s for s in starts if s <= t) for t in range(T)]
    uniform = [1 / (i + 1) for i in inside if i > 0]
    found = values(rows, "first_token_mass")
    assert found[1, 0] == pytest.approx(0.8, rel=1e-5)
    assert found[0, 0] == found[1, 1] == pytest.approx(sum(uniform) / len(uniform), rel=1e-5)


def test_queries_are_told_apart_by_domain() -> None:
    model = planting.model()
    plant_sink(model, layer=0, head=1, mass=0.9)
    late_BT = (torch.arange(T) >= 8).long().expand(2, T)
    rows = looked_at(model, "sinks", domains=("early", "late", "none"), domain_BT=late_BT)
    early = sum(1 / (i + 1) for i in range(1, 8)) / 7
    late = sum(1 / (i + 1) for i in range(8, T)) / 8
    for domain, uniform in (("early", early), ("late", late)):
        found = values(rows, "first_token_mass", domain=domain)
        assert found == near(layers_and_heads(uniform, 0.9, (0, 1)))
    assert values(rows, "first_token_mass", domain=None)[0, 1] == pytest.approx(0.9, rel=1e-5)
    assert not values(rows, "first_token_mass", domain="none")


def test_the_mass_of_a_sink_logit_is_seen() -> None:
    model = planting.model(softmax={"kind": "sink-logit", "init": math.log(4.0)})
    rows = looked_at(model, "sinks")
    slot = sum(4 / (4 + i + 1) for i in range(1, T)) / (T - 1)
    first = sum(1 / (4 + i + 1) for i in range(1, T)) / (T - 1)
    assert values(rows, "sink_slot_mass") == near(layers_and_heads(slot, slot, (0, 0)))
    assert values(rows, "first_token_mass") == near(layers_and_heads(first, first, (0, 0)))
    assert not values(looked_at(planting.model(), "sinks"), "sink_slot_mass")


def test_a_drained_value_is_seen_in_its_head() -> None:
    model = planting.model()

    def drain(v_BSGK: torch.Tensor) -> None:
        v_BSGK /= v_BSGK.norm(dim=-1, keepdim=True)
        v_BSGK[:, 0, 1] *= 0.05

    for block in model.blocks:
        set_tap(
            block.attention.tap_v, drain if block is model.blocks[1] else lambda v: v.div_(v.norm(dim=-1, keepdim=True))
        )
    assert values(looked_at(model, "sinks"), "value_drain") == near(layers_and_heads(1.0, 0.05, (1, 1)))


def test_values_are_told_by_kv_head() -> None:
    model = planting.model(n_heads=4, n_kv_heads=2)
    heads = {head for layer, head in values(looked_at(model, "sinks"), "value_drain") if layer == 0}
    assert heads == {None, 0, 1}


@pytest.mark.parametrize("mass", [0.001, 0.5, 0.9, 1 - 1e-6])
def test_a_sink_of_a_mass_has_the_logit_gap_of_that_mass(mass: float) -> None:
    model = planting.model()
    plant_sink(model, layer=1, head=0, mass=mass)
    even = -sum(math.log(i) for i in range(1, T)) / (T - 1)  # one key in i + 1
    expected = layers_and_heads(even, math.log(mass / (1 - mass)), (1, 0))
    assert values(looked_at(model, "sinks"), "sink_logit_gap") == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("logit", [-60.0, 20.0, 60.0])
def test_the_logit_gap_tells_sinks_apart_whose_mass_has_saturated(logit: float) -> None:
    """All other logits are 0, those of 15 queries; the mass is 1 or 0 to within float32."""
    model = planting.model()
    set_tap(model.blocks[0].attention.tap_k, lambda k: k.zero_()[:, 0, 0, 0].fill_(math.sqrt(k.shape[-1])))
    set_tap(model.blocks[0].attention.tap_q, lambda q: q.zero_()[:, :, 0, 0].fill_(logit))
    rows = looked_at(model, "sinks")
    expected = logit - sum(math.log(i) for i in range(1, T)) / (T - 1)
    assert values(rows, "sink_logit_gap")[0, 0] == pytest.approx(expected, rel=1e-5)
    assert values(rows, "first_token_mass")[0, 0] == pytest.approx(float(logit > 0), abs=1e-6)


def test_a_gap_that_float32_does_not_hold_is_the_largest_that_it_does() -> None:
    for sign in (-1, 1):
        model = planting.model()
        set_tap(model.blocks[0].attention.tap_k, lambda k: k.zero_()[:, 0, 0, 0].fill_(math.sqrt(k.shape[-1])))
        set_tap(model.blocks[0].attention.tap_q, lambda q, sign=sign: q.zero_()[:, :, 0, 0].fill_(sign * 1e4))
        gap = values(looked_at(model, "sinks"), "sink_logit_gap")[0, 0]
        assert 80 < sign * gap < 88


def test_the_logit_gap_is_to_all_other_mass_the_slots_too() -> None:
    rows = looked_at(planting.model(softmax={"kind": "sink-logit", "init": math.log(4.0)}), "sinks")
    expected = -sum(math.log(i + 4) for i in range(1, T)) / (T - 1)
    assert values(rows, "sink_logit_gap") == near(layers_and_heads(expected, expected, (0, 0)))
    assert {r.unit for r in rows if r.metric == "sink_logit_gap"} == {"nats"}


def test_each_document_has_a_gap_of_its_own() -> None:
    starts = (0, 5, 6)
    model = planting.model()
    plant_sink(model, layer=1, head=0, mass=0.8, first=starts)
    rows = looked_at(model, "sinks", segment_ids_BT=torch.tensor([0] * 5 + [1] + [2] * 10).expand(2, T))
    found = values(rows, "sink_logit_gap")
    inside = [t - max(s for s in starts if s <= t) for t in range(T)]
    even = [-math.log(i) for i in inside if i > 0]
    assert found[1, 0] == pytest.approx(math.log(4.0), rel=1e-4)
    assert found[0, 0] == pytest.approx(sum(even) / len(even), rel=1e-5)


@pytest.mark.parametrize("mass", [1 - 1e-6, 1 - 1e-12])
def test_documents_do_not_cost_the_gap_its_range(mass: float) -> None:
    model = planting.model()
    plant_sink(model, layer=1, head=0, mass=mass, first=(0, 5))
    rows = looked_at(model, "sinks", segment_ids_BT=torch.tensor([0] * 5 + [1] * 11).expand(2, T))
    assert values(rows, "sink_logit_gap")[1, 0] == pytest.approx(math.log(mass / (1 - mass)), rel=1e-4)
