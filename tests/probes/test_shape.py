"""Entropy, focus and the largest logit of attention that was planted."""

import math

import planting
import pytest
import torch
from planting import T, looked_at, plant_sink_at, set_tap, tokens, values

from gatelab.config import ProbeConfig
from gatelab.ops.attention_stats import block as block_module
from gatelab.probes import capture


@pytest.mark.parametrize("softmax", ["softmax", "sink-logit"])
@pytest.mark.parametrize("skip", [1, 6])
def test_uniform_attention_has_the_entropy_of_its_keys(skip: int, softmax: str) -> None:
    """A slot takes mass and leaves the shape."""
    rows = looked_at(planting.model(softmax=softmax), "shape", config=ProbeConfig(skip_queries=skip))
    places = [(layer, head) for layer in (0, 1, None) for head in ((None,) if layer is None else (None, 0, 1))]
    n = range(skip + 1, T + 1)
    for metric, expected in (
        ("attention_entropy", sum(math.log(i) for i in n) / len(n)),
        ("attention_entropy_relative", 1.0),
        ("attention_focus", sum(n) / len(n)),
        ("max_logit", 0.0),
    ):
        assert values(rows, metric) == pytest.approx(dict.fromkeys(places, expected), rel=1e-5), metric


def test_a_sink_narrows_the_focus_of_its_head() -> None:
    model = planting.model()
    plant_sink_at(model, 1, layer=0, head=1, mass=0.8)
    rows = looked_at(model, "shape")
    queries = range(1, T)
    entropy = [-0.8 * math.log(0.8) - 0.2 * math.log(0.2 / t) for t in queries]
    focus = [1 / (0.8**2 + 0.2**2 / t) for t in queries]
    assert values(rows, "attention_entropy")[0, 1] == pytest.approx(sum(entropy) / len(entropy), rel=1e-5)
    assert values(rows, "attention_focus")[0, 1] == pytest.approx(sum(focus) / len(focus), rel=1e-5)
    relative = [e / math.log(t + 1) for e, t in zip(entropy, queries, strict=True)]
    assert values(rows, "attention_entropy_relative")[0, 1] == pytest.approx(sum(relative) / len(relative), rel=1e-5)
    assert values(rows, "attention_entropy_relative")[0, 0] == pytest.approx(1.0)


def test_the_largest_logit_is_that_of_a_key_that_is_seen() -> None:
    model = planting.model()

    def keys(k_BSGK: torch.Tensor) -> None:
        k_BSGK.zero_()
        k_BSGK[:, 5, 0, 0], k_BSGK[:, 12, 0, 0] = 7.0, 100.0

    def queries(q_BTHK: torch.Tensor) -> None:
        q_BTHK.zero_()
        q_BTHK[:, 8, 0, 0] = 3.0  # sees key 5, not key 12

    set_tap(model.blocks[1].attention.tap_k, keys)
    set_tap(model.blocks[1].attention.tap_q, queries)
    logit = 21 / math.sqrt(8)
    expected = {(1, 0): logit, (1, 1): 0.0, (1, None): logit, (None, None): logit}
    assert values(looked_at(model, "shape"), "max_logit") == pytest.approx(
        {(0, 0): 0.0, (0, 1): 0.0, (0, None): 0.0, **expected}
    )


def test_queries_whose_weights_are_all_zero_have_no_shape() -> None:
    model = planting.model(softmax="softpick")
    rows = looked_at(model, "shape")  # logits of 0 weigh nothing under softpick
    assert {r.metric for r in rows} == {"max_logit"}


def test_a_window_of_one_key_has_no_shape() -> None:
    assert {r.metric for r in looked_at(planting.model(window=1), "shape")} == {"max_logit"}


def test_the_weights_of_a_layer_are_computed_once_for_all_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counting(*args: object, **keywords: object) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append(args)
        return weighed(*args, **keywords)

    weighed = block_module.attention_weights
    monkeypatch.setattr(block_module, "attention_weights", counting)
    model = planting.model(gate="sdpa-elementwise")
    with capture(model) as recorder:
        model(tokens())
    assert len(recorder.probes) > 3 and len(passes) == 2  # layers
    passes.clear()
    with capture(model, ["gate_scores", "massive"]):
        model(tokens())
    assert passes == []
