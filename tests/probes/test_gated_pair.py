"""The probes meet a trained gate: a pair of one million weights, trained on text, without a gate and with one."""

from collections.abc import Iterator

import pytest
import torch
from gated_pair import heldout, trained
from planting import values

from gatelab.evals.intervene import effects
from gatelab.models.generate import Keep, streaming_losses
from gatelab.probes import capture
from gatelab.record import Row
from gatelab.report.checkpoint import census, heads_of

N = 16


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, list[Row]]]:
    out = {}
    for arm in ("none", "g1-elementwise"):
        model, ids_BT = trained(arm), heldout(N)[:, :-1]
        with torch.no_grad(), capture(model) as recorder:
            recorder.tokens_BT = ids_BT
            model(ids_BT)
        out[arm] = recorder.rows()
    yield out


def whole(rows: list[Row], metric: str, **at: object) -> float:
    found = {r.value for r in rows if r.metric == metric and (r.layer, r.head, r.bin) == (None, None, None)
             and all(getattr(r, name) == value for name, value in at.items())}  # fmt: skip
    (value,) = found
    return value


def test_the_sink_is_there_without_the_gate_and_mostly_gone_with_it(rows: dict[str, list[Row]]) -> None:
    # 0.418 and 0.126 over other 32 held-out sequences in float32 (docs/results/gated-pair.md).
    masses = {arm: whole(found, "first_token_mass") for arm, found in rows.items()}
    assert 0.36 < masses["none"] < 0.47 and 0.09 < masses["g1-elementwise"] < 0.17
    assert (
        whole(rows["none"], "sink_rate", threshold=0.3)
        > 0.6
        > 0.4
        > whole(rows["g1-elementwise"], "sink_rate", threshold=0.3)
    )


def test_massive_activations_go_with_the_sink(rows: dict[str, list[Row]]) -> None:
    largest = {arm: whole(found, "massive_max") for arm, found in rows.items()}
    assert largest["none"] > 40 > 15 > largest["g1-elementwise"]
    assert {r.key for r in rows["none"] if r.metric == "massive_position"} == {0}


def test_the_trained_gate_is_mostly_shut_and_depends_on_the_token(rows: dict[str, list[Row]]) -> None:
    found = rows["g1-elementwise"]
    assert 0.15 < whole(found, "gate_mean", domain=None) < 0.26
    assert 0.4 < whole(found, "gate_below", threshold=0.1) < 0.6
    explained = {d: whole(found, "gate_variance_explained", domain=d) for d in ("token", "position", "layer", "head")}
    assert explained["token"] > 0.6 and explained["position"] < 0.05
    assert not values(rows["none"], "gate_mean")


def test_the_gate_takes_most_of_what_the_sink_writes(rows: dict[str, list[Row]]) -> None:
    found = rows["g1-elementwise"]
    before, after = (whole(found, "sink_write", stage=stage) for stage in ("before", "after"))
    assert after < 0.4 * before


def test_heads_without_a_gate_drain_the_sinks_value(rows: dict[str, list[Row]]) -> None:
    counts = {arm: census(heads_of(found)) for arm, found in rows.items()}
    assert counts["none"]["drained"] >= 9 and counts["g1-elementwise"]["drained"] <= 4
    assert sum(counts["none"].values()) == sum(counts["g1-elementwise"].values()) == 12


def test_the_ungated_model_needs_its_sink_and_the_gated_one_hardly() -> None:
    documents = [ids_T.tolist() for ids_T in heldout(8)[:, :256]]
    costs = {}
    for arm in ("none", "g1-elementwise"):
        (curve,) = effects(trained(arm), documents, ["mask-key@first~1"]).curves
        costs[arm], control = curve.changes[-1], curve.control_changes[-1]
        assert control.mean < 0.05
    assert costs["none"].low > 1.2 and costs["g1-elementwise"].high < 0.4


def test_the_gated_model_streams_without_its_first_token_far_better_than_the_ungated_one() -> None:
    keeps = [Keep(), Keep(last=32), Keep(first=1, last=31)]
    costs = {}
    for arm in ("none", "g1-elementwise"):
        found = streaming_losses(trained(arm), heldout(8), keeps)
        late = {slug: losses_BT[:, 128:].mean().item() for slug, losses_BT in found.items()}
        costs[arm] = late["last-32"] - late["all"], late["first-1-last-31"] - late["all"]
    (bare, kept), (gated_bare, gated_kept) = costs["none"], costs["g1-elementwise"]
    assert bare > 5 * gated_bare > 5 * 0.1
    assert max(kept, gated_kept) < 0.15
