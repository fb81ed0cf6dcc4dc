"""Gates held open, scaled, and off in one layer at a time: planted rows give the verdict, and a model the planted layer."""

from dataclasses import replace

import pytest
import torch
from test_causes import MODELS, card, ledger, of

from gatelab.analysis.hypotheses import edits_of
from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.probes.interventions import control, intervened, parse

MODEL = {"n_layers": 3, "gate": "sdpa-headwise"}


@pytest.mark.parametrize(
    ("name", "word", "place"),
    [("shut-scores", "gate=open", 0), ("score-scale", "gate-scale=0.5", 0), ("score-scale", "gate-scale=2", 1)],
)
@pytest.mark.parametrize(
    ("changes", "verdict"),
    [((0.5, 0.52, 0.51), "supported"), ((0.1, 0.102, 0.101), "refuted"), ((0.5, 0.1, 0.3), "undecided")],
)
def test_an_edit_of_scores_is_held_against_a_change_of_its_size(name, word, place, changes, verdict):
    found = card(name, ledger(edits=of("g", word, changes, (0.1, 0.101, 0.102))))
    assert found.decisions[place].verdict == verdict and found.decisions[place].test == word


def layers(*costs, model=MODEL, seeds=5):
    """Each layer's edit costs this beyond its control, with some noise that layers do not share."""
    edits = {}
    for i, cost in enumerate(costs):
        noise = [0.001 * ((7 * i + 3 * s) % 5 - 2) for s in range(seeds)]
        edits |= of("g", f"gate=open:l{i}", [cost + 0.2 + n for n in noise], [0.2] * seeds)
    runs = {("c0", "none"): {}, ("c0", "gated"): {s: f"g{s}" for s in range(seeds)}}
    return replace(ledger(edits=edits), models={**MODELS, ("c0", "gated"): model}, runs=runs)


@pytest.mark.parametrize(
    ("costs", "verdict"),
    [((0.3, 0.0, 0.01), "supported"), ((0.3, 0.3, 0.301), "refuted"), ((0.3, 0.31, 0.301), "undecided")],
)
def test_layers_are_compared_two_by_two(costs, verdict):
    (found,) = card("layer-by-layer", layers(*costs)).decisions
    assert (found.verdict, found.n) == (verdict, 5)
    if verdict == "supported":
        assert found.estimate == pytest.approx(0.3, abs=0.002) and found.low < 0.3 < found.high
        assert (
            found.numbers.startswith("gate=open:l0 costs 0.3 nats more than gate=open:l1")
            and "l2 +0.0" in found.numbers
        )


def test_one_layer_is_not_held_against_itself_and_many_are_written_out():
    one = card("layer-by-layer", layers(0.3, model={"n_layers": 1, "gate": "sdpa-headwise"}))
    assert one.verdict == "not run" and "one layer" in one.decisions[0].to_do[0]
    words = edits_of(MODEL, gated=True)
    assert {"gate=open", "gate-scale=0.5", "gate-scale=2", "gate=open:l0", "gate=open:l1", "gate=open:l2"} <= set(words)
    assert not [w for w in edits_of(MODEL | {"gate_layers": [0]}, gated=True) if w.startswith("gate=open:")]
    assert not [w for w in edits_of(MODEL, gated=False) if w.startswith("gate")]
    todo = card("layer-by-layer", replace(layers(), models={**MODELS, ("c0", "gated"): MODEL})).decisions[0].to_do
    assert todo == ["gatelab find runs/x --explain c0 --edit"]


def test_a_run_without_one_of_the_layers_is_no_run_of_the_test():
    short = layers(0.3, 0.0)
    found = card("layer-by-layer", replace(short, models={**MODELS, ("c0", "gated"): MODEL})).decisions[0]
    assert found.verdict == "not run" and found.to_do


def test_a_layer_whose_gate_is_open_already_costs_nothing_to_open():
    """Of a model with the gates of one layer at 1 and of the others at one half."""
    config = ModelConfig(
        d_model=16, n_layers=3, n_heads=2, d_ff=16, vocab_size=32, max_seq_len=8, gate="sdpa-headwise-bias"
    )
    model = build_model(config, seed=0).eval()
    for name, weight in model.named_parameters():
        if "g_proj" in name:
            value = 50.0 if name.startswith("blocks.1.") else 0.0
            weight.data.fill_(value if name.endswith("bias") else 0.0)
    assert any(name.startswith("blocks.1.") and "g_proj" in name for name, _ in model.named_parameters())
    ids = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))

    def moved(word):
        with torch.no_grad():
            clean = model(ids)
            with intervened(model, word if not isinstance(word, str) else parse(word), seed=0):
                return float((model(ids) - clean).abs().max())

    assert moved("gate=open:l1") == 0.0 < min(moved("gate=open:l0"), moved("gate=open:l2"))
    assert moved(control(parse("gate=open:l1"))) == 0.0 < moved(control(parse("gate=open:l0")))
    assert moved("gate-scale=2:l0") == 0.0, "logits of zero stay zero"
