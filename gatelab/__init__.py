"""Gatelab: a library and laboratory for gated softmax attention. Public names are loaded on first use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The version of everything that is stored. Raised when the meaning of a stored configuration or file changes (a
# default, a name); a new field whose default keeps the old behaviour does not change it.
SCHEMA = 1

_PUBLIC = {
    "AskConfig": "config",
    "BigramBackcopy": "config",
    "Execution": "config",
    "GateSpec": "config",
    "KVExperts": "config",
    "MoE": "config",
    "ModelConfig": "config",
    "OptimConfig": "config",
    "PRESETS": "config",
    "ProbeConfig": "config",
    "Run": "config",
    "SinkLogit": "config",
    "YaRN": "config.rope",
    "Tasks": "config",
    "Text": "config",
    "TrainConfig": "config",
    "cross": "config",
    "override": "config",
    "together": "config",
    "vary": "config",
    "Finding": "record",
    "Row": "record",
    "Step": "record",
    "GatedAttention": "nn.attention",
    "KVCache": "nn.cache",
    "SIZES": "models.ladder",
    "build_model": "models",
    "Keep": "models.generate",
    "Sampling": "models.generate",
    "continuations": "models.generate",
    "generate": "models.generate",
    "generate_target": "models.generate",
    "stream": "models.generate",
    "streaming_losses": "models.generate",
    "match_parameters": "models.sizes",
    "train": "train",
    "HeadParallel": "train.shard.heads",
    "shard_heads": "train.shard.heads",
    "capture": "probes.capture",
    "probe": "probes",
    "Arm": "study.study",
    "Study": "study.study",
}

__all__ = ["SCHEMA", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gatelab' has no attribute {name!r}")
    module = import_module(f"gatelab.{_PUBLIC[name]}")
    return module if name in ("probe", "train") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
