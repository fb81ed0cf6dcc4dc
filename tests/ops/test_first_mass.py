"""The log-sum-exp that attention gives along, and the first-token mass that follows from it."""

import importlib.util
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gatelab.config.normaliser import SinkLogit, Softmax
from gatelab.ops.attention_stats import mean_first_token_mass
from gatelab.ops.gated_attention import flash, gated_attention, gated_attention_and_lse
from gatelab.ops.gated_attention.cases import Case, inputs


@pytest.mark.parametrize("impl", ["sdpa", *flash.KEEPS_OUTPUT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["grouped", "slot"])
def test_the_log_sum_exp_is_ln_of_the_denominator(impl: str, dtype: torch.dtype, case: str) -> None:
    given = inputs(Case("x", T=9, H=6, G=2, K=8, gate="sdpa-headwise"), seed=1, dtype=dtype)
    names = ("q_BTHK", "k_BSGK", "v_BSGK", "gate_logits_BTHK", "gate")
    sink_H = torch.randn(6)
    more = {"normaliser": SinkLogit(), "learned": {"sink_logit_H": sink_H}} if case == "slot" else {}
    more |= {} if more else {"normaliser": Softmax()}
    if case == "slot" and impl != "sdpa":
        with pytest.raises(ValueError, match="computes a softmax without a slot"):
            gated_attention_and_lse(*(given[n] for n in names), impl=impl, **more)
        return
    y_BTHK, lse_BHT = gated_attention_and_lse(*(given[n] for n in names), impl=impl, **more)
    q, k = (given[n].detach().double().numpy() for n in names[:2])
    logits = np.einsum("bthk,bshk->bhts", q, k.repeat(3, axis=2)) / math.sqrt(8)
    terms = np.exp(np.where(np.tril(np.ones((9, 9), dtype=bool)), logits, -np.inf))
    slot = np.exp(sink_H.double().numpy())[:, None] if case == "slot" else 0.0
    np.testing.assert_allclose(lse_BHT.double().numpy(), np.log(terms.sum(axis=-1) + slot), atol=2e-5)
    torch.testing.assert_close(y_BTHK, gated_attention(*(given[n] for n in names), impl=impl, **more))


def test_the_reference_has_no_log_sum_exp_to_give() -> None:
    given = inputs(Case("x", T=5, H=4, G=2, K=8), seed=1, dtype=torch.float32)
    y_BTHK, lse_BHT = gated_attention_and_lse(given["q_BTHK"], given["k_BSGK"], given["v_BSGK"], impl="reference")
    assert lse_BHT is None and y_BTHK.shape == given["q_BTHK"].shape


def drawn(n_queries: int, n_keys: int) -> list[torch.Tensor]:
    """q, k and the rows' ln of the denominator, in float64."""
    q_BTHK, k_BSGK = (torch.randn(2, n, H, 8, dtype=torch.float64) for n, H in ((n_queries, 6), (n_keys, 2)))
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSGK.repeat_interleave(3, dim=2)) / math.sqrt(8)
    hidden_TS = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1)
    return [q_BTHK, k_BSGK, logits_BHTS.masked_fill(hidden_TS, -math.inf).logsumexp(dim=-1)]


@pytest.mark.parametrize(("n_queries", "n_keys", "skip"), [(9, 9, 1), (9, 9, 8), (4, 9, 1), (4, 9, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_mean_is_over_queries_from_a_position_on(
    n_queries: int, n_keys: int, skip: int, dtype: torch.dtype
) -> None:
    q, k, lse = (t.to(dtype) for t in drawn(n_queries, n_keys))
    found_BH = mean_first_token_mass(q.requires_grad_(), k, lse, skip=skip)
    z = np.einsum("bthk,bhk->bht", *(t.detach().double().numpy() for t in (q, k[:, 0].repeat_interleave(3, dim=1))))
    mass = np.exp(z / math.sqrt(8) - lse.double().numpy())[:, :, max(0, skip - (n_keys - n_queries)) :]
    assert found_BH.dtype == torch.float32 and not found_BH.requires_grad
    np.testing.assert_allclose(found_BH.numpy(), mass.mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip": 9}, "skip=9 with 9 queries up to position 8: expected a position that leaves a query"),
        ({"skip": -1}, "skip=-1"),
        ({"lse": torch.zeros(2, 6, 8)}, r"lse_BHT of shape \(2, 6, 8\): expected one number a query and head"),
        ({"k": torch.zeros(2, 9, 4, 8)}, "with G dividing H"),
        ({"k": torch.zeros(2, 5, 2, 8)}, "9 queries and 5 keys"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    q, k, lse = drawn(9, 9)
    with pytest.raises(ValueError, match=message):
        mean_first_token_mass(q, change.get("k", k), change.get("lse", lse), skip=change.get("skip", 1))


INTERPRETED = """
import torch
from gatelab.ops.attention_stats import mean_first_token_mass
from gatelab.ops.attention_stats.first_mass import _by_kernel

for dtype, skip in ((torch.float32, 1), (torch.bfloat16, 40)):
    q, k, lse = torch.randn(2, 70, 6, 8, dtype=dtype), torch.randn(2, 70, 2, 8, dtype=dtype), torch.rand(2, 6, 70) + 5
    found_BH, expected_BH = _by_kernel(q, k, lse, skip), mean_first_token_mass(q, k, lse, skip=skip)
    torch.testing.assert_close(found_BH, expected_BH, rtol=1e-5, atol=0)
    torch.library.opcheck(torch.ops.gatelab.mean_first_token_mass.default, (q, k, lse, skip))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernel_behind_its_operator_is_the_same_function() -> None:
    """In a process of its own: whether Triton interprets is settled where it is imported."""
    given = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("K", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_on_a_gpu_what_attention_gives_along_says_the_mass(dtype: torch.dtype, K: int) -> None:
    q, k, v = (torch.randn(2, 300, H, K, dtype=dtype, device="cuda", requires_grad=True) for H in (8, 2, 2))
    _, lse_BHT = gated_attention_and_lse(q, k, v)
    expected_BH = mean_first_token_mass(*(t.detach().double().cpu() for t in (q, k, _lse(q, k))), skip=3)
    torch.testing.assert_close(mean_first_token_mass(q, k, lse_BHT, skip=3).cpu(), expected_BH, rtol=2e-3, atol=1e-5)


def _lse(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    T, H, K = q.shape[1:]
    logits = torch.einsum("bthk,bshk->bhts", q.double(), k.double().repeat_interleave(H // k.shape[2], dim=2)) / K**0.5
    return logits.masked_fill(torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1), -math.inf).logsumexp(dim=-1)
