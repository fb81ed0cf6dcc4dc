"""Configurations: frozen values with one dotted grammar. Free of torch."""

from .ask import AskConfig
from .base import Config, ConfigError, canonical, digest, keys, nearest, one_of, validate
from .data import BigramBackcopy, Data, TaskKnobs, Tasks, Text
from .gate import ACTIVATIONS, REFUSALS, SITES, SOURCES, Activation, GateSpec, Site
from .grid import Change, accepts, cross, override, parse_assignments, together, vary
from .kv_experts import KVExperts
from .model import ModelConfig
from .moe import MoE
from .normaliser import NORMALISERS, Normaliser, SinkLogit, Softmax
from .objective import Answers, Continuation, MaskedTokens, NextToken, Objective, SpanCorruption
from .output_map import OUTPUT_MAPS
from .parallel import ParallelConfig
from .presets import PRESETS, Preset
from .run import Execution, OptimConfig, ProbeConfig, Run, TrainConfig, fingerprint

__all__ = [
    "ACTIVATIONS",
    "NORMALISERS",
    "OUTPUT_MAPS",
    "PRESETS",
    "REFUSALS",
    "SITES",
    "SOURCES",
    "Activation",
    "Answers",
    "AskConfig",
    "BigramBackcopy",
    "Change",
    "Config",
    "ConfigError",
    "Continuation",
    "Data",
    "Execution",
    "GateSpec",
    "KVExperts",
    "MaskedTokens",
    "MoE",
    "ModelConfig",
    "NextToken",
    "Normaliser",
    "Objective",
    "OptimConfig",
    "ParallelConfig",
    "Preset",
    "ProbeConfig",
    "Run",
    "SinkLogit",
    "Site",
    "Softmax",
    "SpanCorruption",
    "TaskKnobs",
    "Tasks",
    "Text",
    "TrainConfig",
    "accepts",
    "canonical",
    "cross",
    "digest",
    "fingerprint",
    "keys",
    "nearest",
    "one_of",
    "override",
    "parse_assignments",
    "together",
    "validate",
    "vary",
]
