"""A planted massive activation is found: its position, its channel, the layers that write and remove it."""

from functools import partial

import planting
import pytest
import tiny
import torch
from planting import T, looked_at, set_tap, tokens, values
from torch import Tensor

from gatelab.models import build_model
from gatelab.probes import capture


def plant(model: torch.nn.Module, sizes: dict[int, float], *, position: int = 3, channel: int = 7) -> None:
    """Alternate halves after every block, but for one entry of a size by layer."""

    def residual(x_BTD: Tensor, size: float) -> None:
        x_BTD.copy_(torch.where(torch.arange(x_BTD.numel()).view_as(x_BTD) % 2 == 0, 0.5, -0.5))
        if size:
            x_BTD[:, position, channel] = -size

    for layer, block in enumerate(model.blocks):
        set_tap(block.tap_residual, partial(residual, size=sizes.get(layer, 0.0)))


def test_a_massive_activation_has_a_place_and_two_layers() -> None:
    model = planting.model(n_layers=6)
    plant(model, {1: 60.0, 2: 300.0, 3: 310.0, 4: 155.0})
    rows = looked_at(model, "massive")
    places = {
        (r.metric, r.layer): (r.key, r.channel, r.value)
        for r in rows
        if r.metric in ("massive_position", "massive_channel")
    }
    for layer in (1, 2, 3, 4, None):
        assert places["massive_position", layer] == (3, None, 1.0)
        assert places["massive_channel", layer] == (None, 7, 1.0)
    # Half of 310 is 155; 60 is less.
    assert values(rows, "massive_layer") == {(None, None): 2.0}
    assert values(rows, "massive_layer_last") == {(None, None): 4.0}
    assert {r.unit for r in rows if r.metric == "massive_layer"} == {"layer"}


def test_the_place_is_the_most_frequent_one_and_says_how_frequent() -> None:
    model = planting.model()
    plant(model, {})

    def at_several(x_BTD: Tensor) -> None:
        for i, (position, channel) in enumerate([(5, 2), (4, 2), (5, 2), (0, 1)]):
            x_BTD[i, position, channel] = 100.0

    set_tap(model.blocks[1].tap_residual, at_several)
    with capture(model, ["massive"]) as recorder:
        model(tokens(4))
    found = {r.metric: (r.key, r.channel, r.value) for r in recorder.rows() if r.layer == 1}
    assert found["massive_position"] == (5, None, 0.5)
    assert found["massive_channel"] == (None, 2, 0.75)


def test_kurtosis_tells_two_halves_from_one_outlier() -> None:
    model = planting.model()
    plant(model, {1: 400.0})
    rows = looked_at(model, "massive")
    x = torch.where(torch.arange(T * 16) % 2 == 0, 0.5, -0.5).double()
    x[3 * 16 + 7] = -400.0
    centred = x - x.mean()
    expected = (centred**4).mean() / (centred**2).mean() ** 2
    found = values(rows, "residual_kurtosis")
    assert found[0, None] == pytest.approx(1.0)  # of two equal halves, the least there is
    assert found[1, None] == pytest.approx(expected.item(), rel=1e-4) and expected > 250
    assert found[None, None] == pytest.approx((1 + expected.item()) / 2, rel=1e-4)


def test_kurtosis_of_normal_numbers_is_three_whatever_their_size() -> None:
    model = planting.model()
    set_tap(model.blocks[0].tap_residual, lambda x: x.normal_(mean=2.0, std=1e-3))
    with capture(model, ["massive"]) as recorder:
        model(tokens(64))
    assert values(recorder.rows(), "residual_kurtosis")[0, None] == pytest.approx(3.0, abs=0.1)


def test_stacks_have_layers_of_their_own() -> None:
    model = build_model(tiny.model(arch="encoder-decoder", n_encoder_layers=3))
    set_tap(model.encoder_blocks[2].tap_residual, lambda x: x[:, 1, 4].fill_(500.0))
    with torch.no_grad(), capture(model, ["massive"]) as recorder:
        model(torch.randint(0, 17, (2, 9)), torch.randint(0, 17, (2, 6)))
    found = {(r.metric, r.stack): r for r in recorder.rows() if r.layer is None}
    assert found["massive_layer", "encoder"].value == 2.0 and found["massive_position", "encoder"].key == 1
    assert found["massive_channel", "encoder"].channel == 4 and ("massive_layer", None) in found


@pytest.mark.parametrize(("size", "count"), [(5.9, 0.0), (6.1, 2.0), (40.0, 2.0)])
def test_outlier_channels_are_large_at_most_tokens(size: float, count: float) -> None:
    model = planting.model()
    plant(model, {})

    def at_two(x_BTD: Tensor) -> None:
        x_BTD[:, :, [2, 9]] *= size

    set_tap(model.blocks[1].tap_residual, at_two)
    found = values(looked_at(model, "massive"), "outlier_channels")
    assert found == {(0, None): 0.0, (1, None): count, (None, None): count / 2}


def test_a_massive_activation_is_no_outlier_channel() -> None:
    model = planting.model()
    plant(model, {0: 300.0, 1: 30000.0})
    rows = looked_at(model, "massive")
    assert set(values(rows, "outlier_channels").values()) == {0.0}
    assert values(rows, "massive_ratio")[1, None] == 60000.0


def test_a_channel_counts_at_small_tokens_as_at_large_ones() -> None:
    """Ten times the usual at fifteen tokens of size 1, and the usual at one of size 10⁴."""
    model = planting.model()
    plant(model, {})

    def one_large_token(x_BTD: Tensor) -> None:
        x_BTD[:, :, 3] *= 10.0
        x_BTD[:, 0, 3] /= 10.0
        x_BTD[:, 0] *= 1e4

    set_tap(model.blocks[0].tap_residual, one_large_token)
    assert values(looked_at(model, "massive"), "outlier_channels")[0, None] == 1.0


def test_the_streams_norm_is_told_by_octaves_of_position() -> None:
    model = planting.model()
    plant(model, {})
    set_tap(model.blocks[1].tap_residual, lambda x: x.mul_(torch.arange(1.0, T + 1)[:, None]))
    rows = [r for r in looked_at(model, "massive") if r.metric == "residual_norm"]
    # Sixteen channels of 0.5 have the norm 2.
    octaves = {0: [1], 1: [2, 3], 2: [4, 5, 6, 7], 3: [*range(8, 16)], 4: [16]}
    expected = {(1, n): 2 * sum(sizes) / len(sizes) for n, sizes in octaves.items()} | {(0, n): 2.0 for n in range(5)}
    assert {(r.layer, r.bin): r.value for r in rows} == pytest.approx(expected)
