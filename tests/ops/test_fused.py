"""Attention with its log-sum-exp: values and gradients of the fused kernels against the whole matrix."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.ops.gated_attention import gated_attention, sdpa
from gatelab.ops.gated_attention.fused import attention_with_lse

B, H, T, K = 2, 3, 6, 5  # K is no multiple of what the kernels like


def drawn(n_keys: int = T) -> tuple[Tensor, Tensor, Tensor]:
    q_BHTK = torch.randn(B, H, T, K, dtype=torch.float64, requires_grad=True)
    return q_BHTK, *(torch.randn(B, H, n_keys, K, dtype=torch.float64, requires_grad=True) for _ in range(2))


def whole(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool) -> tuple[Tensor, Tensor]:
    logits = 0.3 * q @ k.transpose(-1, -2) + (0.0 if bias is None else bias)
    if is_causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -math.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1, keepdim=True)


def biases(n_keys: int) -> dict[str, Tensor | None]:
    hidden = torch.rand(B, 1, T, n_keys) < 0.4
    hidden[..., 0] = False
    mask = torch.zeros(B, 1, T, n_keys, dtype=torch.float64).masked_fill(hidden, -math.inf)
    return {"none": None, "mask": mask, "learned": torch.randn(1, H, T, n_keys).double().requires_grad_()}


@pytest.mark.parametrize("name", ["none", "mask", "learned"])
@pytest.mark.parametrize("n_keys", [T, 9])
def test_both_outputs_have_the_gradients_of_the_whole_matrix(name: str, n_keys: int) -> None:
    qkv, bias = drawn(n_keys), biases(n_keys)[name]
    is_causal = name == "none" and n_keys == T
    leaves = [*qkv, *([bias] if name == "learned" else [])]
    found = attention_with_lse(*qkv, bias_BHTS=bias, is_causal=is_causal, scale=0.3)
    expected = whole(*qkv, bias, is_causal)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = [torch.randn_like(t) for t in expected]
    # Each output by itself, and both at once.
    for i in ([0], [1], [0, 1]):
        one, other = (
            torch.autograd.grad(
                [o[j] for j in i], leaves, [upstream[j] for j in i], retain_graph=True, allow_unused=True
            )
            for o in (found, expected)
        )
        for leaf, a, b in zip(leaves, one, other, strict=True):
            if i == [1] and leaf is qkv[2]:
                assert a is None or not a.any()
            else:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    def called(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return attention_with_lse(q, k, v, bias_BHTS=None, is_causal=True, scale=0.3)

    assert torch.autograd.gradcheck(called, drawn())


def test_the_gradient_of_the_log_sum_exp_keeps_its_digits_in_bfloat16() -> None:
    """One piece of bfloat16 in the extra channel would keep 8 bits of it; two keep 16."""
    qkv = [t.detach().bfloat16().requires_grad_() for t in drawn()]
    dlse = 1 + torch.rand(B, H, T, 1) / 128
    gradients = []
    for exact in (False, True):
        tensors = [t.detach().double().requires_grad_() for t in qkv] if exact else qkv
        _, lse = whole(*tensors, None, True) if exact else attention_with_lse(
            *tensors, bias_BHTS=None, is_causal=True, scale=0.3
        )  # fmt: skip
        gradients.append(torch.autograd.grad(lse, tensors[0], dlse.to(lse.dtype))[0].double())
    error = ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()
    assert error < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", ["none", "mask"])
def test_the_operator_is_what_torch_expects_of_one(name: str) -> None:
    operator = torch.ops.gatelab.attention_with_lse.default
    torch.library.opcheck(operator, (*drawn(), biases(T)[name], name == "none", 0.3))


def test_extreme_logits_stay_finite() -> None:
    q, k, v = (t.detach() for t in drawn())
    leaves = [(100 * t).float().requires_grad_() for t in (q, k)]
    y, lse = attention_with_lse(*leaves, v.float(), bias_BHTS=None, is_causal=True, scale=1.0)
    gradients = torch.autograd.grad(y.sum() + lse.sum(), leaves)
    assert y.isfinite().all() and lse.abs().max() > 1e4 and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty_inputs_give_empty_outputs(empty: str) -> None:
    q, k, v = (t[:0] for t in drawn()) if empty == "batch" else (drawn()[0][:, :, :0], *drawn()[1:])
    y, lse = attention_with_lse(q, k, v, bias_BHTS=None, is_causal=False, scale=0.3)
    assert y.shape == q.shape and lse.shape == (*q.shape[:3], 1)


@pytest.mark.parametrize("name", ["both ways", "documents", "a bias", "grouped heads"])
def test_sdpa_is_the_same_function_where_torch_is_not_left_to_choose(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    heads = {"q_BTHK": 4, "k_BSGK": 2 if name == "grouped heads" else 4, "v_BSGK": 2 if name == "grouped heads" else 4}
    given = {n: torch.randn(2, 12, h, 8, generator=random).requires_grad_() for n, h in heads.items()}
    more = {
        "documents": {"segment_ids_BT": torch.arange(12).expand(2, 12) // 5},
        "a bias": {"bias_BHTS": torch.randn(2, 4, 12, 12, generator=random), "is_causal": False},
    }.get(name, {"is_causal": False})

    def found() -> list[torch.Tensor]:
        y = gated_attention(**given, **more, impl="sdpa")
        return [y, *torch.autograd.grad(y.square().sum(), [*given.values()])]

    left = found()
    asked = []
    monkeypatch.setattr(sdpa, "_avoids_cudnn", lambda q, n_keys, is_bare_causal: not asked.append(n_keys))
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    for a, b in zip(left, found(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert asked == [12]
