"""The probes on transformers models: `observe` is to them what `capture` is to Gatelab's own."""

from .interpose import interposed
from .observe import Observed, Unobserved, carries_over, observe, read_in_stretches

__all__ = ["Observed", "Unobserved", "carries_over", "interposed", "observe", "read_in_stretches"]
