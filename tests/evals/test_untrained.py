"""The untrained model beside a score: a run's own beginning, weights of transformers drawn anew, and when none is made."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import tiny
from asked import checkpoint

from gatelab.evals.untrained import WEIGHTS, Untrained, n_weights, untrained
from gatelab.models import build_model


def test_of_ours_it_is_the_model_that_a_run_of_this_seed_begins_with():
    config = tiny.model(vocab_size=17, max_seq_len=32, gate="sdpa-headwise")
    trained = build_model(config, seed=3).half()
    for p in trained.parameters():
        p.data += 1
    fresh, begun = untrained(trained, 3), build_model(config, seed=3)
    assert not fresh.training and next(fresh.parameters()).dtype == torch.float16
    for (name, p), (_, q) in zip(fresh.named_parameters(), begun.named_parameters(), strict=True):
        assert torch.equal(p, q.half()), name


def test_of_transformers_it_is_drawn_by_its_own_rule_and_leaves_the_draws_of_others(tmp_path: Path):
    model = checkpoint(tmp_path).model
    for p in model.parameters():
        p.data += 1
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = untrained(model, 0), untrained(model, 0), untrained(model, 1)
    assert torch.equal(torch.rand(3), expected)
    weight = "model.embed_tokens.weight"
    drawn, same, another = (dict(m.named_parameters())[weight].detach() for m in (first, again, other))
    assert torch.equal(drawn, same) and not torch.equal(drawn, another)
    spread = model.config.initializer_range
    assert float(drawn.std()) == pytest.approx(spread, rel=0.2) and abs(float(drawn.mean())) < spread / 4
    assert n_weights(first) == n_weights(model) and not first.training


def test_one_is_made_unless_it_is_large_or_not_wanted():
    small = torch.nn.Linear(2, 2)
    with torch.device("meta"):
        large = torch.nn.Linear(WEIGHTS, 1, bias=False)
        larger = torch.nn.Linear(WEIGHTS + 1, 1, bias=False)
    assert Untrained().is_made(small) and Untrained().is_made(large) and not Untrained().is_made(larger)
    assert Untrained(is_whole=True).is_made(larger) and not Untrained(is_whole=False).is_made(small)
    assert "no untrained model of 200,000,001 weights was made" in Untrained().note(larger)
    assert Untrained(is_whole=False).note(larger) == "" and "first 20 items" in Untrained(4).note(small)
    assert "seed 4, of every item" in Untrained(4, True).note(small) == Untrained(4).note(small, in_ids=True)
