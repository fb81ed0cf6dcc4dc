"""Tokens on their way to experts of two processes: the order they come in, what is sent, and how often a host has to wait."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from ranks import as_two_ranks, paths
from torch import Tensor

from gatelab.ops.expert_ffn import OF_ROWS, expert_ffn
from gatelab.ops.expert_ffn.cases import CASES, Case, inputs
from gatelab.ops.expert_ffn.rows import by_expert, inverse, to_experts, weighted_sum
from gatelab.train.shard.expert import _by_own_expert


def test_rows_that_come_rank_by_rank_are_put_in_the_order_of_experts() -> None:
    come_RX = torch.tensor([[2, 0, 1], [1, 3, 0]], dtype=torch.int32)
    of = ["0a", "0a", "0c", "1a", "1b", "1b", "1b"]  # the rank that sent it, its expert
    order_Q, place_Q = _by_own_expert(come_RX, n_rows=7)
    assert [of[i] for i in order_Q.tolist()] == ["0a", "0a", "1a", "1b", "1b", "1b", "0c"]
    assert torch.equal(order_Q[place_Q], torch.arange(7)) and torch.equal(inverse(order_Q), place_Q)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("impl", OF_ROWS)
def test_experts_given_their_own_rows_say_what_experts_do(impl: str, case: Case) -> None:
    given = inputs(case, seed=3, dtype=torch.float32)
    gradient, x_ND, chosen_NE, weight_NE = (given.pop(n) for n in ("grad_BTHK", "x_ND", "chosen_NE", "weight_NE"))
    leaves = [x_ND, weight_NE, *(t for t in given.values() if isinstance(t, Tensor))]
    activation, weights = given.pop("activation"), [given.pop(n) for n in ("w1_XFD", "w3_XFD", "w2_XDF")]
    order_M, place_M, ends_X = by_expert(chosen_NE, n_experts=case.X)
    y_MD = OF_ROWS[impl](to_experts(x_ND, order_M, place_M, case.E), ends_X, *weights, **given, activation=activation)
    y_ND = weighted_sum(y_MD, place_M, order_M, weight_NE)
    whole_ND = expert_ffn(x_ND, chosen_NE, weight_NE, *weights, **given, activation=activation, impl="reference")
    torch.testing.assert_close(y_ND, whole_ND, atol=1e-5, rtol=1e-5)
    found, expected = (torch.autograd.grad(y, leaves, gradient) for y in (y_ND, whole_ND))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def live() -> None:
    """Rank 0's tokens choose the second rank's experts alone; nothing comes to its own but what rank 1 sends."""
    import torch.distributed as dist

    from gatelab.train.parallel import join
    from gatelab.train.shard.expert import TravellingFFN

    rank, seen = join(torch.device("cpu"), 60.0).rank, Counter()
    torch.manual_seed(0)
    x_RND, weight_RNE = torch.randn(2, 5, 8), torch.rand(2, 5, 2)
    weights = [torch.randn(4, 12, 8), torch.randn(4, 12, 8), torch.randn(4, 8, 12)]
    chosen_RNE = torch.tensor([[[2, 3]] * 5, [[0, 1], [3, 0], [1, 2], [0, 3], [2, 1]]])
    x_ND = x_RND[rank].clone().requires_grad_()
    own = [w.chunk(2)[rank].clone().requires_grad_() for w in weights]
    tolist, exchange = Tensor.tolist, dist.all_to_all_single

    def waits(t: Tensor) -> list:
        seen["waits"] += 1
        return tolist(t)

    def sends(*given: object, **named: object) -> object:
        seen["exchanges"] += 1
        return exchange(*given, **named)

    Tensor.tolist, dist.all_to_all_single = waits, sends
    try:
        y_ND = TravellingFFN(dist.group.WORLD)(x_ND, chosen_RNE[rank], weight_RNE[rank], *own, impl="grouped")
        forward = dict(seen)
        y_ND.square().sum().backward()
    finally:
        Tensor.tolist, dist.all_to_all_single = tolist, exchange
    assert forward == {"waits": 1, "exchanges": 3}, forward  # numbers of rows; rows there; and back
    assert dict(seen) == {"waits": 1, "exchanges": 5}, seen
    for w in (x_RND, *weights):
        w.requires_grad_()
    whole_RND = expert_ffn(x_RND.flatten(0, 1), chosen_RNE.flatten(0, 1), weight_RNE.flatten(0, 1), *weights)
    whole_RND.square().sum().backward()
    near = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(y_ND, whole_RND.view(2, 5, 8)[rank], **near)
    torch.testing.assert_close(x_ND.grad, x_RND.grad[rank], **near)
    for part, whole in zip(own, weights, strict=True):
        torch.testing.assert_close(part.grad, whole.grad.chunk(2)[rank], **near)


def test_a_layer_waits_once_and_sends_its_rows_there_and_back() -> None:
    environ = os.environ | paths() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__], env=environ, check=True, timeout=300)


if __name__ == "__main__":
    as_two_ranks(live)
