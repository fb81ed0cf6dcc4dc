"""Canonical: the weights of one gated attention layer by head, whatever layout they came in.

Query heads s·r … s·r + r − 1 share kv head s, with r = H / G; weights are [out, in]. Notable: what no tensor shows but
changes what the layer computes stays with the weights: the gate's activation, the convention of the q/k-norm gains, how
many channels turn. Rotary positions turn the first channels of a head in half-split pairs, as in every layout here, so no
row is moved for them. Granularity: arXiv 2505.06708, section 2.2.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...config.base import Config
from ...config.gate_axes import ACTIVATIONS

Granularity = Literal["elementwise", "headwise"]
Convention = Literal["w", "1+w"]
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Geometry(Config):
    """Widths of an attention layer in channels and heads. `rotary_dim` of a head's channels turn, the first ones; None: all
    of them, 0: none."""

    d_model: Annotated[int, Field(gt=0)]
    n_heads: Annotated[int, Field(gt=0)]
    n_kv_heads: Annotated[int, Field(gt=0)]
    head_dim: Annotated[int, Field(gt=0)]
    rotary_dim: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Geometry":
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}; take a divisor, as each kv head "
                "serves as many query heads"
            )
        if self.rotary_dim is not None and (self.rotary_dim > self.head_dim or self.rotary_dim % 2):
            raise ValueError(
                f"rotary_dim={self.rotary_dim} with head_dim={self.head_dim}: take an even number up to head_dim, or 0"
            )
        return self

    @property
    def is_full_rope(self) -> bool:
        """Whether every channel of a head turns."""
        return self.rotary_dim in (None, self.head_dim)


@dataclass(frozen=True)
class Gain:
    """What a normed head is multiplied by, [K]: the weight (`w`), or 1 + the weight in float32 (`1+w`, Qwen3-Next)."""

    weight_K: Tensor
    convention: Convention = "w"

    @property
    def factor_K(self) -> Tensor:
        """What the norm multiplies by, as its module computes it: in float32, or in float64 for weights of that type."""
        wide_K = self.weight_K.to(torch.promote_types(self.weight_K.dtype, torch.float32))
        return wide_K if self.convention == "w" else 1 + wide_K

    def to(self, convention: Convention, dtype: torch.dtype) -> "Gain":
        """The same gain in a convention: in `dtype` where it comes back from there bit for bit, else in float32.

        It multiplies by the very same numbers (`equals`) for 1+w → w always, and for w → 1+w where 1 + (w − 1) = w in
        float32, as between ½ and 2, and for most weights that were stored in 16 bits.
        """
        if convention == self.convention:
            return self
        step = 1 if convention == "w" else -1
        exact_K = self.weight_K.double() + step
        stored_K = exact_K.to(dtype)
        if torch.equal(stored_K.double(), exact_K) and torch.equal(exact_K - step, self.weight_K.double()):
            return Gain(stored_K, convention)
        return Gain(self.factor_K if convention == "w" else self.factor_K - 1, convention)

    def equals(self, other: "Gain") -> bool:
        """Whether both multiply by the same numbers, bit for bit."""
        return torch.equal(self.factor_K, other.factor_K)


@dataclass(frozen=True)
class Canonical:
    """Weights, biases and norm gains of one attention layer. `gate` has K rows a head elementwise, one headwise; None for no
    gate. q/k norms are both there or both None. Tensors may share memory with those that were read.

    Raises:
        ValueError: a tensor that does not fit the geometry; a gate bias without a gate; one norm of two; an activation
            that does not exist.
    """

    geometry: Geometry
    q_HKD: Tensor
    k_GKD: Tensor
    v_GKD: Tensor
    o_DHK: Tensor
    gate_HKD: Tensor | None = None
    q_bias_HK: Tensor | None = None
    k_bias_GK: Tensor | None = None
    v_bias_GK: Tensor | None = None
    o_bias_D: Tensor | None = None
    gate_bias_HK: Tensor | None = None
    q_norm: Gain | None = None
    k_norm: Gain | None = None
    activation: str = "sigmoid"

    def __post_init__(self) -> None:
        g = self.geometry
        heads, width = {"q": g.n_heads, "k": g.n_kv_heads, "v": g.n_kv_heads, "gate": g.n_heads}, self.gate_width
        for part, tensor in self.weights().items():
            _check(f"the weight of {part}", tensor, (heads[part], width if part == "gate" else g.head_dim, g.d_model))
        for part, tensor in self.biases().items():
            _check(f"the bias of {part}", tensor, (heads[part], width if part == "gate" else g.head_dim))
        _check("the weight of o", self.o_DHK, (g.d_model, g.n_heads, g.head_dim))
        _check("the bias of o", self.o_bias_D, (g.d_model,))
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            _check(f"the gain of {name}", None if norm is None else norm.weight_K, (g.head_dim,))
        if (self.q_norm is None) != (self.k_norm is None):
            raise ValueError("one of q_norm and k_norm is missing; give both, or neither")
        if self.gate_HKD is None and self.gate_bias_HK is not None:
            raise ValueError("a gate's bias without its weight; give both, or neither")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}: expected one of {', '.join(ACTIVATIONS)}")

    @property
    def granularity(self) -> Granularity | None:
        """By the gate's shape; None where there is no gate."""
        if self.gate_HKD is None:
            return None
        return "elementwise" if self.gate_HKD.shape[1] == self.geometry.head_dim else "headwise"

    @property
    def gate_width(self) -> int:
        """Rows of the gate a head: K or 1."""
        return self.geometry.head_dim if self.granularity == "elementwise" else 1

    def weights(self) -> dict[str, Tensor]:
        """The projections of the layer's input by part, [heads, rows, D]; the gate only where there is one."""
        parts = {"q": self.q_HKD, "k": self.k_GKD, "v": self.v_GKD, "gate": self.gate_HKD}
        return {part: t for part, t in parts.items() if t is not None}

    def biases(self) -> dict[str, Tensor]:
        """Their biases by part, [heads, rows], those that are there; without that of o."""
        parts = {"q": self.q_bias_HK, "k": self.k_bias_GK, "v": self.v_bias_GK, "gate": self.gate_bias_HK}
        return {part: t for part, t in parts.items() if t is not None}

    def regrained(self, granularity: Granularity) -> "Canonical":
        """The same layer with a gate of another granularity: headwise rows repeated, or K equal rows of a head made one.

        Training unties repeated rows, so the two are the same function and not the same parametrisation.

        Raises:
            ValueError: no gate; rows of a head that differ in a bit, naming the head.
        """
        if self.granularity is None:
            raise ValueError(f"there is no gate to be made {granularity}; take a layout without one")
        if granularity == self.granularity:
            return self
        if granularity == "elementwise":
            return replace(
                self, gate_HKD=_repeated(self.gate_HKD, self), gate_bias_HK=_repeated(self.gate_bias_HK, self)
            )
        for what, tensor in (("weight", self.gate_HKD), ("bias", self.gate_bias_HK)):
            if tensor is None:
                continue
            bits = tensor.view(_BITS[tensor.element_size()])  # as 0 and -0 are equal numbers
            differs_H = (bits != bits[:, :1]).flatten(1).any(1)
            if differs_H.any():
                head = int(differs_H.nonzero()[0])
                raise ValueError(
                    f"an elementwise gate cannot be made headwise: the {what} rows of head {head} differ; take a layout with "
                    "elementwise gates"
                )
        bias_H1 = None if self.gate_bias_HK is None else self.gate_bias_HK[:, :1]
        return replace(self, gate_HKD=self.gate_HKD[:, :1], gate_bias_HK=bias_H1)


def _repeated(tensor: Tensor | None, canonical: Canonical) -> Tensor | None:
    return None if tensor is None else tensor.repeat_interleave(canonical.geometry.head_dim, dim=1)


def _check(what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(
            f"{what} of shape {tuple(tensor.shape)}: expected {shape}; split the heads before, or fix the geometry"
        )
