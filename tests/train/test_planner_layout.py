"""What the planner counts of a rank is what the trainer's own code gives it, on a fake process group."""

import pytest
import tiny
import torch.distributed as dist

from gatelab.config import ModelConfig
from gatelab.config.moe import MoE
from gatelab.models.ladder import SIZES
from gatelab.train.planner import Mesh
from gatelab.train.planner.layout import lay_out

WIDE = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "vocab_size": 18}
GATES = "sdpa-elementwise+value-headwise+key-elementwise+query-headwise+out-elementwise"
EXPERTS = {"d_ff": None, "moe": MoE(n_experts=4, top_k=2, d_expert=8, n_shared=1)}
MODELS = {
    "decoder": {},
    "gated": {"gate": GATES},
    "gate of all heads": {"gate": "sdpa-elementwise-shared"},
    "low rank": {"gate": "sdpa-elementwise-rank=4"},
    "biases": {"bias": True, "norm": "layer", "positions": "learned"},
    "q/k-norm": {"qk_norm": "rms-all-heads", "tied_embeddings": True},
    "sink": {"softmax": "sink-logit"},
    "experts": EXPERTS,
    "experts of values": {"kv_experts": "kv-4top2"},
    "encoder-decoder": {"arch": "encoder-decoder", "positions": "relative", "mlp": "relu", "gate": GATES},
}
MESHES = {
    "data": Mesh(3),
    "tensor": Mesh(1, 2),
    "both": Mesh(2, 2, shard="zero2"),
    "copies": Mesh(2, 2, shard="none"),
    "more than key/value heads": Mesh(2, 4),
}


def model_of(name: str) -> ModelConfig:
    return tiny.model(**{**WIDE, **MODELS[name]})


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", MODELS)
def test_a_rank_keeps_what_the_planner_counts(name: str, mesh: str):
    found = lay_out(model_of(name), MESHES[mesh])
    assert found.differs == () and found.holds
    assert found.n_weights == found.n_planned > 0


@pytest.mark.parametrize("shard", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("ep", [2, 4])
def test_experts_lie_where_the_planner_counts_them(ep: int, shard: str):
    assert lay_out(model_of("experts"), Mesh(8, ep=ep, shard=shard)).differs == ()


def test_70b_is_laid_out_on_1024_ranks():
    found = lay_out(SIZES["70b"].model, Mesh(128, 8))
    assert (found.differs, found.gpus) == ((), 1024)
    # Blocks are a part of 1,024 on each; embedding and head, which tensor ranks do not share, one of 128.
    assert 70.55e9 / 1024 < found.n_weights < 70.55e9 / 1024 + 2.2e9 / 128


def test_the_fake_processes_are_gone_afterwards():
    lay_out(model_of("decoder"), Mesh(2))
    assert not dist.is_initialized()


def test_a_process_that_has_joined_others_lays_nothing_out():
    dist.init_process_group("fake", rank=0, world_size=2)
    try:
        with pytest.raises(ValueError, match="already joined others"):
            lay_out(model_of("decoder"), Mesh(2))
    finally:
        dist.destroy_process_group()
