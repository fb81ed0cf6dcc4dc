"""Ranks of planted attention: one where all queries look alike, many where each looks at itself."""

import planting
import pytest
import tiny
import torch
from planting import T, looked_at, plant_sink, set_tap, tokens, values
from torch import nn

from gatelab.models import build_model
from gatelab.probes import capture


def test_an_encoder_that_looks_evenly_has_rank_one() -> None:
    model = build_model(tiny.model(arch="encoder"))
    for block in model.blocks:
        nn.init.zeros_(block.attention.q_proj.weight)
    rows = looked_at(model, "rank")
    places = [(layer, head) for layer in (0, 1) for head in (None, 0, 1)] + [(None, None)]
    for metric in ("effective_rank", "stable_rank"):
        assert values(rows, metric) == pytest.approx(dict.fromkeys(places, 1.0), rel=1e-5)
    assert {r.length for r in rows} == {T} and {r.stack for r in rows} == {"encoder"}


def test_a_head_that_looks_at_the_token_itself_has_full_rank() -> None:
    model = planting.model(n_heads=4, n_kv_heads=2, d_model=64)

    def at_itself(x_BTHK: torch.Tensor) -> None:
        x_BTHK.zero_()
        x_BTHK[:, torch.arange(T), 1, torch.arange(T)] = 20.0

    attention = model.blocks[1].attention
    assert attention.heads.head_dim == T
    set_tap(attention.tap_q, at_itself)

    def own(k_BSGK: torch.Tensor) -> None:
        k_BSGK.zero_()
        k_BSGK[:, torch.arange(T), 0, torch.arange(T)] = 20.0

    set_tap(attention.tap_k, own)
    rows = looked_at(model, "rank")
    # Query 0, which sees itself alone, is not sampled.
    for metric in ("effective_rank", "stable_rank"):
        found = values(rows, metric)
        assert found[1, 1] == pytest.approx(T - 1, rel=1e-3)
        # Heads with no query are uniform: rows of 1/(i + 1) over the keys up to i.
        assert found[1, 0] == pytest.approx(found[0, 3], rel=1e-6) and found[1, 0] < T - 5
        assert found[1, None] == pytest.approx(sum(found[1, h] for h in range(4)) / 4, rel=1e-6)
        assert found[None, None] == pytest.approx((found[0, None] + found[1, None]) / 2, rel=1e-6)


def test_uniform_causal_rows_have_the_rank_of_their_matrix() -> None:
    rows_RS = torch.tril(torch.ones(T, T, dtype=torch.float64))[1:]
    singular = torch.linalg.svdvals(rows_RS / rows_RS.sum(-1, keepdim=True))
    share = singular / singular.sum()
    found = looked_at(planting.model(), "rank")
    effective, stable = (values(found, m)[None, None] for m in ("effective_rank", "stable_rank"))
    assert effective == pytest.approx(torch.special.entr(share).sum().exp().item(), rel=1e-3)
    assert stable == pytest.approx((singular.square().sum() / singular[0] ** 2).item(), rel=1e-3)


def test_a_sink_lowers_the_rank_of_its_head() -> None:
    model = planting.model()
    plant_sink(model, layer=0, head=1, mass=0.95)
    rows = looked_at(model, "rank")
    for metric in ("effective_rank", "stable_rank"):
        found = values(rows, metric)
        assert 1.0 <= found[0, 1] < 0.8 * found[0, 0]
    assert values(rows, "stable_rank")[0, 1] < 1.01


def test_no_rank_is_above_the_rows_that_are_sampled() -> None:
    model = build_model(tiny.model(max_seq_len=150, d_model=64, init_std=2.0))
    with torch.no_grad(), capture(model, ["rank"]) as recorder:
        model(torch.randint(0, 17, (1, 150)))
    found = values(recorder.rows(), "effective_rank")
    assert max(found.values()) <= 64 and found[None, None] > 16


def test_cross_attention_has_ranks_too() -> None:
    model = build_model(tiny.model(arch="encoder-decoder", n_heads=4, n_kv_heads=2, init_std=0.3))
    with torch.no_grad(), capture(model, ["rank"]) as recorder:
        model(torch.randint(0, 17, (2, 9)), torch.randint(0, 17, (2, 6)))
    rows = recorder.rows()
    for stack, n in ((None, 6), ("cross", 6), ("encoder", 9)):
        found = values(rows, "effective_rank", stack=stack)
        assert len(found) == 2 * 5 + 1 and all(1 <= value <= n - 1 for value in found.values())


def test_one_token_has_no_rank() -> None:
    model = planting.model()
    with torch.no_grad(), capture(model, ["rank"]) as recorder:
        model(tokens()[:, :1])
    assert recorder.rows() == []
