"""Output maps: what is done to the attention output of each head besides a gate, without weights.

One entry of `OUTPUT_MAPS` adds one. Maps come before the gate, as in marin's models. Free of torch: tensor methods only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OutputMap:
    """`apply(y_BTHK, v_BTHK, eps)` in float32 or wider; v is the value of the query's own token, one a query head (None
    unless `needs_value`)."""

    formula: str
    source: str
    apply: Callable[[Any, Any, float], Any]
    needs_value: bool = False


def _rms(y_BTHK: Any, _v: Any, eps: float) -> Any:
    return y_BTHK * (y_BTHK.square().mean(-1, keepdim=True) + eps).rsqrt()


def _exclusive(y_BTHK: Any, v_BTHK: Any, eps: float) -> Any:
    share = (y_BTHK * v_BTHK).sum(-1, keepdim=True) / (v_BTHK.square().sum(-1, keepdim=True) + eps)
    return y_BTHK - share * v_BTHK


OUTPUT_MAPS: dict[str, OutputMap] = {
    "none": OutputMap("y", "-", lambda y, v, eps: y),
    "rms": OutputMap("y_h / rms(y_h)", "arXiv 2505.06708, Table 3 (there called GroupNorm)", _rms),
    "silu": OutputMap("SiLU(y)", "arXiv 2505.06708, Table 3", lambda y, v, eps: y * y.sigmoid()),
    "xsa": OutputMap("y − (y·v) v / v·v", "exclusive self-attention, arXiv 2603.09078", _exclusive, needs_value=True),
}
