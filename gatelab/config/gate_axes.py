"""The axes of the gate space as tables: activations, sites, sources. `GateSpec` in gate.py is a point of it.

Adding an activation is one entry here, a source one entry here and one line in `nn.gate`, a site one entry here and one
line in `GatedAttention.forward`. Free of torch: the table's functions use tensor methods only.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal


@dataclass(frozen=True)
class Activation:
    """A gate's activation: how it is applied to float32 logits, its inverse at a starting value, its range."""

    formula: str
    range: str
    apply: Callable[[Any], Any]
    inverse: Callable[[float], float]


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _inverse_silu(value: float) -> float:
    # Increasing for z >= -1.27; bisection, since SiLU has no closed inverse.
    low, high = -1.278, max(value, 1.0) + 1.0
    if value < low / (1 + math.exp(-low)):
        raise ValueError("below the minimum of SiLU")
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle / (1 + math.exp(-middle)) < value else (low, middle)
    return low


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation("σ(z)", "(0, 1)", lambda z: z.sigmoid(), _logit),
    "ns_sigmoid": Activation("½ + ½σ(z)", "(½, 1)", lambda z: 0.5 + 0.5 * z.sigmoid(), lambda v: _logit(2 * v - 1)),
    "two_sigmoid": Activation("2σ(z)", "(0, 2)", lambda z: 2 * z.sigmoid(), lambda v: _logit(v / 2)),
    "silu": Activation("z σ(z)", "(−0.28, ∞)", lambda z: z * z.sigmoid(), _inverse_silu),
    "identity": Activation("z", "(−∞, ∞)", lambda z: z, lambda v: v),
    "softplus": Activation(
        "ln(1 + eᶻ)", "(0, ∞)", lambda z: z.logaddexp(z.new_zeros(())), lambda v: math.log(math.expm1(v))
    ),
    "tanh": Activation("tanh z", "(−1, 1)", lambda z: z.tanh(), math.atanh),
}


@dataclass(frozen=True)
class Site:
    """Where a gate acts. `heads` is H, G or 1, `width` K or D: the shape of what is gated. `side` says whose token the
    gate belongs to: the query's, or the key's (which is what a cache keeps)."""

    paper: str
    what: str
    tensor: str
    heads: Literal["H", "G", "1"]
    width: Literal["K", "D"]
    side: Literal["query", "key"]
    granularities: tuple[str, ...] = ("elementwise", "headwise")


SITES: dict[str, Site] = {
    "sdpa": Site("G1", "the attention output of each query head, before W_O", "y", "H", "K", "query"),
    "value": Site("G2", "the values of each key/value head", "v", "G", "K", "key"),
    "key": Site("G3", "the keys of each key/value head, after q/k-norm, before RoPE", "k", "G", "K", "key"),
    "query": Site("G4", "the queries of each query head, after q/k-norm, before RoPE", "q", "H", "K", "query"),
    "out": Site("G5", "the layer's output, after W_O", "W_O y", "1", "D", "query", ("elementwise",)),
    "scores": Site(
        "-", "the attention weights or logits of each query head, by key", "P", "H", "K", "key", ("headwise",)
    ),
}

# source -> (what the logits are a linear map of, the sites where it exists)
SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "hidden": ("x, the attention input after the pre-norm, of the token that is gated", tuple(SITES)),
    "static": ("nothing: a learned constant", tuple(SITES)),
    "value": ("all values of the token that is gated", ("sdpa", "value")),
    "output": ("the attention output itself, all heads", ("sdpa",)),
    "hybrid": ("x and the attention output, added", ("sdpa",)),
    "lse": ("the log-sum-exp of the query's logits, plus a learned constant", ("sdpa",)),
    "head_slice": ("the head's own slice of x, d/H channels", ("sdpa", "value", "key", "query", "scores")),
    "first": ("the first k channels of x, written first:k or first:1/n", tuple(SITES)),
}


def resolve_share(value: int | str, of: int) -> int:
    """A number of channels: itself, or a share such as '1/16' of `of` channels, one at least."""
    return int(value) if str(value).isdigit() else max(1, int(Fraction(str(value)) * of))


def checked_share(word: str, value: int | str) -> int | str:
    """A number of channels, or a share of them, as it is kept.

    Raises:
        ValueError: for anything else, naming `word`.
    """
    text = str(value)
    try:
        number = Fraction(text)
    except (ValueError, ZeroDivisionError):
        number = Fraction(0)
    if re.fullmatch(r"\d{1,6}", text) and number > 0:
        return int(text)
    if re.fullmatch(r"\d{1,4}/\d{1,4}", text) and 0 < number < 1:
        return text
    raise ValueError(f"{word!r}: expected a number of channels from 1, or a share of them such as 1/16")
