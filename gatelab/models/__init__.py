"""Architectures, and `build_model`. `sizes` is free of torch and may be imported alone."""

from importlib import import_module
from typing import TYPE_CHECKING

from ..config.model import ModelConfig

if TYPE_CHECKING:
    from .model import Model


def build_model(config: ModelConfig, *, seed: int = 0) -> "Model":
    """The model of a configuration, initialised by (seed, parameter name).

    Raises:
        ValueError: when vocab_size or max_seq_len is not stated: nothing here knows the data; what is no configuration.
    """
    if not isinstance(config, ModelConfig):
        raise ValueError(f"build_model takes a ModelConfig, and this is a {type(config).__name__}")
    from .init import initialise

    model = model_class(config)(_stated(config))
    initialise(model, model.config, seed)
    return model


def model_class(config: ModelConfig) -> "type[Model]":
    """The class of the configuration's architecture; of a resolved configuration it makes an undrawn model."""
    file, name = config.architecture.module.split(":")
    return getattr(import_module(f".{file}", __name__), name)


def _stated(config: ModelConfig) -> ModelConfig:
    if config.vocab_size is None or config.max_seq_len is None:
        raise ValueError("build_model needs vocab_size and max_seq_len: state both; a run takes them from its data")
    return config.resolved(config.vocab_size, config.max_seq_len)
