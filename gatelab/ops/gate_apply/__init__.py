"""z = y ⊙ act(g) or y + act(g): the gate, given its logits."""

from .reference import apply_gate, gate_scores

__all__ = ["apply_gate", "gate_scores"]
