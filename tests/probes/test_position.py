"""Where planted attention goes: distances, positions and the first token's share, by octave."""

import math

import planting
import pytest
import tiny
import torch
from planting import T, looked_at, plant_sink, plant_sink_at, values
from torch import nn

from gatelab.config import ProbeConfig
from gatelab.models import build_model
from gatelab.probes import capture
from gatelab.record import Row

PLACES = [(layer, head) for layer in (0, 1) for head in (None, 0, 1)] + [(None, None)]


def octave(position: int) -> int:
    return int(math.log2(position + 1))


def by_bin(rows: list[Row], metric: str, layer: int | None, **coordinates: object) -> dict[int, float]:
    """The shares of a layer by octave; empty octaves left out."""
    found = [r for r in rows if r.metric == metric and r.layer == layer and r.head is None]
    found = [r for r in found if all(getattr(r, name) == value for name, value in coordinates.items())]
    return {r.bin: r.value for r in found if r.value}


def expected(rows: list[list[float]], *, by_distance: bool) -> dict[int, float]:
    """Mean over queries of the mass of each octave, from rows of weights of the queries from 1 on."""
    out: dict[int, float] = {}
    for i, row in enumerate(rows, start=1):
        for j, mass in enumerate(row):
            n = octave(abs(i - j) if by_distance else j)
            out[n] = out.get(n, 0.0) + mass / len(rows)
    return out


UNIFORM = [[1 / (i + 1)] * (i + 1) for i in range(1, T)]


def sunk(position: int, mass: float) -> list[list[float]]:
    """Rows that give `mass` to a position where they see it; the rest is even."""
    return [
        [mass if j == position else (1 - mass) / i for j in range(i + 1)] if i >= position else UNIFORM[i - 1]
        for i in range(1, T)
    ]


def test_uniform_attention_is_its_reference() -> None:
    rows = looked_at(planting.model(), "position")
    for layer in (0, 1, None):
        for metric, by_distance in (("distance_mass", True), ("position_mass", False)):
            share = pytest.approx(expected(UNIFORM, by_distance=by_distance), rel=1e-5)
            assert by_bin(rows, metric, layer) == share == by_bin(rows, f"{metric}_uniform", layer)
    # The mean distance of query i is i / 2.
    assert values(rows, "attention_distance") == pytest.approx(dict.fromkeys(PLACES, T / 4), rel=1e-5)
    assert {r.length for r in rows} == {T} and {r.unit for r in rows if r.metric == "attention_distance"} == {"tokens"}


@pytest.mark.parametrize(("position", "mass"), [(1, 0.8), (6, 0.6), (T - 1, 0.9)])
def test_a_sink_draws_mass_to_its_octaves(position: int, mass: float) -> None:
    model = planting.model()
    plant_sink_at(model, position, layer=1, head=0, mass=mass)
    rows, planted = looked_at(model, "position"), sunk(position, mass)
    for metric, by_distance in (("distance_mass", True), ("position_mass", False)):
        uniform, head = expected(UNIFORM, by_distance=by_distance), expected(planted, by_distance=by_distance)
        # A layer is the mean of its two heads.
        layer = {n: (uniform[n] + head[n]) / 2 for n in uniform}
        assert by_bin(rows, metric, 1) == pytest.approx(layer, rel=1e-4)
        assert by_bin(rows, metric, 0) == pytest.approx(uniform, rel=1e-4)
        assert by_bin(rows, metric, None) == pytest.approx({n: (uniform[n] + layer[n]) / 2 for n in uniform}, rel=1e-4)
        assert by_bin(rows, f"{metric}_uniform", 1) == pytest.approx(uniform, rel=1e-4)
    far = sum(sum(m * (i - j) for j, m in enumerate(row)) for i, row in enumerate(planted, start=1)) / len(planted)
    found = values(rows, "attention_distance")
    assert found[1, 0] == pytest.approx(far, rel=1e-4) and found[1, 1] == pytest.approx(T / 4, rel=1e-4)
    assert found[1, None] == pytest.approx((far + T / 4) / 2, rel=1e-4)


def test_the_mass_of_a_slot_is_at_no_distance() -> None:
    """Masses lack what the slot took; the mean distance is of what the keys have."""
    model = planting.model(softmax={"kind": "sink-logit", "init": math.log(3.0)})
    rows = looked_at(model, "position")
    left = sum((i + 1) / (i + 4) for i in range(1, T)) / (T - 1)
    for metric in ("distance_mass", "position_mass"):
        assert sum(by_bin(rows, metric, 0).values()) == pytest.approx(left, rel=1e-5)
        assert sum(by_bin(rows, f"{metric}_uniform", 0).values()) == pytest.approx(1.0, rel=1e-5)
    assert values(rows, "attention_distance")[0, 0] == pytest.approx(T / 4, rel=1e-5)


def test_the_first_tokens_share_is_told_by_the_query() -> None:
    model = planting.model()
    plant_sink(model, layer=0, head=1, mass=0.7)
    rows = looked_at(model, "position")
    octaves = [octave(i) for i in range(T)]
    for n in range(1, 5):
        uniform = [1 / (i + 1) for i in range(T) if octaves[i] == n]
        mean = sum(uniform) / len(uniform)
        assert by_bin(rows, "first_mass_by_query", 1)[n] == pytest.approx(mean, rel=1e-5)
        assert by_bin(rows, "first_mass_by_query", 0)[n] == pytest.approx((mean + 0.7) / 2, rel=1e-5)
    # Query 0 sees itself alone.
    assert 0 not in by_bin(rows, "first_mass_by_query", 0)


@pytest.mark.parametrize("skip", [3, 7])
def test_queries_that_are_left_out_are_in_no_octave(skip: int) -> None:
    rows = looked_at(planting.model(), "position", config=ProbeConfig(skip_queries=skip))
    shares: dict[int, list[float]] = {}
    for i in range(skip, T):
        shares.setdefault(octave(i), []).append(1 / (i + 1))
    expected_share = {n: sum(s) / len(s) for n, s in shares.items()}
    assert by_bin(rows, "first_mass_by_query", 0) == pytest.approx(expected_share, rel=1e-5)


def test_queries_are_placed_in_their_document() -> None:
    starts = (0, 5, 6)
    model = planting.model()
    plant_sink(model, layer=0, head=0, mass=0.8, first=starts)
    rows = looked_at(model, "position", segment_ids_BT=torch.tensor([0] * 5 + [1] + [2] * 10).expand(2, T))
    inside = [t - max(s for s in starts if s <= t) for t in range(T)]
    shares: dict[int, list[float]] = {}
    for i in (i for i in inside if i):
        shares.setdefault(octave(i), []).append(1 / (i + 1))
    uniform = {n: sum(s) / len(s) for n, s in shares.items()}
    assert by_bin(rows, "first_mass_by_query", 1) == pytest.approx(uniform, rel=1e-5)
    both = {n: (value + 0.8) / 2 for n, value in uniform.items()}
    assert by_bin(rows, "first_mass_by_query", 0) == pytest.approx(both, rel=1e-5)
    # No key of another document is seen: the last octave of positions is that of the third document.
    assert max(by_bin(rows, "distance_mass", 1)) == octave(9) and max(by_bin(rows, "position_mass", 1)) == octave(15)


def test_a_window_ends_the_distances() -> None:
    rows = looked_at(planting.model(window=4), "position")
    assert max(by_bin(rows, "distance_mass", 0)) == max(by_bin(rows, "distance_mass_uniform", 0)) == octave(3)
    expected_distance = sum(min(i, 3) / 2 for i in range(1, T)) / (T - 1)
    assert values(rows, "attention_distance")[0, 0] == pytest.approx(expected_distance, rel=1e-5)
    # From query 4 on the first token is hidden.
    by_query = {r.bin: r.value for r in rows if r.metric == "first_mass_by_query" and r.layer == 0}
    assert by_query == pytest.approx({1: (1 / 2 + 1 / 3) / 2, 2: 1 / 4 / 4, 3: 0.0, 4: 0.0}, rel=1e-5)


def test_heads_of_a_group_have_distances_of_their_own() -> None:
    model = planting.model(n_heads=4, n_kv_heads=2)

    def look_back(q_BTHK: torch.Tensor) -> None:
        q_BTHK.zero_()
        q_BTHK[:, :, 1, 0] = 60.0

    def first_key(k_BSGK: torch.Tensor) -> None:
        k_BSGK.zero_()
        k_BSGK[:, 0, 0, 0] = 10.0

    planting.set_tap(model.blocks[0].attention.tap_q, look_back)
    planting.set_tap(model.blocks[0].attention.tap_k, first_key)
    found = values(looked_at(model, "position"), "attention_distance")
    assert [found[0, h] for h in range(4)] == pytest.approx([T / 4, T / 2, T / 4, T / 4], rel=1e-4)


def test_an_encoder_looks_both_ways_and_cross_attention_has_no_distances() -> None:
    model = build_model(tiny.model(arch="encoder-decoder", positions="none"))
    for module in model.modules():
        if hasattr(module, "q_proj"):
            nn.init.zeros_(module.q_proj.weight)
    with torch.no_grad(), capture(model, ["position"]) as recorder:
        model(torch.randint(0, 17, (2, 9)), torch.randint(0, 17, (2, 6)))
    rows = recorder.rows()
    assert {r.stack for r in rows} == {None, "encoder"}
    # Of nine queries the eight from 1 on are sampled; each sees all nine keys.
    distances = [abs(i - j) for i in range(1, 9) for j in range(9)]
    assert values(rows, "attention_distance", stack="encoder")[0, 0] == pytest.approx(sum(distances) / 72, rel=1e-5)
    shares = {n: sum(octave(d) == n for d in distances) / 72 for n in range(4)}
    assert by_bin(rows, "distance_mass", 1, stack="encoder") == pytest.approx(shares, rel=1e-5)
    # There every query counts, the first one too.
    first = dict.fromkeys(range(4), 1 / 9)
    assert by_bin(rows, "first_mass_by_query", 1, stack="encoder") == pytest.approx(first, rel=1e-5)
