"""The gradients beside a forget gate in a low precision: of the whole matrix, in blocks, compiled, at any length, of rows
without a key and under autocast."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from gatelab.nn.attention import GatedAttention
from gatelab.ops.contract import check
from gatelab.ops.gated_attention import forget, gated_attention
from gatelab.ops.gated_attention.cases import Case, apart, inputs, together

REFERENCE = together(partial(gated_attention, impl="reference"))
B, H, K = 2, 3, 4


def masks(n_queries: int, n_keys: int) -> dict[str, Tensor | None]:
    is_later = torch.ones(n_queries, n_keys).triu(n_keys - n_queries + 1).bool()
    added = torch.randn(B, 1, n_queries, n_keys, dtype=torch.float64).masked_fill(is_later, -math.inf)
    return {"none": None, "boolean": ~is_later[None, None], "added": added}


@pytest.mark.parametrize("name", ["none", "boolean", "added"])
@pytest.mark.parametrize("n_queries", [1, 3, 7])
@pytest.mark.parametrize("reads_lse", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
def test_the_sums_are_those_of_the_whole_matrix(
    name: str, n_queries: int, reads_lse: bool, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bias b_j − b_i that the products q·k hold already, in blocks of two queries; and the log-sum-exp's gradient makes
    good what the row sums of dO ∘ O lack, where O was rounded."""
    n_keys = 7
    monkeypatch.setattr(forget, "_BLOCKS", {"cpu": 2 * B * H * n_keys})
    mask = masks(n_queries, n_keys)[name]
    q, k, v = (torch.randn(B, H, n, K, dtype=torch.float64) for n in (n_queries, n_keys, n_keys))
    bias_BSH = torch.randn(B, n_keys, H, dtype=torch.float64, requires_grad=True)
    hidden = ~masks(n_queries, n_keys)["boolean"] if mask is None else None

    def attended(bias: Tensor) -> tuple[Tensor, Tensor]:
        b = bias.transpose(1, 2)
        logits = 0.5 * q @ k.mT + b[:, :, None] - b[:, :, n_keys - n_queries :, None]
        if hidden is not None:
            logits = logits.masked_fill(hidden, -math.inf)
        elif mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask, -math.inf)
        else:
            logits = logits + mask
        return logits.softmax(-1) @ v, logits.logsumexp(-1, keepdim=True)

    # The bias as it enters the kernel: two channels of the product.
    b = bias_BSH.detach().transpose(1, 2)[..., None] / 0.5
    own = -b[:, :, n_keys - n_queries :]
    q_with = torch.cat([q, own, torch.ones_like(own)], dim=-1)
    k_with = torch.cat([k, torch.ones_like(b), b], dim=-1)
    y, lse = attended(bias_BSH)
    dy, dlse = torch.randn_like(y), torch.randn_like(lse)
    outputs, upstream = ([y, lse], [dy, dlse]) if reads_lse else ([y], [dy])
    (expected,) = torch.autograd.grad(outputs, bias_BSH, upstream)
    rounded, lse = y.detach().bfloat16().double().requires_grad_(), lse.detach().requires_grad_()
    found = forget.with_exact_sums(
        rounded, lse, bias_BSH, (q_with, k_with, v), mask_BHTS=mask, scale=0.5, is_fused=is_fused
    )
    assert torch.equal(found[0], rounded) and torch.equal(found[1], lse)
    gradient, of_y, of_lse = torch.autograd.grad(
        found[: 1 + reads_lse], [bias_BSH, rounded, lse], upstream, allow_unused=True
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(of_y, dy)
    lacking = (dy * (rounded - y)).sum(-1, keepdim=True) if is_fused else 0
    if reads_lse or is_fused:
        torch.testing.assert_close(of_lse, (dlse if reads_lse else 0) + lacking, rtol=1e-4, atol=1e-5)
    else:
        assert of_lse is None


def test_the_operator_is_what_torch_expects_of_one() -> None:
    dy, q = (torch.randn(1, 2, 3, 4) for _ in range(2))
    k, v = (torch.randn(1, 2, 5, 4) for _ in range(2))
    torch.library.opcheck(torch.ops.gatelab.forget_sums.default, (dy, torch.randn(1, 2, 3, 1), q, k, v, None, 0.5))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gate", [None, "sdpa-headwise-lse"])
def test_a_row_without_a_key_has_no_part_in_any_gradient(gate: str | None, bias: bool) -> None:
    """Three tokens of padding before one of two sequences: the others' gradients are those of the sequence alone."""
    case = Case("padded", T=9, scores="scores-headwise-forget", gate=gate)
    arguments = inputs(case, seed=8, dtype=torch.bfloat16)
    grad_BTHK, names = arguments.pop("grad_BTHK"), [n for n, t in arguments.items() if isinstance(t, Tensor)]
    seen_BTS = torch.ones(2, 9, 9, dtype=torch.bool)
    seen_BTS[0, :, :3] = False
    added = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(9)).bfloat16() if bias else None
    y_BTHK = gated_attention(**arguments | {"mask_BTS": seen_BTS, "bias_BHTS": added}, impl="sdpa")
    y_BTHK.backward(grad_BTHK)
    alone = arguments | {n: arguments[n].detach()[:1, 3:].clone().requires_grad_() for n in names}
    gated_attention(**alone | {"bias_BHTS": added[..., 3:, 3:] if bias else None}, impl="sdpa").backward(
        grad_BTHK[:1, 3:]
    )
    for name in names:
        found = arguments[name].grad
        assert found[0, :3].abs().max() < 1e-5, name  # false for not-a-number
        torch.testing.assert_close(found[:1, 3:], alone[name].grad, rtol=0.02, atol=0.02)


def test_a_way_back_inside_of_autocast_is_no_other() -> None:
    arguments = inputs(Case("inside", B=1, T=65, K=16, scores="scores-headwise-forget"), seed=1, dtype=torch.bfloat16)
    grad_BTHK, gradients = arguments.pop("grad_BTHK"), []
    for is_inside in (False, True):
        y_BTHK = gated_attention(**arguments)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_inside):
            gradients += torch.autograd.grad(y_BTHK, arguments["score_logits_BSH"], grad_BTHK)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n_tokens", [64, 1024])
def test_the_error_does_not_grow_with_the_length(n_tokens: int, dtype: torch.dtype) -> None:
    case = Case("long", B=1, T=n_tokens, H=2, G=2, K=16, scores="scores-headwise-forget")
    found = check(together(partial(gated_attention, impl="sdpa")), REFERENCE, apart(inputs(case, seed=4, dtype=dtype)))
    (verdict,) = (v for v in found if v.tensor == "d score_logits_BSH")
    assert verdict.error < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("n_tokens", [256, 1024])
def test_the_bias_of_a_layer_s_forget_gate_learns_in_bfloat16(n_tokens: int) -> None:
    """Its gradient is the sum over all tokens, where differences of large numbers have cancelled."""
    torch.manual_seed(0)
    layer = GatedAttention(d_model=32, n_heads=2, gate="forgetting-transformer")
    x_BTD, grad_BTD = (torch.randn(1, n_tokens, 32).bfloat16() for _ in range(2))
    layer.bfloat16()
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        layer.to(dtype).zero_grad()
        layer(x_BTD.to(dtype)).backward(grad_BTD.to(dtype))
        gradients.append(layer.gates["scores"].g_proj.bias.grad.double())
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 0.02


@pytest.mark.parametrize("slug", ["scores-headwise-forget", "scores-headwise-forget+sdpa-headwise-lse"])
def test_compiled_in_one_graph_it_keeps_the_contract(slug: str) -> None:
    scores, *gate = slug.split("+")
    case = Case("compiled", T=24, G=2, scores=scores, gate=gate[0] if gate else None)
    torch._dynamo.reset()
    compiled = torch.compile(partial(gated_attention, impl="sdpa"), fullgraph=True, backend="aot_eager")
    found = check(together(compiled), REFERENCE, apart(inputs(case, seed=5, dtype=torch.bfloat16)))
    assert all(v.holds for v in found), found
    torch._dynamo.reset()


@pytest.mark.parametrize("slug", ["scores-headwise-forget", "scores-headwise-add"])
def test_autocast_does_not_round_what_is_added_to_the_logits(slug: str) -> None:
    """Queries that a norm left in float32 enter torch's attention in bfloat16, and each sum of log gates would."""
    arguments = inputs(Case("autocast", B=1, T=512, scores=slug), seed=6, dtype=torch.float32)
    del arguments["grad_BTHK"]
    exact = {n: t.detach().double() if isinstance(t, Tensor) else t for n, t in arguments.items()}
    truth = gated_attention(**exact, impl="reference")
    with torch.autocast("cpu", torch.bfloat16):
        errors = {
            impl: ((gated_attention(**arguments, impl=impl) - truth).norm() / truth.norm()).item()
            for impl in ("reference", "sdpa")
        }
    assert errors["sdpa"] < 2 * errors["reference"]


def test_without_gradients_there_is_no_way_back() -> None:
    arguments = inputs(Case("read", T=9, scores="scores-headwise-forget"), seed=7, dtype=torch.bfloat16)
    del arguments["grad_BTHK"]
    with torch.no_grad():
        assert gated_attention(**arguments).grad_fn is None
