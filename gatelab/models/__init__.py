"""Architectures, and `build_model`. `sizes` is free of torch and may be imported alone."""

from typing import TYPE_CHECKING

from ..config.model import ModelConfig

if TYPE_CHECKING:
    from .decoder import Decoder


def build_model(config: ModelConfig, *, seed: int = 0) -> "Decoder":
    """The model of a configuration, initialised by (seed, parameter name).

    Raises:
        ValueError: when vocab_size or max_seq_len is not stated: nothing here knows the data.
    """
    from .decoder import Decoder
    from .init import initialise

    if config.vocab_size is None or config.max_seq_len is None:
        raise ValueError("build_model needs vocab_size and max_seq_len; a run takes them from its data")
    resolved = config.resolved(config.vocab_size, config.max_seq_len)
    model = {"decoder": Decoder}[resolved.arch](resolved)
    initialise(model, resolved, seed)
    return model
