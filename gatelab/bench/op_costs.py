"""What a shape of the op must cost: milliseconds by the measured rates, bytes of its tensors. Counted low."""

import torch

from ..config.gate import GateSpec
from .floors import Rates, attention_ms, gate_bytes
from .plan import OpsPlan
from .seen import Seen
from .timing import Timing


def op_ms(plan: OpsPlan, rates: Rates, row: Timing) -> float:
    """Attention, and the row's gate after it."""
    return ungated_ms(plan, rates, row.work) + gate_ms(plan, rates, row)


def own_op_ms(plan: OpsPlan, rates: Rates, row: Timing) -> float | None:
    """The same with `own_gate_ms`; None where that is."""
    own = own_gate_ms(plan, rates, row)
    return None if own is None else ungated_ms(plan, rates, row.work) + own


def ungated_ms(plan: OpsPlan, rates: Rates, work: str) -> float:
    """Attention, causal, of the pairs of a query and a key that it sees."""
    heads = {"H": plan.heads, "G": plan.kv_heads, "K": plan.head_dim}
    sizes = {"B": plan.batch, "T": plan.length, **heads, "itemsize": _itemsize(plan)}
    return attention_ms(rates, **sizes, work=work, pairs=Seen.of(plan).pairs)


def gate_ms(plan: OpsPlan, rates: Rates, row: Timing) -> float:
    """The row's gate alone, 0 without one: what the plain operation moves, or the candidate where it moves less. A pass that a
    candidate makes beside it is no part of a floor."""
    return _gate_ms(plan, rates, row, min(0, row.at.get("more_passes", 0)))


def own_gate_ms(plan: OpsPlan, rates: Rates, row: Timing) -> float | None:
    """The row's gate with the passes that its candidate makes beside the plain operation's; None where it makes none."""
    more = row.at.get("more_passes", 0)
    return _gate_ms(plan, rates, row, more) if more > 0 and "backward" in row.work else None


def logits_bytes(plan: OpsPlan, granularity: str) -> int:
    """Of one gate."""
    return _of_queries(plan) // (1 if granularity == "elementwise" else plan.head_dim)


def matrix_bytes(plan: OpsPlan) -> int:
    """Logits and weights of all heads in float32, and the gradient of the latter."""
    return 3 * 4 * plan.tokens * plan.length * plan.heads


def checked_gate_bytes(plan: OpsPlan) -> int:
    """What the contract of the gate alone holds in float64: its arguments, its output, and the gradients of all three."""
    return 6 * 8 * plan.tokens * plan.heads * plan.head_dim


def all_bytes(plan: OpsPlan) -> int:
    """What is there at once: the arguments of every gate, the gradients of one, a layer's weights with theirs, and a mask of what
    is not plain."""
    ungated = 2 * _of_queries(plan) * (plan.heads + plan.kv_heads) // plan.heads
    granularities = [GateSpec.parse(word).granularity for word in plan.gates if word != "none"]
    logits = sum(logits_bytes(plan, granularity) for granularity in granularities)
    weights = 2 * 4 * 12 * (plan.heads * plan.head_dim) ** 2
    mask = 0 if Seen.of(plan).is_plain else plan.length**2
    return (len(plan.gates) + 1) * ungated + logits + weights + mask


def _gate_ms(plan: OpsPlan, rates: Rates, row: Timing, more_passes: int) -> float:
    if row.gate == "none":
        return 0.0
    return rates.ms(gate_bytes(_of_queries(plan), row.at["granularity"], row.work, more_passes=more_passes), 0)


def _of_queries(plan: OpsPlan) -> int:
    return plan.tokens * plan.heads * plan.head_dim * _itemsize(plan)


def _itemsize(plan: OpsPlan) -> int:
    return getattr(torch, plan.dtype).itemsize
