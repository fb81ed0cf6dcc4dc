"""What is gathered of a residual stream that comes in stretches equals what is gathered of it whole, and NumPy's."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gatelab.probes.residual import ResidualView

B, T, D = 3, 90, 16


def gathered(x_BTD: Tensor, *, at_once: int = 10**6) -> ResidualView:
    view = ResidualView(0, None)
    for part_BTD in x_BTD.split(at_once, dim=1):
        view.add(part_BTD)
    return view


def heavy_tailed(n_tokens: int = T) -> Tensor:
    x_BTD = torch.distributions.StudentT(2.0).sample((B, n_tokens, D))
    x_BTD[:, 5, 3] = 1e4
    return x_BTD


STREAMS = {
    "normal": lambda: torch.randn(B, T, D),
    "heavy-tailed": heavy_tailed,
    "tiny": lambda: 1e-30 * torch.randn(B, T, D),
    "huge": lambda: 1e15 * torch.randn(B, T, D),
    "a-few-zeros": lambda: torch.randn(B, T, D) * (torch.rand(B, T, D) > 0.3),
    "all-equal": lambda: torch.full((B, T, D), -0.7),
    "a-power-of-two": lambda: torch.full((B, T, D), 0.5),
}


@pytest.mark.parametrize("at_once", [1, 7, 45, 89])
@pytest.mark.parametrize("stream", STREAMS)
def test_the_median_of_stretches_is_within_a_two_thousandth(stream: str, at_once: int) -> None:
    x_BTD = STREAMS[stream]()
    exact_B = np.sort(np.abs(x_BTD.numpy()).reshape(B, -1), axis=1)[:, T * D // 2 - 1]
    np.testing.assert_allclose(gathered(x_BTD).median_B.numpy(), exact_B, rtol=0)
    np.testing.assert_allclose(gathered(x_BTD, at_once=at_once).median_B.numpy(), exact_B, rtol=5e-4)


@pytest.mark.parametrize("n_channels", [15, 16])
def test_of_two_values_in_the_middle_the_lower_is_the_median(n_channels: int) -> None:
    """Of an odd number of values there is one in the middle."""
    x_BTD = torch.linspace(1.0, 2000.0, 5 * n_channels)[torch.randperm(5 * n_channels)].view(1, 5, n_channels)
    exact = np.sort(x_BTD.numpy().ravel())[(5 * n_channels - 1) // 2]
    assert gathered(x_BTD).median_B.item() == exact
    assert gathered(x_BTD, at_once=2).median_B.item() == pytest.approx(exact, rel=5e-4)


def test_one_value_that_is_no_number_leaves_no_ratio() -> None:
    x_BTD = torch.randn(B, T, D)
    clean = gathered(x_BTD, at_once=40)
    for token in (3, 50):  # in the first stretch, and in the second
        spoiled_BTD = x_BTD.clone()
        spoiled_BTD[1, token, 2] = torch.nan
        for at_once in (40, T):
            view = gathered(spoiled_BTD, at_once=at_once)
            ratio_B = view.largest_B / view.median_B
            assert ratio_B.isnan().tolist() == view.kurtosis_B.isnan().tolist() == [False, True, False]
            assert (view.position_B[1], view.channel_B[1]) == (-1, -1)
            assert torch.equal(view.position_B[[0, 2]], clean.position_B[[0, 2]])


@pytest.mark.parametrize("at_once", [1, 7, 45, T])
@pytest.mark.parametrize("stream", ["normal", "heavy-tailed", "a-few-zeros"])
def test_everything_else_is_that_of_numpy(stream: str, at_once: int) -> None:
    x_BTD = STREAMS[stream]()
    view, x = gathered(x_BTD, at_once=at_once), x_BTD.double().numpy()
    flat = np.abs(x).reshape(B, -1)
    assert view.largest_B.tolist() == flat.max(1).tolist()
    assert view.position_B.tolist() == (flat.argmax(1) // D).tolist()
    assert view.channel_B.tolist() == (flat.argmax(1) % D).tolist()
    norm = np.linalg.norm(x, axis=2)
    level = (np.abs(x) / (norm[..., None] / D**0.5)).mean(axis=1)
    centred = x.reshape(B, -1) - x.reshape(B, -1).mean(1, keepdims=True)
    kurtosis = (centred**4).mean(1) / (centred**2).mean(1) ** 2
    np.testing.assert_allclose(view.norm_BT.numpy(), norm, rtol=1e-5)
    np.testing.assert_allclose(view.level_BD.numpy(), level, rtol=1e-5)
    np.testing.assert_allclose(view.kurtosis_B.numpy(), kurtosis, rtol=1e-5)


@pytest.mark.parametrize("at_once", [7, T])
def test_kurtosis_is_exact_beside_a_massive_entry_and_far_from_zero(at_once: int) -> None:
    x_BTD = torch.randn(B, T, D) + torch.tensor([0.0, 3.0, -20.0])[:, None, None]
    x_BTD[:, 2, 4] = 1e4
    for given_BTD in (x_BTD, x_BTD[:, 3:]):
        x = given_BTD.double().numpy().reshape(B, -1)
        centred = x - x.mean(1, keepdims=True)
        expected = (centred**4).mean(1) / (centred**2).mean(1) ** 2
        np.testing.assert_allclose(gathered(given_BTD, at_once=at_once).kurtosis_B.numpy(), expected, rtol=1e-6)


def test_the_first_of_equal_largest_entries_is_its_place() -> None:
    x_BTD = torch.zeros(1, T, D)
    x_BTD[0, 20, 4], x_BTD[0, 60, 1] = -3.0, 3.0
    for at_once in (7, 30, T):
        view = gathered(x_BTD, at_once=at_once)
        assert (view.position_B.item(), view.channel_B.item()) == (20, 4)


def test_a_token_of_zeros_has_no_level() -> None:
    x_BTD = torch.randn(B, T, D)
    level_BD = gathered(x_BTD[:, 1:]).level_BD
    x_BTD[:, 0] = 0.0
    torch.testing.assert_close(gathered(x_BTD, at_once=11).level_BD, level_BD * (T - 1) / T)


def test_numbers_of_16_bits_are_gathered_in_32() -> None:
    x_BTD = heavy_tailed().bfloat16()
    for at_once in (20, T):
        half, full = gathered(x_BTD, at_once=at_once), gathered(x_BTD.float(), at_once=at_once)
        for name in ("largest_B", "median_B", "kurtosis_B", "level_BD", "norm_BT"):
            assert getattr(half, name).dtype == torch.float32
            torch.testing.assert_close(getattr(half, name), getattr(full, name), rtol=0, atol=0)
