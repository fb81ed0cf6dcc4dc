"""A clamped gate is seen: its mean, its shares, its histogram."""

import planting
import pytest
import torch
from planting import looked_at, set_tap, values
from torch import nn

from gatelab.probes.gate_scores import N_BINS


def logit(p: float) -> float:
    return float(torch.logit(torch.tensor(p, dtype=torch.float64)))


def clamped(scores: tuple[float, float], gate: str = "sdpa-headwise-bias") -> nn.Module:
    """A model whose gates give one score a layer."""
    model = planting.model(gate=gate)
    for block, score in zip(model.blocks, scores, strict=True):
        (module,) = block.attention.gates.values()
        nn.init.zeros_(module.g_proj.weight)
        nn.init.constant_(module.g_proj.bias, logit(score))
    return model


@pytest.mark.parametrize("gate", ["sdpa-headwise-bias", "sdpa-elementwise-bias", "value-elementwise-shared-bias"])
def test_a_clamped_gate_is_seen(gate: str) -> None:
    rows = looked_at(clamped((0.05, 0.97), gate), "gate_scores")
    site = gate.partition("-")[0]
    heads = (None, 0) if "shared" in gate else (None, 0, 1)
    for metric, shut, wide, both in (
        ("gate_mean", 0.05, 0.97, 0.51),
        ("gate_below", 1, 0, 0.5),
        ("gate_above", 0, 1, 0.5),
    ):
        expected = {(0, h): shut for h in heads} | {(1, h): wide for h in heads} | {(None, None): both}
        assert values(rows, metric, site=site) == pytest.approx(expected), metric
    assert {r.threshold for r in rows if r.metric == "gate_below"} == {0.1}
    assert {r.threshold for r in rows if r.metric == "gate_above"} == {0.9}


@pytest.mark.parametrize(("score", "below", "above"), [(0.09, 1, 0), (0.11, 0, 0), (0.89, 0, 0), (0.91, 0, 1)])
def test_shut_is_below_a_tenth_and_open_above_nine_tenths(score: float, below: float, above: float) -> None:
    rows = looked_at(clamped((score, 0.5)), "gate_scores")
    assert values(rows, "gate_below")[0, None] == below and values(rows, "gate_above")[0, None] == above


def test_the_histogram_has_the_clamped_scores_in_their_bin() -> None:
    rows = looked_at(clamped((0.05, 0.97)), "gate_scores")
    histogram = {(r.layer, r.bin): r.value for r in rows if r.metric == "gate_histogram"}
    assert len(histogram) == 2 * N_BINS
    assert {at: v for at, v in histogram.items() if v} == {(0, 2): 1.0, (1, 48): 1.0}


def test_a_histogram_sums_to_one_over_scores_of_all_kinds() -> None:
    rows = looked_at(planting.model(gate="sdpa-elementwise", init="fan-in"), "gate_scores")
    for layer in range(2):
        shares = [r.value for r in rows if r.metric == "gate_histogram" and r.layer == layer]
        assert sum(shares) == pytest.approx(1.0) and sum(s > 0 for s in shares) > 10


def test_scores_outside_of_the_unit_interval_are_in_no_bin() -> None:
    model = planting.model(gate="sdpa-headwise-identity")
    for block in model.blocks:
        set_tap(
            block.attention.gates["sdpa"].tap_logits, lambda g: g.copy_(torch.arange(g.numel()).view_as(g) % 2 * 3.0)
        )
    rows = looked_at(model, "gate_scores")
    shares = [r.value for r in rows if r.metric == "gate_histogram" and r.layer == 0]
    assert shares[0] == pytest.approx(0.5) and sum(shares) == pytest.approx(0.5)
    assert values(rows, "gate_mean")[0, None] == pytest.approx(1.5)


def test_the_edges_of_the_histogram_belong_to_its_bins() -> None:
    model = planting.model(gate="sdpa-headwise-identity")
    for block in model.blocks:
        set_tap(block.attention.gates["sdpa"].tap_logits, lambda g: g.copy_((torch.arange(g.numel()) % 2).view_as(g)))
    rows = looked_at(model, "gate_scores")
    histogram = {r.bin: r.value for r in rows if r.metric == "gate_histogram" and r.layer == 0 and r.value}
    assert histogram == pytest.approx({0: 0.5, N_BINS - 1: 0.5})


def test_shared_scores_are_averaged_before_they_are_looked_at() -> None:
    model = planting.model(gate="sdpa-elementwise-shared")
    for block in model.blocks:
        set_tap(
            block.attention.gates["sdpa"].tap_logits,
            lambda g: g.copy_(torch.tensor([logit(0.02), logit(0.98)])[:, None]),
        )
    rows = looked_at(model, "gate_scores")
    assert values(rows, "gate_mean")[0, 0] == pytest.approx(0.5) and values(rows, "gate_below")[0, 0] == 0


def test_the_mean_is_told_apart_by_domain() -> None:
    model = planting.model(gate="sdpa-headwise")
    early_BT = (torch.arange(planting.T) < 4).expand(2, planting.T)
    for block in model.blocks:
        set_tap(
            block.attention.gates["sdpa"].tap_logits,
            lambda g: g.copy_(torch.where(early_BT, logit(0.2), logit(0.6))[..., None, None].expand_as(g)),
        )
    rows = looked_at(model, "gate_scores", domains=("late", "early"), domain_BT=early_BT.long())
    assert values(rows, "gate_mean", domain="early") == pytest.approx(
        {(0, None): 0.2, (1, None): 0.2, (None, None): 0.2}
    )
    assert values(rows, "gate_mean", domain="late")[None, None] == pytest.approx(0.6)
    assert values(rows, "gate_mean", domain=None)[None, None] == pytest.approx(0.5)


def test_each_site_is_told_by_itself() -> None:
    rows = looked_at(planting.model(gate="sdpa-headwise+out-elementwise+key-headwise"), "gate_scores")
    assert {r.site for r in rows} == {"sdpa", "out", "key"}
    assert len(values(rows, "gate_mean", site="out", layer=None)) == 1


def test_a_model_without_gates_has_no_gate_rows() -> None:
    assert looked_at(planting.model(), "gate_scores") == []


def at_tokens(scores_T: torch.Tensor, head: int, others: float = 0.5) -> nn.Module:
    """A model in whose first layer one head has these scores, one a token, and all other gates `others`."""
    model = planting.model(gate="sdpa-headwise-identity")
    for layer, block in enumerate(model.blocks):

        def scores(g_BTH1: torch.Tensor, layer: int = layer) -> None:
            g_BTH1.fill_(others)
            if layer == 0:
                g_BTH1[:, :, head, 0] = scores_T

        set_tap(block.attention.gates["sdpa"].tap_logits, scores)
    return model


def test_hoyer_sparsity_is_one_of_a_single_score_and_zero_of_equal_ones() -> None:
    one = torch.zeros(planting.T)
    one[5] = -3.0
    found = values(looked_at(at_tokens(one, head=1), "gate_scores"), "gate_hoyer")
    assert found == pytest.approx(
        {(0, 0): 0, (0, 1): 1, (1, 0): 0, (1, 1): 0, (0, None): 0.5, (1, None): 0, (None, None): 0.25}, abs=1e-5
    )


def test_hoyer_sparsity_does_not_know_the_scale() -> None:
    found = [
        values(looked_at(at_tokens(scale * torch.arange(16.0), head=0), "gate_scores"), "gate_hoyer")[0, 0]
        for scale in (1e-3, 1.0, 50.0)
    ]
    t = torch.arange(16.0)
    assert found == pytest.approx([(4 - (t.sum() / t.norm()).item()) / 3] * 3, rel=1e-4)


def test_a_gate_that_opens_at_one_token_is_not_dead() -> None:
    rare = torch.full((planting.T,), 0.01)
    rows = looked_at(at_tokens(rare, head=1), "gate_scores")
    assert values(rows, "gate_dead", threshold=0.1) == {(0, None): 0.5, (1, None): 0.0, (None, None): 0.25}
    rare[9] = 1.0  # a mean of 0.07
    rows = looked_at(at_tokens(rare, head=1), "gate_scores")
    assert values(rows, "gate_dead") == {(0, None): 0.0, (1, None): 0.0, (None, None): 0.0}


def test_a_gate_that_never_shuts_is_stuck_open() -> None:
    wide = torch.full((planting.T,), 0.99)
    assert values(looked_at(at_tokens(wide, head=0), "gate_scores"), "gate_stuck_open", threshold=0.9)[0, None] == 0.5
    wide[3] = 0.0
    assert values(looked_at(at_tokens(wide, head=0), "gate_scores"), "gate_stuck_open")[0, None] == 0.0


def test_one_constant_score_has_no_sparsity() -> None:
    rows = looked_at(planting.model(gate="sdpa-headwise-static"), "gate_scores")
    assert not values(rows, "gate_hoyer") and values(rows, "gate_stuck_open")[None, None] == 0.0
