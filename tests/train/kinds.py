"""One small run of each kind that trains in its own way: both ways, two stacks, experts, and two stacks of experts."""

from typing import Any

import tiny

from gatelab.config import Continuation, MaskedTokens, ModelConfig, Run, SpanCorruption

EXPERTS = {"n_experts": 4, "top_k": 2, "d_expert": 8, "balance": 0.3, "z": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "experts": {"model": {"moe": EXPERTS}},
    "encoder": {"model": {"arch": "encoder"}, "objective": MaskedTokens(share=0.4)},
    "encoder-decoder": {"model": {"arch": "encoder-decoder"}, "objective": SpanCorruption(share=0.4, mean_span=1.5)},
    "continuation": {"model": {"arch": "encoder-decoder", "n_encoder_layers": 1}, "objective": Continuation()},
    "encoder-decoder-experts": {
        "model": {"arch": "encoder-decoder", "moe": EXPERTS},
        "objective": Continuation(share=0.7),
    },
}


def run(kind: str, *, model: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A tiny run of a kind: grouped queries, gates, weights large enough for experts to differ. Open fields come from its
    data."""
    fields = KINDS[kind]
    shape = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "gate": "sdpa-headwise", "init": "fan-in"}
    config = ModelConfig(**shape, **fields["model"], **(model or {}))
    return tiny.run(**({"model": config, "objective": fields.get("objective")} | changes))
