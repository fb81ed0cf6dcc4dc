"""Linear maps of a stack: each model's result and gradients are those of its own map, in the order of its weights."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gatelab.nn.linear import HeadLinear, linear, of_each

M, B, T, D_IN, D_OUT = 3, 2, 5, 4, 6


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(M * B, T), (M * B,), (M * B, T, 2)], ids=str)
def test_each_model_multiplies_its_own_sequences(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape, D_IN, dtype=torch.float64, requires_grad=True)
    weight_MOI = torch.randn(M, D_OUT, D_IN, dtype=torch.float64, requires_grad=True)
    bias_MO = torch.randn(M, D_OUT, dtype=torch.float64, requires_grad=True) if has_bias else None
    out = linear(x, weight_MOI, bias_MO)
    upstream = torch.randn_like(out)
    given = [t for t in (x, weight_MOI, bias_MO) if t is not None]
    found = torch.autograd.grad(out, given, upstream)

    for m in range(M):
        own = slice(m * B, (m + 1) * B)
        alone = [t.detach().clone().requires_grad_() for t in (x[own], *(t[m] for t in given[1:]))]
        expected = F.linear(*alone)
        torch.testing.assert_close(out[own], expected)
        wanted = torch.autograd.grad(expected, alone, upstream[own])
        torch.testing.assert_close((found[0][own], *(t[m] for t in found[1:])), wanted)


def test_a_weights_gradient_lies_as_the_weight_does() -> None:
    x, weight_MOI = torch.randn(M * B, T, D_IN), torch.randn(M, D_OUT, D_IN, requires_grad=True)
    (found,) = torch.autograd.grad(linear(x, weight_MOI).sum(), weight_MOI)
    assert found.is_contiguous()


class _Products(TorchDispatchMode):
    """Counts batched products."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("of_x", "of_weight"), [(True, True), (True, False), (False, True)])
def test_nothing_is_computed_or_kept_for_what_asks_for_no_gradient(of_x: bool, of_weight: bool) -> None:
    x = torch.randn(M * B, T, D_IN, requires_grad=of_x)
    weight_MOI = torch.randn(M, D_OUT, D_IN, requires_grad=of_weight)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = linear(x, weight_MOI)
    with _Products() as products:
        out.sum().backward()
    assert products.n == len(kept) == of_x + of_weight


def test_under_autocast_the_way_back_computes_in_its_type() -> None:
    x, weight_MOI = torch.randn(M * B, T, D_IN, requires_grad=True), torch.randn(M, D_OUT, D_IN, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x, weight_MOI)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad.dtype == weight_MOI.grad.dtype == torch.float32


def test_what_each_model_sees_is_the_same_memory() -> None:
    """That torch's compiler sees it so too is not tested: the version that these tests run on copies nothing either way."""
    x = torch.randn(M * B, T, D_IN)
    seen = of_each(x, M)
    assert seen.shape == (M, B * T, D_IN) and seen.data_ptr() == x.data_ptr()


def test_a_map_a_head_is_each_models_own() -> None:
    torch.manual_seed(0)
    heads = 2
    single = [HeadLinear(heads, D_IN, D_OUT, bias=True) for _ in range(M)]
    for layer in single:
        torch.nn.init.normal_(layer.bias)
    stacked = HeadLinear(heads, D_IN, D_OUT, bias=True)
    stacked.weight = torch.nn.Parameter(torch.stack([layer.weight.detach() for layer in single]))
    stacked.bias = torch.nn.Parameter(torch.stack([layer.bias.detach() for layer in single]))
    x = torch.randn(M * B, T, heads * D_IN)
    alone = torch.cat([layer(part).flatten(-2) for layer, part in zip(single, x.split(B), strict=True)])
    torch.testing.assert_close(stacked(x).reshape(alone.shape), alone)
