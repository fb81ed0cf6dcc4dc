"""The whole gated layer written again in float64 NumPy, from its formulas: projections, q/k-norm, RoPE, causal softmax over
grouped queries, every site's gate, W_O (arXiv 2505.06708, section 2; RoPE in halves, arXiv 2104.09864).

Notable: RoPE and the gates compute in float32 where their input is narrower, and RoPE's tables always are; here every
request for float32 is answered with float64, so that what is compared is the formula, to 1e-10.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gatelab.nn.attention import GatedAttention

B, T, D, H, G, K = 2, 6, 10, 6, 3, 4
THETA, EPS = 50.0, 1e-3

ACTIVATIONS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "ns_sigmoid": lambda z: (1 + 1 / (1 + np.exp(-z))) / 2,
    "two_sigmoid": lambda z: 2 / (1 + np.exp(-z)),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "identity": lambda z: z,
    "softplus": lambda z: np.log1p(np.exp(z)),
    "tanh": np.tanh,
}


class InFloat64(TorchFunctionMode):
    """torch, where float32 means float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **(kwargs or {}))


def with_numpy(gate: str, told: str | None = None, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """The layer's output and NumPy's, for random weights and inputs; NumPy may be told of another gate."""
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            layer = GatedAttention(
                d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, rope_theta=THETA, norm_eps=EPS, **options
            )
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.5)
            x_BTD = torch.randn(B, T, D)
            found: Tensor = layer(x_BTD).detach()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float64
    weights = {name: w.detach().numpy() for name, w in layer.named_parameters()}
    return found.numpy(), np.stack([attention(x, weights, told or gate) for x in x_BTD.numpy()])


def attention(x_TD: np.ndarray, w: dict[str, np.ndarray], gates: str) -> np.ndarray:
    """One sequence; a query head at a time."""
    gate = {slug.split("-")[0]: slug.split("-")[1:] for slug in gates.split("+")}

    def projected(name: str, source: np.ndarray) -> np.ndarray:
        return source @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def gated(site: str, y: np.ndarray, head: int, n_heads: int) -> np.ndarray:
        """y [T, width] of one head, times or plus its gate."""
        if site not in gate:
            return y
        logits = projected(f"gates.{site}.g_proj", x_TD).reshape(T, n_heads, -1)
        activation = next((ACTIVATIONS[word] for word in gate[site] if word in ACTIVATIONS), ACTIVATIONS["sigmoid"])
        scores = activation(logits)
        scores = scores.mean(axis=1) if "shared" in gate[site] else scores[:, head]
        return y + scores if "add" in gate[site] else y * scores

    def normed(name: str, y: np.ndarray) -> np.ndarray:
        if f"{name}_norm.weight" not in w:
            return y
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + EPS) * w[f"{name}_norm.weight"]

    def rotated(y: np.ndarray) -> np.ndarray:
        """Channels i and i + K/2 are a plane, turned by t · theta^(−2i/K)."""
        out = np.empty_like(y)
        for t in range(T):
            for i in range(K // 2):
                angle = t * THETA ** (-2 * i / K)
                a, b = y[t, i], y[t, i + K // 2]
                out[t, i] = a * np.cos(angle) - b * np.sin(angle)
                out[t, i + K // 2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    q, k, v = (projected(f"{p}_proj", x_TD).reshape(T, -1, K) for p in "qkv")
    y = np.empty((T, H, K))
    for h in range(H):
        g = h // (H // G)
        q_h = rotated(gated("query", normed("q", q[:, h]), h, H))
        k_h = rotated(gated("key", normed("k", k[:, g]), g, G))
        v_h = gated("value", v[:, g], g, G)
        weights_TS = np.tril(np.exp(q_h @ k_h.T / np.sqrt(K)))
        weights_TS /= weights_TS.sum(axis=1, keepdims=True)
        # A gate on the weights belongs to the key.
        y[:, h] = gated("sdpa", gated("scores", weights_TS.T, h, H).T @ v_h, h, H)
    return gated("out", projected("o_proj", y.reshape(T, H * K)), 0, 1)


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["mul", "add"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_output_gate_is_its_formula(activation: str, form: str) -> None:
    assert_equal(*with_numpy(f"sdpa-elementwise-{activation}-{form}"))


@pytest.mark.parametrize("rest", ["headwise", "elementwise-shared", "elementwise-bias", "headwise-softplus-bias"])
@pytest.mark.parametrize("site", ["sdpa", "value", "key", "query"])
def test_every_granularity_and_sharing_is_its_formula(site: str, rest: str) -> None:
    assert_equal(*with_numpy(f"{site}-{rest}", qk_norm=True))


@pytest.mark.parametrize(
    "gate", [f"{site}-elementwise" for site in ("value", "key", "query", "out")] + ["scores-headwise"]
)
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"bias": True}], ids=["bare", "qk-norm", "biases"])
def test_every_site_is_where_it_says(gate: str, options: dict[str, bool]) -> None:
    assert_equal(*with_numpy(gate, **options))


def test_all_sites_at_once_are_their_formulas() -> None:
    slugs = "sdpa-elementwise+value-headwise-silu+key-elementwise-bias+query-elementwise-shared+out-elementwise-add"
    assert_equal(*with_numpy(f"{slugs}+scores-headwise", qk_norm=True, bias=True))


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("sdpa-elementwise", "sdpa-elementwise-tanh"),
        ("value-elementwise", "value-elementwise-shared"),
        ("out-elementwise-add", "out-elementwise"),
        ("query-headwise+key-headwise", "query-headwise"),
    ],
)
def test_another_formula_is_told_apart(gate: str, told: str) -> None:
    found, expected = with_numpy(gate, told)
    assert np.abs(found - expected).max() > 1e-3
