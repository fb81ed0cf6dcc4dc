"""GateSpec: one point of the gate space, as a value that prints as a slug and parses back.

    sdpa-headwise      value-elementwise-shared      sdpa-elementwise-silu-add      sdpa-headwise-first:12-init=0.5

The axes are the tables of gate_axes.py; what cannot be combined is refused by the table of gate_refusals.py.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator, model_serializer, model_validator

from .base import Config, nearest, one_of, validate
from .gate_axes import ACTIVATIONS, SITES, SOURCES, Activation, Site, checked_share, resolve_share
from .gate_refusals import REFUSALS
from .presets import PRESETS

__all__ = ["ACTIVATIONS", "REFUSALS", "SITES", "SOURCES", "Activation", "GateShape", "GateSpec", "Site", "parse_gates"]


_WORDS = {
    "granularity": ("elementwise", "headwise"),
    "sharing": ("specific", "shared"),
    "form": ("mul", "add", "forget"),
    "activation": tuple(ACTIVATIONS),
    "source": tuple(s for s in SOURCES if s != "first"),
    "bias": ("bias",),
}
_NUMBERS = ("rank", "mlp", "init", "around")


@dataclass(frozen=True)
class GateShape:
    """Heads and channels of the logits, and channels of what they are read from."""

    heads: int
    width: int
    d_in: int


class GateSpec(Config):
    """One gate: `y ⊙ act(z)` (form `mul`) or `y + act(z)` (form `add`) at a site of the attention layer, z = source W_g.

    `granularity` headwise has one score a head, elementwise one a channel. `sharing` shared averages the scores over
    the heads and keeps the parameters (the paper's row 12). `form` forget, at the scores alone, adds Σ ln act(z) of the
    tokens after the key, up to the query, to a logit (Forgetting Transformer, arXiv 2503.02130). `source`: see
    `SOURCES`. `rank` r factors W_g into d×r and r×…; `mlp` n puts a hidden layer of n ReLU channels, with bias, before
    it; both are numbers, or a share of the source's width such as 1/16. `init` is `random` (the layer's initialisation)
    or the value at which the gate starts, with zero weights; `around` the value around which it starts, with random
    weights. Either needs a bias unless its logit is zero. Source: arXiv 2505.06708, section 2.2.
    """

    site: str
    granularity: Literal["elementwise", "headwise"]
    sharing: Literal["specific", "shared"] = "specific"
    form: Literal["mul", "add", "forget"] = "mul"
    activation: str = "sigmoid"
    source: str = "hidden"
    rank: int | str | None = None
    mlp: int | str | None = None
    bias: bool = False
    init: Literal["random"] | float = "random"
    around: float | None = None

    @field_validator("site")
    @classmethod
    def _there(cls, name: str) -> str:
        if name not in SITES:
            raise ValueError(f"{name!r}: {one_of(name, SITES)}")
        return name

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"{name!r}: {one_of(name, ACTIVATIONS)}")
        return name

    @field_validator("source")
    @classmethod
    def _exists(cls, name: str) -> str:
        word, colon, channels = name.partition(":")
        if word not in SOURCES or (word == "first") != bool(colon):
            raise ValueError(f"{name!r}: {one_of(name, [*_WORDS['source'], 'first:<channels>'])}")
        if colon:
            checked_share(name, channels)
        return name

    @field_validator("rank", "mlp")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        return value if value is None else checked_share(f"{value}", value)

    @model_validator(mode="after")
    def _possible(self) -> "GateSpec":
        for is_nonsense, sentence in REFUSALS.values():
            if is_nonsense(self):
                sources = ", ".join(name for name, (_, sites) in SOURCES.items() if self.site in sites)
                why = sentence.format(spec=self, site=SITES[self.site], source=self.source_kind, sources=sources)
                raise ValueError(f"gate {self.slug} is impossible: {why}")
        start = self.start_logit  # refuses a value outside of the activation's range
        if start not in (None, 0.0) and self.has_projection and not self.bias:
            word = f"init={self.init}" if self.around is None else f"around={self.around}"
            raise ValueError(f"{word} needs a bias to start from: add the word 'bias'")
        return self

    @property
    def source_kind(self) -> str:
        """The source without its number of channels."""
        return self.source.partition(":")[0]

    @property
    def has_projection(self) -> bool:
        """Whether the logits are a map of something; a static gate and one on the log-sum-exp have a constant alone."""
        return self.source not in ("static", "lse")

    @property
    def start_logit(self) -> float | None:
        """The logit at which the spec says the gate starts, or around which; None when it says nothing.

        Raises:
            ValueError: for a value that the activation does not take.
        """
        value = self.init if self.around is None else self.around
        if value == "random":
            return None
        try:
            logit = ACTIVATIONS[self.activation].inverse(value)
        except (ValueError, ZeroDivisionError, OverflowError):
            logit = math.nan
        if not math.isfinite(logit):
            word, allowed = "init" if self.around is None else "around", ACTIVATIONS[self.activation].range
            raise ValueError(f"{word}={value} is not a value of {self.activation}: its range is {allowed}")
        return logit

    def shape(self, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int) -> GateShape:
        """What the gate's logits and its source measure in a layer of these widths.

        Raises:
            ValueError: when the source does not fit: more channels than there are, heads that do not divide d_model.
        """
        site = SITES[self.site]
        heads = {"H": n_heads, "G": n_kv_heads, "1": 1}[site.heads]
        width = {"K": head_dim, "D": d_model}[site.width] if self.granularity == "elementwise" else 1
        kind = self.source_kind
        if kind == "head_slice" and d_model % heads:
            raise ValueError(f"gate {self.slug}: d_model={d_model} does not divide into {heads} slices, one a head")
        if kind == "first":
            d_in = resolve_share(self.source.partition(":")[2], d_model)
            if d_in > d_model:
                raise ValueError(
                    f"gate {self.slug} reads {d_in} channels, and d_model={d_model} has no more; take fewer"
                )
        else:
            d_in = {
                "hidden": d_model,
                "value": n_kv_heads * head_dim,
                "output": n_heads * head_dim,
                "hybrid": d_model + n_heads * head_dim,
                "head_slice": d_model // heads,
            }.get(kind, 0)
        return GateShape(heads, width, d_in)

    def parameter_shapes(
        self, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int
    ) -> dict[str, tuple[int, ...]]:
        """Name and shape of the gate's parameters in a layer of these widths."""
        s = self.shape(d_model, n_heads, n_kv_heads, head_dim)
        if not self.has_projection:
            return {"constant_HK": (s.heads, s.width)}
        shapes, d_in = {}, s.d_in
        each = (s.heads,) if self.source == "head_slice" else ()
        inner = self.mlp if self.rank is None else self.rank
        if inner is not None:
            d_in = resolve_share(inner, s.d_in)
            shapes["g_down.weight"] = (*each, d_in, s.d_in)
            if self.mlp is not None:
                shapes["g_down.bias"] = (*each, d_in)
        d_out = s.width if each else s.heads * s.width
        shapes["g_proj.weight"] = (*each, d_out, d_in)
        return shapes | ({"g_proj.bias": (*each, d_out)} if self.bias else {})

    @classmethod
    def parse(cls, slug: str) -> "GateSpec":
        """The gate that a slug, or the name of a preset that is one gate, stands for.

        Raises:
            ValueError: naming the word that is wrong, the words that are allowed and the nearest one.
        """
        if not isinstance(slug, str) or slug == "none" or "+" in slug:
            raise ValueError(
                f"gate {slug!r}: expected the slug of one gate, such as sdpa-headwise; none, or several joined by '+', are "
                "for a layer's or a model's `gate`"
            )
        if slug in PRESETS:
            slug = PRESETS[slug].gate_alone(slug)
        # A word begins with a letter: the minus of init=-0.5 and of init=1e-05 separates nothing.
        site, *words = re.split(r"-(?=[A-Za-z])", slug)
        if site not in SITES:
            is_spelled = any(w in words for w in _WORDS["granularity"])  # then it is no slip of a preset's name
            hint = _respelled(slug) or nearest(site, [*SITES, "none"])
            hint = hint or ("" if is_spelled else nearest(slug, list(PRESETS)))
            raise ValueError(
                f"gate {slug!r}: no site {site!r}; expected one of {', '.join(SITES)}, or a preset of `gatelab gates`{hint}"
            )
        given: dict[str, Any] = {"site": site}
        said: dict[str, str] = {}
        for word in words:
            axis, value = _axis(slug, word)
            if axis in said:
                came = (
                    f"{word!r} came twice" if said[axis] == word else f"{said[axis]!r} and {word!r} are both its {axis}"
                )
                raise ValueError(f"gate {slug!r}: {came}; keep one")
            given[axis], said[axis] = value, word
        if "granularity" not in given:
            choices = " or ".join(f"{site}-{g}" for g in SITES[site].granularities)
            raise ValueError(f"gate {slug!r}: say the granularity, {choices}")
        return validate(cls, given)

    @property
    def slug(self) -> str:
        """The short name; `GateSpec.parse(spec.slug) == spec`."""
        words = [self.site, self.granularity]
        for axis in ("sharing", "activation", "form", "source"):
            value = getattr(self, axis)
            if value != type(self).model_fields[axis].default:
                words.append(value)
        words += [f"{axis}={value}" for axis in ("rank", "mlp") if (value := getattr(self, axis)) is not None]
        if self.bias:
            words.append("bias")
        for axis, value in (("init", self.init), ("around", self.around)):
            if value not in ("random", None):
                # The shortest digits that give this very number back; without the plus, which joins gates.
                words.append(f"{axis}={value!r}".removesuffix(".0").replace("e+", "e"))
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


def _respelled(slug: str) -> str:
    """`; did you mean …?` where a slug was written with capitals or underlines, or nothing."""
    for text in (slug.lower(), slug.lower().replace("_", "-", 1), slug.lower().replace("_", "-")):
        if text != slug and text.partition("-")[0] in SITES:
            try:
                return f"; did you mean {GateSpec.parse(text).slug!r}?"
            except ValueError:
                continue
    return ""


def _axis(slug: str, word: str) -> tuple[str, Any]:
    """The axis and the value that one word of a slug states."""
    name, equals, text = word.partition("=")
    if equals and name in _NUMBERS:
        value: Any = text if name in ("rank", "mlp") else _number(text)
        if value is None:
            raise ValueError(f"gate {slug!r}: {word!r} is not {name}=<number>")
        return name, value
    if word.startswith("first:"):
        return "source", word
    axis = next((a for a, allowed in _WORDS.items() if word in allowed), None)
    if axis is None:
        allowed = [w for group in _WORDS.values() for w in group] + ["first:<channels>"]
        allowed += [f"{n}=<number>" for n in _NUMBERS]
        raise ValueError(f"gate {slug!r}: no word {word!r}; expected {', '.join(allowed)}{nearest(word, allowed)}")
    return axis, True if axis == "bias" else word


def _number(text: str) -> float | None:
    """The finite number that a text spells, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_gates(value: Any) -> Any:
    """`none`, one slug or preset, slugs joined by `+`, or a sequence of specs or slugs, as a tuple for GateSpec
    validation.

    Raises:
        ValueError: for anything else.
    """
    if value is None or value == "none" or value == "":
        return ()
    if isinstance(value, str):
        return tuple(slug.strip() for slug in value.split("+"))
    if isinstance(value, GateSpec):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            f"gate={value!r}: expected a slug such as sdpa-headwise, 'none', a GateSpec, or several of them"
        )
    return value
