"""Norms by kind: torch's own, GatedNorm by its formula, and what a gate in a norm can and cannot do."""

import numpy as np
import pytest
import torch
from torch import nn

from gatelab.nn.norm import Norm

KINDS = ("rms", "rms-no-gain", "layer", "gated-rms")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_norms_are_those_of_torch(dtype: torch.dtype, eps: float) -> None:
    x, weight, bias = torch.randn(3, 5, 8).to(dtype), torch.randn(8), torch.randn(8)
    rms, layer_norm = nn.RMSNorm(8, eps=eps, dtype=dtype), nn.LayerNorm(8, eps=eps, dtype=dtype)
    rms.weight.data = layer_norm.weight.data = weight.to(dtype)
    layer_norm.bias.data = bias.to(dtype)
    ours = {kind: Norm(8, kind, eps) for kind in ("rms", "rms-no-gain", "layer")}
    ours["rms"].weight.data = ours["layer"].weight.data = weight
    ours["layer"].bias.data = bias
    assert torch.equal(ours["rms"](x), rms(x)) and torch.equal(ours["layer"](x), layer_norm(x))
    wide = x.float()
    plain = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(ours["rms-no-gain"](x), plain.to(dtype))
    assert not list(ours["rms-no-gain"].parameters())


def test_gated_norm_is_its_formula() -> None:
    """n σ(SiLU(n W_down) W_up) with n = x / rms(x) · w, arXiv 2601.22966; in NumPy."""
    norm = Norm(8, "gated-rms", 1e-3, rank=3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    weight, down, up = (p.detach().numpy() for p in (norm.weight, norm.down.weight, norm.up.weight))
    assert down.shape == (3, 8) and up.shape == (8, 3)
    n = x.numpy() / np.sqrt((x.numpy() ** 2).mean(-1, keepdims=True) + 1e-3) * weight
    inner = n @ down.T
    expected = n / (1 + np.exp(-(inner / (1 + np.exp(-inner))) @ up.T))
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12)


def test_gated_norm_without_weights_is_half_of_the_norm() -> None:
    norm, plain, x = Norm(8, "gated-rms", 1e-6, rank=2), Norm(8, "rms", 1e-6), torch.randn(3, 8)
    norm.weight.data = plain.weight.data = torch.randn(8)
    nn.init.zeros_(norm.up.weight)
    assert torch.equal(norm(x), plain(x) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_do_not_see_the_scale_of_their_input(kind: str) -> None:
    norm, x = Norm(8, kind, 1e-12, rank=2).double(), torch.randn(3, 8, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(norm(7 * x), norm(x))
    assert not torch.allclose(norm(-x), norm(x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    norm, x = Norm(4, kind, 1e-3, rank=2).double(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    assert torch.autograd.gradcheck(norm, x)
    if kind != "rms-no-gain":
        names, values = zip(*norm.named_parameters(), strict=True)
        assert torch.autograd.gradcheck(
            lambda *v: torch.func.functional_call(norm, dict(zip(names, v, strict=True)), x.detach()), values
        )


def test_a_norm_computes_in_the_type_of_its_input_over_float32_weights() -> None:
    for kind in KINDS:
        norm, x = Norm(8, kind, 1e-6, rank=2), torch.randn(3, 8)
        found = norm(x.bfloat16())
        assert found.dtype == torch.bfloat16 and {p.dtype for p in norm.parameters()} <= {torch.float32}
        torch.testing.assert_close(found.float(), norm(x), rtol=0.03, atol=0.03)
