"""Steps of shared experts with the other rank played: whose rows come back, what is counted, and a whole measurement on a CPU."""

import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist

from gatelab.config.moe import MoE
from gatelab.ops.expert_ffn import expert_ffn
from gatelab.train.shard.expert import TravellingFFN

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import expert_parts
import expert_step

N, X, E, D, F = 12, 4, 2, 8, 6


def travelled(peer: expert_step.Peer) -> tuple[torch.Tensor, torch.Tensor]:
    """With half of the experts here, and of one process whose other half is the same; tokens choose among all."""
    w1_XFD, w3_XFD = torch.randn(2, X // 2, F, D)
    w2_XDF = torch.randn(X // 2, D, F)
    x_ND, weight_NE = torch.randn(N, D, requires_grad=True), torch.rand(N, E)
    chosen_NE = torch.rand(N, X).topk(E).indices
    with expert_step.played(peer):
        found = TravellingFFN(dist.group.WORLD)(x_ND, chosen_NE, weight_NE, w1_XFD, w3_XFD, w2_XDF, impl="reference")
        found.sum().backward()
    of_two, x_ND.grad = x_ND.grad, None
    twice = [torch.cat([w, w]) for w in (w1_XFD, w3_XFD, w2_XDF)]
    alone = expert_ffn(x_ND, chosen_NE, weight_NE, *twice, impl="reference")
    alone.sum().backward()
    return torch.stack([found, of_two]), torch.stack([alone, x_ND.grad])


def test_rows_that_come_back_are_those_of_a_rank_with_the_same_experts():
    peer = expert_step.Peer()
    found, wanted = travelled(peer)
    torch.testing.assert_close(found, wanted)
    # Half of the pairs' rows, there and back, and so their gradients.
    assert peer.sent == 4 * (N * E // 2) * D * 4


def test_the_busier_rank_gets_twice_the_larger_half():
    peer = expert_step.Peer(is_busier=True)
    found, _ = travelled(peer)
    assert found.isfinite().all() and max(peer.shares) > 0.5
    larger = round(max(peer.shares) * N * E)
    assert peer.sent == 4 * larger * D * 4


def test_steps_of_one_gpu_and_of_two_ranks_are_timed_and_split():
    model = tiny.model(vocab_size=64, d_ff=None, moe=MoE(n_experts=4, top_k=2, d_expert=8))
    peer = expert_step.Peer()
    with expert_step.played(peer):
        asked = expert_step.Asked(model, 16, 2, torch.device("cpu"), 1, expert_step.ARMS)
        found = expert_step.measured(asked, peer)
    arms = found["arms"]
    assert tuple(arms) == expert_step.ARMS and all(arm["ms"] > 0 for arm in arms.values())
    # Rows of bytes of 2 layers as the plan has them, in float32 here.
    planned = found["planned"]["ep"]["sent_bytes"]["all-to-all"]
    assert arms["ep"]["sent_bytes"] == 2 * planned <= arms["ep busier"]["sent_bytes"]
    assert arms["ep"]["ms"] - arms["captured"]["ms"] == pytest.approx(
        found["split"]["by blocks and not captured"] + found["split"]["experts shared out"]
    )
    assert not dist.is_initialized()


def test_an_unknown_arm_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["expert_parts.py", "--played", "--arms", "two"])
    with pytest.raises(SystemExit):
        expert_parts.main()
    assert "--arms two: take some of captured, whole, blocks, ep, ep busier" in capsys.readouterr().err
