"""The probes on transformers models: `observe` is to them what `capture` is to Gatelab's own."""

from .observe import Observed, Unobserved, observe

__all__ = ["Observed", "Unobserved", "observe"]
