"""Configurations: frozen values with one dotted grammar. Free of torch."""

from .base import Config, ConfigError, canonical, digest, keys, nearest, validate
from .data import BigramBackcopy, Data, Text
from .gate import ACTIVATIONS, SITES, Activation, GateSpec
from .grid import Change, accepts, cross, override, parse_assignments, together, vary
from .model import ModelConfig, Normaliser, SinkLogit, Softmax
from .run import Execution, OptimConfig, ProbeConfig, Run, TrainConfig, fingerprint

__all__ = [
    "ACTIVATIONS",
    "SITES",
    "Activation",
    "BigramBackcopy",
    "Change",
    "Config",
    "ConfigError",
    "Data",
    "Execution",
    "GateSpec",
    "ModelConfig",
    "Normaliser",
    "OptimConfig",
    "ProbeConfig",
    "Run",
    "SinkLogit",
    "Softmax",
    "Text",
    "TrainConfig",
    "accepts",
    "canonical",
    "cross",
    "digest",
    "fingerprint",
    "keys",
    "nearest",
    "override",
    "parse_assignments",
    "together",
    "validate",
    "vary",
]
