"""Windows, biases and gates on the scores."""

import math

import pytest
import torch
from torch import Tensor

from gatelab.config import GateSpec
from gatelab.ops.gated_attention import attention_weights, gated_attention, visible

B, T, H, G, K = 2, 9, 4, 2, 8
each_impl = pytest.mark.parametrize("impl", ["reference", "sdpa"])


def drawn(n_kv_heads: int = G) -> tuple[Tensor, Tensor, Tensor]:
    q_BTHK = torch.randn(B, T, H, K, dtype=torch.float64)
    return q_BTHK, *(torch.randn(B, T, n_kv_heads, K, dtype=torch.float64) for _ in range(2))


def gate(slug: str) -> GateSpec:
    return GateSpec.parse(slug)


@each_impl
def test_scaling_scores_is_gating_values(impl: str) -> None:
    q_BTHK, k_BSGK, v_BSGK = drawn(n_kv_heads=H)
    logits_BSH = torch.randn(B, T, H, dtype=torch.float64)
    scores = {"score_logits_BSH": logits_BSH, "score_gate": gate("scores-headwise")}
    found = gated_attention(q_BTHK, k_BSGK, v_BSGK, **scores, impl=impl)
    torch.testing.assert_close(
        found, gated_attention(q_BTHK, k_BSGK, v_BSGK * logits_BSH.sigmoid()[..., None], impl=impl)
    )


@each_impl
def test_adding_to_scores_is_a_bias_a_key(impl: str) -> None:
    qkv, logits_BSH = drawn(), torch.randn(B, T, H, dtype=torch.float64)
    scores = {"score_logits_BSH": logits_BSH, "score_gate": gate("scores-headwise-tanh-add")}
    bias_BHTS = logits_BSH.tanh().transpose(1, 2)[:, :, None]
    torch.testing.assert_close(
        gated_attention(*qkv, **scores, impl=impl), gated_attention(*qkv, bias_BHTS=bias_BHTS, impl=impl)
    )


@each_impl
def test_a_forget_gate_that_is_open_forgets_nothing(impl: str) -> None:
    qkv = drawn()
    # σ(60) is 1 in float64.
    logits_BSH = torch.full((B, T, H), 60.0, dtype=torch.float64)
    scores = {"score_gate": gate("scores-headwise-forget"), "score_logits_BSH": logits_BSH}
    torch.testing.assert_close(gated_attention(*qkv, **scores, impl=impl), gated_attention(*qkv, impl=impl))


def test_forgetting_decays_by_the_product_of_the_gates_in_between() -> None:
    q_BTHK = torch.zeros(1, T, H, K, dtype=torch.float64)
    logits_BSH = torch.randn(1, T, H, dtype=torch.float64)
    scores = {"score_gate": gate("scores-headwise-forget"), "score_logits_BSH": logits_BSH}
    weights_BHTS, _ = attention_weights(q_BTHK, q_BTHK, **scores)
    f = logits_BSH.sigmoid()[0]
    for i, j, h in [(5, 2, 1), (8, 0, 3), (4, 3, 0)]:
        decay = weights_BHTS[0, h, i, j] / weights_BHTS[0, h, i, i]
        assert decay.item() == pytest.approx(math.prod(f[j + 1 : i + 1, h].tolist()), rel=1e-12)


@each_impl
def test_a_shut_forget_gate_keeps_the_query_to_what_follows(impl: str) -> None:
    qkv = drawn()
    logits_BSH = torch.full((B, T, H), 50.0, dtype=torch.float64)
    logits_BSH[:, 4] = -1e4
    found = gated_attention(*qkv, score_logits_BSH=logits_BSH, score_gate=gate("scores-headwise-forget"), impl=impl)
    alone = gated_attention(*(t[:, 4:] for t in qkv), impl=impl)
    torch.testing.assert_close(found[:, 4:], alone, rtol=1e-9, atol=1e-9)


@each_impl
@pytest.mark.parametrize("slug", ["scores-headwise", "scores-headwise-silu-add", "scores-headwise-forget"])
def test_decoding_with_score_gates_equals_the_whole_sequence(impl: str, slug: str) -> None:
    q_BTHK, k_BSGK, v_BSGK = drawn()
    scores = {"score_logits_BSH": torch.randn(B, T, H, dtype=torch.float64), "score_gate": gate(slug)}
    whole = gated_attention(q_BTHK, k_BSGK, v_BSGK, **scores, window=5, impl=impl)
    for n in (1, 4):
        last = gated_attention(q_BTHK[:, -n:], k_BSGK, v_BSGK, **scores, window=5, impl=impl)
        torch.testing.assert_close(last, whole[:, -n:])


@each_impl
@pytest.mark.parametrize("slug", ["scores-headwise", "scores-headwise-add", "scores-headwise-forget"])
def test_a_constant_score_gate_is_one_repeated(impl: str, slug: str) -> None:
    qkv, constant_11H = drawn(), torch.randn(1, 1, H, dtype=torch.float64)
    found, expected = (
        gated_attention(*qkv, score_logits_BSH=logits, score_gate=gate(slug), impl=impl)
        for logits in (constant_11H, constant_11H.expand(B, T, H))
    )
    torch.testing.assert_close(found, expected)


@each_impl
def test_a_gate_on_the_log_sum_exp_takes_a_constant_a_head(impl: str) -> None:
    qkv, constant_HK = drawn(), torch.randn(H, 1, dtype=torch.float64)
    spec = gate("sdpa-headwise-lse")
    found, expected = (
        gated_attention(*qkv, logits, spec, impl=impl)
        for logits in (constant_HK[None, None], constant_HK.expand(B, T, H, 1))
    )
    torch.testing.assert_close(found, expected)


@each_impl
def test_keys_outside_of_the_window_may_be_anything(impl: str) -> None:
    q_BTHK, k_BSGK, v_BSGK = drawn()
    before = gated_attention(q_BTHK, k_BSGK, v_BSGK, window=3, impl=impl)[:, 6:]
    k_BSGK[:, :4], v_BSGK[:, :4] = 1e30, 1e30
    assert torch.equal(gated_attention(q_BTHK, k_BSGK, v_BSGK, window=3, impl=impl)[:, 6:], before)


def test_a_window_counts_keys_and_ends_at_the_query() -> None:
    seen = visible(4, 6, is_causal=True, window=2, mask_BTS=None, device=torch.device("cpu"))
    assert seen[0].int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]
    both = visible(3, 3, is_causal=False, window=2, mask_BTS=None, device=torch.device("cpu"))
    assert both[0].int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    late = visible(2, 6, is_causal=True, window=2, mask_BTS=None, device=torch.device("cpu"), start=2)
    assert late[0].int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]


@each_impl
def test_a_window_of_all_keys_changes_nothing(impl: str) -> None:
    qkv = drawn()
    torch.testing.assert_close(gated_attention(*qkv, window=T, impl=impl), gated_attention(*qkv, impl=impl))
