"""Continuing what a model read: greedy or sampled, one prompt or many, at once or token by token, with all keys or few."""

from .continuation import generate, generate_target
from .keep import Keep, new_cache
from .prompts import continuations, stream
from .sampling import Sampling
from .streaming import streaming_losses

__all__ = [
    "Keep",
    "Sampling",
    "continuations",
    "generate",
    "generate_target",
    "new_cache",
    "stream",
    "streaming_losses",
]
