"""Values and keys as sums of routed maps: by a loop, by the gate that one expert is, and as they decode."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gatelab.config import KVExperts
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache
from gatelab.nn.kv_experts import RoutedHeads

B, T, D, H, G, K = 2, 5, 8, 4, 2, 3


def layer(kv_experts: str | KVExperts | None, gate: str | None = None) -> GatedAttention:
    return GatedAttention(
        d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=gate, kv_experts=kv_experts, rope_theta=None
    ).double()


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(("n", "top"), [(4, 4), (4, 2), (5, 1), (1, 1)])
def test_a_head_is_the_sum_of_its_best_experts(n: int, top: int) -> None:
    """Switch-Head, arXiv 2312.07987: for each token and head, the `top` experts of the largest score."""
    routed, x_BTD = RoutedHeads(D, G, K, n_experts=n, top=top, bias=True).double(), numbers(B, T, D)
    maps = routed.proj.weight.detach().numpy().reshape(n, G, K, D)
    biases = routed.proj.bias.detach().numpy().reshape(n, G, K)
    rows = routed.router.weight.detach().numpy().reshape(n, G, D)
    x, expected = x_BTD.numpy(), np.zeros((B, T, G, K))
    for b, t, g in np.ndindex(B, T, G):
        scores = 1 / (1 + np.exp(-rows[:, g] @ x[b, t]))
        for e in np.argsort(-scores)[:top]:
            expected[b, t, g] += scores[e] * (maps[e, g] @ x[b, t] + biases[e, g])
    np.testing.assert_allclose(routed(x_BTD).detach().numpy().reshape(B, T, G, K), expected, rtol=1e-12, atol=1e-13)


def test_one_expert_is_a_headwise_gate_on_the_values() -> None:
    """arXiv 2505.06708, Table 6: its last row is row 11 of Table 1."""
    x_BTD, routed, gated = numbers(B, T, D), layer("v-1top1"), layer(None, "value-headwise")
    names = {"v_proj.proj.weight": "v_proj.weight", "v_proj.router.weight": "gates.value.g_proj.weight"}
    gated.load_state_dict({names.get(name, name): w for name, w in routed.state_dict().items()})
    torch.testing.assert_close(routed(x_BTD), gated(x_BTD))


def test_one_expert_of_keys_is_a_headwise_gate_on_the_keys() -> None:
    x_BTD, routed, gated = numbers(B, T, D), layer("kv-1top1"), layer(None, "value-headwise+key-headwise")
    names = {f"{p}_proj.proj.weight": f"{p}_proj.weight" for p in "kv"}
    names |= {f"{p}_proj.router.weight": f"gates.{site}.g_proj.weight" for p, site in (("k", "key"), ("v", "value"))}
    gated.load_state_dict({names.get(name, name): w for name, w in routed.state_dict().items()})
    torch.testing.assert_close(routed(x_BTD), gated(x_BTD))


def test_experts_that_are_not_chosen_have_no_gradient_and_the_others_have() -> None:
    routed, x_BTD = RoutedHeads(D, 1, K, n_experts=3, top=1, bias=False).double(), numbers(B, T, D).abs()
    routed.router.weight.data = torch.tensor([[-1.0], [1.0], [-2.0]], dtype=torch.float64).expand(-1, D).clone()
    routed(x_BTD).square().sum().backward()
    of_expert_X = routed.proj.weight.grad.unflatten(0, (3, K)).flatten(1).any(dim=1)
    of_router_X = routed.router.weight.grad.any(dim=1)
    assert of_expert_X.tolist() == of_router_X.tolist() == [False, True, False]


def test_the_values_alone_or_keys_and_values_are_routed() -> None:
    for slug, routed in (("v-3top2", {"v_proj"}), ("kv-3top2", {"k_proj", "v_proj"})):
        found = {name for name, module in layer(slug).named_modules() if isinstance(module, RoutedHeads)}
        assert found == routed and KVExperts.model_validate(slug).slug == slug


@pytest.mark.parametrize("slug", ["v-3top2", "kv-4top4", "kv-2top1"])
@pytest.mark.parametrize("gate", [None, "value-elementwise-value+key-headwise+sdpa-headwise-value"])
def test_decoding_and_packing_change_nothing(slug: str, gate: str | None) -> None:
    attention, x_BTD = layer(slug, gate), numbers(B, T, D)
    cache = KVCache(n_layers=1, batch=B, max_seq_len=T, n_kv_heads=G, head_dim=K, dtype=torch.float64)
    out = []
    for piece_BTD in x_BTD.split((2, 1, 2), dim=1):
        out.append(attention(piece_BTD, cache=cache))
        cache.advance(piece_BTD.shape[1])
    full_BTD = attention(x_BTD)
    torch.testing.assert_close(torch.cat(out, dim=1), full_BTD)
    attention.is_packed = True
    torch.testing.assert_close(attention(x_BTD), full_BTD)


def test_gradients_are_those_of_finite_differences() -> None:
    routed = RoutedHeads(4, G, 2, n_experts=3, top=2, bias=True).double()
    for parameter in routed.parameters():
        nn.init.normal_(parameter)
    names, values = zip(*routed.named_parameters(), strict=True)

    def out(x_BTD: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(routed, dict(zip(names, given, strict=True)), x_BTD)

    assert torch.autograd.gradcheck(out, (numbers(1, 3, 4).requires_grad_(), *values))


def test_bfloat16_is_rounded_once() -> None:
    routed, x_BTD = RoutedHeads(D, G, K, n_experts=2, top=2, bias=False), torch.randn(B, T, D).bfloat16()
    maps_BTXGK = routed.proj(x_BTD).unflatten(-1, (2, G, K)).float()
    scores_BTXG = routed.router(x_BTD).unflatten(-1, (2, G)).float().sigmoid()
    expected = (maps_BTXGK * scores_BTXG[..., None]).sum(dim=2).bfloat16().flatten(-2)
    assert torch.equal(routed(x_BTD), expected)
