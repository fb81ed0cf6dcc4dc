"""GateSpec: one point of the gate space, as a value that prints as a slug and parses back.

    sdpa-headwise      value-elementwise-shared      sdpa-elementwise-silu-add      sdpa-headwise-bias-init=0.9

An activation is one entry of `ACTIVATIONS`; a site is one name in `SITES` and one line in `GatedAttention.forward`.
This file is free of torch: the table's functions use tensor methods only.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator, model_serializer, model_validator

from .base import Config, nearest, validate


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

# site -> (the paper's name, what it multiplies, the granularities that make sense there)
SITES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "sdpa": ("G1", "the attention output of each query head, before W_O", ("elementwise", "headwise")),
    "value": ("G2", "the values of each key/value head", ("elementwise", "headwise")),
    "key": ("G3", "the keys of each key/value head, after q/k-norm, before RoPE", ("elementwise", "headwise")),
    "query": ("G4", "the queries of each query head, after q/k-norm, before RoPE", ("elementwise", "headwise")),
    "out": ("G5", "the layer's output, after W_O", ("elementwise",)),
}

_WORDS = {
    "granularity": ("elementwise", "headwise"),
    "sharing": ("specific", "shared"),
    "form": ("mul", "add"),
    "activation": tuple(ACTIVATIONS),
    "source": ("hidden", "static"),
    "bias": ("bias",),
}


class GateSpec(Config):
    """One gate: `y ⊙ act(x W_g)` (form `mul`) or `y + act(x W_g)` (form `add`) at a site of the attention layer.

    `granularity` headwise has one score a head, elementwise one a channel. `sharing` shared averages the scores over
    the heads and keeps the parameters (the paper's row 12). `source` hidden is the attention input after the pre-norm,
    at the position of the tensor that is gated; static is a learned constant (the paper's input-independent control).
    `init` is `random` (the layer's initialisation) or the value at which the gate starts, which needs a bias and
    starts with zero weights. Source: arXiv 2505.06708, section 2.2.
    """

    site: Literal["sdpa", "value", "key", "query", "out"]
    granularity: Literal["elementwise", "headwise"]
    sharing: Literal["specific", "shared"] = "specific"
    form: Literal["mul", "add"] = "mul"
    activation: str = "sigmoid"
    source: Literal["hidden", "static"] = "hidden"
    bias: bool = False
    init: Literal["random"] | float = "random"

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"{name!r}: expected one of {', '.join(ACTIVATIONS)}{nearest(name, list(ACTIVATIONS))}")
        return name

    @model_validator(mode="after")
    def _possible(self) -> "GateSpec":
        name, what, granularities = SITES[self.site]
        if self.granularity not in granularities:
            raise ValueError(
                f"gate {self.site}-{self.granularity} is impossible: site {self.site!r} ({name}) is {what}, which has "
                f"no heads; use {self.site}-{granularities[0]}"
            )
        if self.site == "out" and self.sharing == "shared":
            raise ValueError(
                "gate out-elementwise-shared is impossible: the layer's output has no heads to average over"
            )
        if self.source == "static" and self.bias:
            raise ValueError("a static gate is a bias already: leave out the word 'bias'")
        if self.init != "random":
            if self.source == "hidden" and not self.bias:
                raise ValueError(f"init={self.init} needs a bias to start from: add the word 'bias'")
            try:
                logit = ACTIVATIONS[self.activation].inverse(self.init)
            except (ValueError, ZeroDivisionError, OverflowError):
                logit = math.nan
            if not math.isfinite(logit):
                allowed = ACTIVATIONS[self.activation].range
                raise ValueError(f"init={self.init} is not a value of {self.activation}: its range is {allowed}")
        return self

    @classmethod
    def parse(cls, slug: str) -> "GateSpec":
        """The gate that a slug names.

        Raises:
            ValueError: naming the word that is wrong, the words that are allowed and the nearest one.
        """
        # A word begins with a letter: the minus of init=-0.5 and of init=1e-05 separates nothing.
        site, *words = re.split(r"-(?=[A-Za-z])", slug)
        if site not in SITES:
            raise ValueError(
                f"gate {slug!r}: no site {site!r}; expected one of {', '.join(SITES)}{nearest(site, [*SITES, 'none'])}"
            )
        given: dict[str, Any] = {"site": site}
        for word in words:
            if word.startswith("init="):
                given["init"] = _number(word.removeprefix("init="))
                if given["init"] is None:
                    raise ValueError(f"gate {slug!r}: {word!r} is not init=<number>")
                continue
            axis = next((a for a, allowed in _WORDS.items() if word in allowed), None)
            if axis is None:
                allowed = [w for group in _WORDS.values() for w in group] + ["init=<number>"]
                raise ValueError(
                    f"gate {slug!r}: no word {word!r}; expected {', '.join(allowed)}{nearest(word, allowed)}"
                )
            if axis in given:
                raise ValueError(f"gate {slug!r}: {given[axis]!r} and {word!r} are both a {axis}; keep one")
            given[axis] = True if axis == "bias" else word
        if "granularity" not in given:
            raise ValueError(f"gate {slug!r}: say the granularity, {site}-elementwise or {site}-headwise")
        return validate(cls, given)

    @property
    def slug(self) -> str:
        """The short name; `GateSpec.parse(spec.slug) == spec`."""
        words = [self.site, self.granularity]
        for axis in ("sharing", "activation", "form", "source"):
            value = getattr(self, axis)
            if value != type(self).model_fields[axis].default:
                words.append(value)
        if self.bias:
            words.append("bias")
        if self.init != "random":
            # The shortest digits that give this very number back; without the plus, which joins gates.
            words.append(f"init={self.init!r}".removesuffix(".0").replace("e+", "e"))
        return "-".join(words)

    def __str__(self) -> str:
        return self.slug

    @model_validator(mode="before")
    @classmethod
    def _from_slug(cls, value: Any) -> Any:
        if isinstance(value, str):
            return cls.parse(value).__dict__
        return value

    @model_serializer
    def _to_slug(self) -> str:
        return self.slug


def _number(text: str) -> float | None:
    """The finite number that a text spells, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_gates(value: Any) -> Any:
    """`none`, one slug, slugs joined by `+`, or a sequence of specs or slugs, as a tuple for GateSpec validation."""
    if value is None or value == "none" or value == "":
        return ()
    if isinstance(value, str):
        return tuple(value.split("+"))
    if isinstance(value, GateSpec):
        return (value,)
    return value
