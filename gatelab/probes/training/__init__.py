"""Probes in anyone's training: `look` and `watching` for any loop, `ProbeCallback` for transformers' Trainer, gradient norms
by layer, and the step at which a sink emerges. `ProbeCallback` alone needs transformers, and is loaded on first use."""

from typing import Any

from ..watching import watching
from .emergence import emergence, emergence_rows
from .gradients import gradient_rows
from .lines import read_rows
from .look import look

__all__ = ["ProbeCallback", "emergence", "emergence_rows", "gradient_rows", "look", "read_rows", "watching"]


def __getattr__(name: str) -> Any:
    if name != "ProbeCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .callback import ProbeCallback

    return ProbeCallback
