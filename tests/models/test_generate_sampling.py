"""Sampling: as often as NumPy counts, never outside the top k and the top p, and refused where it makes no sense."""

import numpy as np
import pytest
import torch

from gatelab.models.generate import Sampling
from gatelab.models.generate.sampling import next_tokens

V, MANY = 23, 40_000


def probabilities(logits_V: np.ndarray, s: Sampling) -> np.ndarray:
    """In float64: divide, keep the k largest, keep the fewest of those with a share p of their mass."""
    z = logits_V.astype(np.float64) / s.temperature
    p = np.exp(z - z.max())
    order = np.argsort(-z, kind="stable")[: s.top_k]
    shares = p[order] / p[order].sum()
    n = int(np.searchsorted(np.cumsum(shares), s.top_p - 1e-12)) + 1
    out = np.zeros(V)
    out[order[:n]] = p[order[:n]] / p[order[:n]].sum()
    return out


def shares(logits_V: torch.Tensor, s: Sampling) -> np.ndarray:
    """How often each token comes when uniform numbers come evenly."""
    uniform_B = (torch.arange(MANY, dtype=torch.float64) + 0.5) / MANY
    found_B = next_tokens(logits_V.expand(MANY, -1), s, uniform_B)
    return np.bincount(found_B.numpy(), minlength=V) / MANY


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 4}, {"top_k": 1}, {"top_k": 99}, {"top_p": 0.6}, {"top_p": 0.01}, {"top_k": 6, "top_p": 0.8}],
    ids=str,
)
def test_each_token_comes_as_often_as_it_should(temperature: float, options: dict[str, float]) -> None:
    sampling, logits_V = Sampling(temperature=temperature, **options), 2 * torch.randn(V)
    expected = probabilities(logits_V.numpy(), sampling)
    found = shares(logits_V, sampling)
    assert np.abs(found - expected).max() < 2 / MANY and not found[expected == 0].any()


def test_the_top_of_equal_logits_are_the_first() -> None:
    found = shares(torch.zeros(V), Sampling(temperature=1, top_k=3))
    assert found[:3].min() > 0.33 and not found[3:].any()
    assert next_tokens(torch.zeros(2, V), Sampling(), None).tolist() == [0, 0]


@pytest.mark.parametrize("options", [{}, {"top_k": V}, {"top_p": 0.999}], ids=str)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_a_hidden_token_is_never_drawn(options: dict[str, float], uniform: float) -> None:
    logits_BV = torch.full((1, V), -torch.inf)
    logits_BV[0, [5, 11]] = 0.0
    found = next_tokens(logits_BV, Sampling(temperature=1, **options), torch.tensor([uniform], dtype=torch.float64))
    assert found.tolist() == [5 if uniform == 0 else 11]


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_a_small_temperature_is_greedy(temperature: float) -> None:
    logits_BV, uniform_B = torch.randn(50, V), torch.rand(50, dtype=torch.float64)
    found_B = next_tokens(logits_BV, Sampling(temperature=temperature), uniform_B)
    assert torch.equal(found_B, logits_BV.argmax(dim=-1))


def test_numbers_of_a_row_do_not_depend_on_how_many_are_drawn() -> None:
    many = Sampling(temperature=1, seed=3).uniforms(5, 200)
    assert torch.equal(Sampling(temperature=1, seed=3).uniforms(2, 60), many[:2, :60])
    assert torch.equal(Sampling(temperature=1, seed=(9, 3)).uniforms(2, 60)[1], many[0, :60])
    assert many.unique().numel() == 1000 and 0.45 < many.mean() < 0.55
    assert Sampling(seed=3).uniforms(5, 200) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_p": 0.0}, r"top_p=0: expected a share of the probability above 0, and 1 at most"),
        ({"top_p": 1.2}, r"top_p=1\.2: expected"),
        ({"top_k": 0}, "top_k=0: expected how many tokens may be drawn, 1 or more, or None for all"),
        ({"temperature": -0.5}, r"temperature=-0\.5: expected 0 for the most likely token"),
        ({"temperature": float("nan")}, "finite number"),
        ({"seed": -1}, "seed=-1: expected whole numbers from 0"),
        ({"top": 3}, "top: no such key; .* did you mean .top_p"),
    ],
)
def test_a_slip_is_told(options: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sampling(**options)
