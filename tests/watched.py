"""Models whose first-token mass is watched, and what the probe says of the same pass."""

from typing import Any

import tiny
import torch
from torch import Tensor

from gatelab.config import ProbeConfig
from gatelab.models import build_model
from gatelab.models.model import Model
from gatelab.probes import capture
from gatelab.record import Row

GROUPED = {"n_heads": 4, "n_kv_heads": 2, "init_std": 0.3}
MODELS: dict[str, dict[str, Any]] = {
    "gated": {"gate": "sdpa-elementwise+value-headwise"},
    "ungated": {},
    "normed, with biases": {"qk_norm": "rms", "bias": True, "positions": "learned"},
    "sink logit": {"softmax": {"kind": "sink-logit", "init": 1.5}},
    "off by one, gated": {"softmax": "off-by-one", "gate": "sdpa-headwise"},
    "key bias": {"softmax": "key-bias"},
    "gate on the lse": {"gate": "sdpa-headwise-lse"},
    "registers": {"registers": 3, "gate": "sdpa-headwise"},
}


def build(impl: str = "auto", **changes: Any) -> Model:
    model = build_model(tiny.model(**GROUPED | changes))
    for layer in model._attention_layers():
        layer.impl = impl
        if layer.sink is not None:
            torch.nn.init.normal_(next(layer.sink.parameters()))
    return model


def probed(model: Model, *tokens: Tensor, skip: int) -> Tensor:
    """What the probe says of causal layers, [L, H]."""
    with torch.no_grad(), capture(model, ["sinks"], config=ProbeConfig(skip_queries=skip)) as recorder:
        model(*tokens)
    of = {(r.layer, r.head): r.value for r in recorder.rows() if _is_mass(r) and r.head is not None}
    L, H = (1 + max(axis) for axis in zip(*of, strict=True))
    return torch.tensor([[of[layer, head] for head in range(H)] for layer in range(L)])


def _is_mass(row: Row) -> bool:
    return row.metric == "first_token_mass" and row.stack is None and row.domain is None


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
