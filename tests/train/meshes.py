"""Small runs of every kind and every gate, and the meshes on which they must train as on one process."""

from typing import Any

import kinds
import tiny

from gatelab.config import ModelConfig, OptimConfig, ParallelConfig, ProbeConfig, Run, TrainConfig

SHARED = {**kinds.EXPERTS, "n_shared": 1, "shared_weight": "sigmoid", "router_bias": True}
BIASED = {**kinds.EXPERTS, "bias": True}
# Two kv heads for four query heads; on four tensor ranks every two of them share one.
SHAPE = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "init": "fan-in", "max_seq_len": 8}
WITHOUT_EXPERTS = {"d_ff": 24}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"gate": None},
    "one-kv-head": {"gate": "sdpa-headwise+value-headwise", "n_kv_heads": 1},
    "sdpa-headwise": {"gate": "sdpa-headwise"},
    "sdpa-elementwise": {"gate": "sdpa-elementwise"},
    "key-value": {"gate": "value-elementwise+key-headwise"},
    "query-out": {"gate": "query-elementwise+out-elementwise"},
    "out-add": {"gate": "out-elementwise-add", "bias": True},
    "scores": {"gate": "scores-headwise"},
    "shared": {"gate": "sdpa-elementwise-shared+value-elementwise-shared"},
    "from-value": {"gate": "sdpa-headwise-value"},
    "from-output": {"gate": "sdpa-elementwise-output"},
    "hybrid": {"gate": "sdpa-headwise-hybrid"},
    "head-slice": {"gate": "sdpa-headwise-head_slice"},
    "static": {"gate": "sdpa-headwise-static+value-elementwise-static"},
    "lse": {"gate": "sdpa-headwise-lse"},
    "low-rank": {"gate": "sdpa-elementwise-rank=4"},
    "all-heads-norm": {"qk_norm": "rms-all-heads", "gate": "sdpa-headwise"},
    "sink-logit": {"softmax": "sink-logit", "gate": None, "qk_norm": "rms"},
    "key-bias": {"softmax": "key-bias", "gate": None},
    "kv-experts": {"kv_experts": "v-4top2", "gate": "sdpa-headwise"},
    "relative": {"positions": "relative", "mlp": "gelu", "norm": "layer", "tied_embeddings": True},
    "xsa": {"output_map": "xsa", "gate": "sdpa-headwise", "window": 4},
    "hidden-first": {"first_hidden_from": [[1], [0, 3]], "gate": None, "registers": 2},
}


def run_of(name: str, **changes: Any) -> Run:
    """Three steps of a run that is named above or in `kinds`, watched at every step where it can be."""
    fields: dict[str, Any] = {"steps": 3, "probe": ProbeConfig(times=1, sequences=2, eval_sequences=3, watch=1)}
    if name == "shared-experts":
        return tiny.run(**({**fields, "model": ModelConfig(**SHAPE, moe=SHARED, gate="sdpa-headwise")} | changes))
    if name == "biased-experts":
        return tiny.run(**({**fields, "model": ModelConfig(**SHAPE, moe=BIASED, gate="sdpa-headwise")} | changes))
    if name == "odd-tokens":
        # 21 of a step, 7 of a sequence: tensor ranks get unequal numbers of them, and the head's weight is the embedding's.
        model = ModelConfig(**SHAPE, **WITHOUT_EXPERTS, gate="sdpa-headwise", tied_embeddings=True)
        fields |= {"model": model, "train": TrainConfig(tokens=63, batch_size=3, seq_len=7)}
        return tiny.run(**(fields | changes))
    if name == "wild":
        wild = OptimConfig(lr=1e30, clip=None, warmup=0.0, schedule="constant")
        return tiny.run(
            **({**fields, "model": ModelConfig(**SHAPE, **WITHOUT_EXPERTS), "optim": wild, "steps": 9} | changes)
        )
    if name == "qk-clip":
        return kinds.run("experts", **({**fields, "optim": OptimConfig(lr=1e-2, qk_clip=1.0)} | changes))
    if name in kinds.KINDS:
        return kinds.run(name, **(fields | changes))
    return tiny.run(**({**fields, "model": ModelConfig(**(SHAPE | WITHOUT_EXPERTS | MODELS[name]))} | changes))


def mesh(words: str) -> ParallelConfig:
    """`dp=2 tp=2 shard=zero3` as a value."""
    return ParallelConfig(**dict(word.split("=") for word in words.split()))
