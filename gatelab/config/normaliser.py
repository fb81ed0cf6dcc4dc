"""Normalisers: how a row of attention logits becomes weights; the softmax and its rivals, one class each.

Notable: a class carries its own mathematics in tensor methods, so this file is free of torch, and one class with its
line in `NORMALISERS` is all that a new normaliser needs: the op, the layers, the parameter counts and the tests read it
from there. In the formulas x is a row's logits (−∞ where a key is hidden), p their softmax, and s the logit of a slot:
one more column of the softmax, without a value.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field

from .base import Config

Tensor = Any  # configurations are read where torch is not installed


@dataclass(frozen=True)
class Heads:
    """The attention layer that a normaliser serves. `layer` counts from 0; `max_seq_len` None is: not known."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    layer: int = 0
    max_seq_len: int | None = None


@dataclass(frozen=True)
class Learned:
    """A parameter: its shape, and its start, constant `init` or normal of deviation `std` around it."""

    shape: tuple[int, ...]
    init: float
    std: float = 0.0


class Normaliser(Config):
    """The softmax over the keys and, where there is one, the slot; a rival overrides what it does otherwise.

    `is_softmax` says that the weights are p · σ(lse − s), lse the log-sum-exp of the row, which fused kernels compute;
    any other kind needs its whole matrix. `has_slot`: something takes mass beside the keys. `may_differ`: what is learned may
    differ between the sequences of a batch, with one more axis in front.
    """

    formula: ClassVar[str]
    source: ClassVar[str]
    is_softmax: ClassVar[bool] = True
    may_differ: ClassVar[bool] = False
    has_slot: ClassVar[bool] = False

    def check(self, n_heads: int, n_kv_heads: int) -> None:
        """Refuse heads that the normaliser cannot serve.

        Raises:
            ValueError: saying which heads it takes.
        """

    def learned(self, heads: Heads) -> dict[str, Learned]:
        """The parameters of one layer, by name."""
        return {}

    def slot_logits(self, q_BTHK: Tensor, learned: dict[str, Tensor]) -> Tensor | None:
        """s in float32 (float64 stays), broadcastable to [B, H, T, 1]; None without a slot."""
        return None

    def weights(
        self, logits_BHTS: Tensor, slot_BHT1: Tensor | None, learned: dict[str, Tensor], heads: Heads
    ) -> Tensor:
        """Weights of the keys, [B, H, T, S]; finite in value and gradient when a row has at least one key to see."""
        weights_BHTS = logits_BHTS.softmax(dim=-1)
        if slot_BHT1 is None:
            return weights_BHTS
        # eˣ / (eˢ + Σ eˣ): a slot is a headwise gate σ(lse − s) on the plain softmax.
        return weights_BHTS * (logits_BHTS.logsumexp(dim=-1, keepdim=True) - slot_BHT1).sigmoid()

    def finish(self, y_BTHK: Tensor, learned: dict[str, Tensor], heads: Heads) -> Tensor:
        """What follows the weighted sum of the values and precedes the gate, in y's shape and type."""
        return y_BTHK


class Softmax(Normaliser):
    """The ordinary softmax."""

    formula = "eˣ / Σ eˣ"
    source = "arXiv 1706.03762"

    kind: Literal["softmax"] = "softmax"


class SinkLogit(Normaliser):
    """A learned logit a head in the softmax's denominator, with no value (gpt-oss).

    Equal to a headwise gate σ(lse − s) on the ordinary softmax's output; `init` is the logit's start. A control here.
    """

    formula = "eˣ / (eˢ + Σ eˣ), s learned a head"
    source = "gpt-oss"
    has_slot = True
    may_differ = True

    kind: Literal["sink-logit"] = "sink-logit"
    init: float = 0.0

    def learned(self, heads: Heads) -> dict[str, Learned]:
        return {"sink_logit_H": Learned((heads.n_heads,), self.init)}

    def slot_logits(self, q_BTHK: Tensor, learned: dict[str, Tensor]) -> Tensor | None:
        logit_H = _wide(learned["sink_logit_H"])  # or one a sequence, [B, H]
        return logit_H.view(-1, logit_H.shape[-1], 1, 1)


class OffByOne(Normaliser):
    """Softmax with one more in the denominator: a slot whose logit is 0 (softmax-1)."""

    formula = "eˣ / (1 + Σ eˣ)"
    source = "softmax-1 (Evan Miller, Attention Is Off By One, 2023)"
    has_slot = True

    kind: Literal["off-by-one"] = "off-by-one"

    def slot_logits(self, q_BTHK: Tensor, learned: dict[str, Tensor]) -> Tensor | None:
        return _wide(q_BTHK).new_zeros(1, 1, 1, 1)


class KeyBias(Normaliser):
    """One learned key a kv head that every query sees and that has no value: a slot with a logit a query.

    The key has no position and is not rotated, while queries are: under RoPE its logit depends on where a query stands,
    not only on what it asks. So with rope it does not go together with documents that are packed into one sequence.
    """

    formula = "eˣ / (eˢ + Σ eˣ), s = q·k*/√K, k* learned"
    source = "arXiv 2410.10781"
    has_slot = True
    may_differ = True

    kind: Literal["key-bias"] = "key-bias"

    def learned(self, heads: Heads) -> dict[str, Learned]:
        return {"key_bias_GK": Learned((heads.n_kv_heads, heads.head_dim), 0.0, std=0.02)}

    def slot_logits(self, q_BTHK: Tensor, learned: dict[str, Tensor]) -> Tensor | None:
        H, K = q_BTHK.shape[2:]
        key_GK = _wide(learned["key_bias_GK"])  # or one a sequence, [B, G, K]
        key_B1HK = key_GK.repeat_interleave(H // key_GK.shape[-2], dim=-2).view(-1, 1, H, K)
        return ((_wide(q_BTHK) * key_B1HK).sum(dim=-1, keepdim=True) / math.sqrt(K)).transpose(1, 2)


class Clipped(Normaliser):
    """Softmax stretched to [γ, ζ] and cut to [0, 1], so that a weight of exactly 0 takes finite logits.

    γ None is −alpha / max_seq_len.
    """

    formula = "clip((ζ − γ) p + γ, 0, 1)"
    source = "arXiv 2306.12929"
    is_softmax = False

    kind: Literal["clipped"] = "clipped"
    # Above 0, a hidden key would get a weight.
    gamma: Annotated[float, Field(le=0)] | None = None
    zeta: Annotated[float, Field(ge=1)] = 1.0
    alpha: Annotated[float, Field(gt=0)] = 4.0

    def weights(
        self, logits_BHTS: Tensor, slot_BHT1: Tensor | None, learned: dict[str, Tensor], heads: Heads
    ) -> Tensor:
        if self.gamma is None and heads.max_seq_len is None:
            raise ValueError(
                "clipped: gamma is −alpha / max_seq_len, and max_seq_len is not known; state gamma, or give "
                "heads with max_seq_len"
            )
        gamma = -self.alpha / heads.max_seq_len if self.gamma is None else self.gamma
        return ((self.zeta - gamma) * logits_BHTS.softmax(dim=-1) + gamma).clamp(0, 1)


class Softpick(Normaliser):
    """Rectified softmax: weights that may be 0 and need not sum to one.

    Logits below 0 give no weight and count in the denominator; hidden keys do not count.
    """

    formula = "relu(eˣ − 1) / (Σ |eˣ − 1| + 10⁻⁶)"
    source = "arXiv 2504.20966"
    is_softmax = False

    kind: Literal["softpick"] = "softpick"

    def weights(
        self, logits_BHTS: Tensor, slot_BHT1: Tensor | None, learned: dict[str, Tensor], heads: Heads
    ) -> Tensor:
        # A hidden key counts as x = 0, whose |eˣ − 1| is 0.
        x_BHTS = logits_BHTS.masked_fill(logits_BHTS.isneginf(), 0.0)
        top_BHT1 = x_BHTS.detach().relu().amax(dim=-1, keepdim=True)
        # |eˣ − 1| = (1 − e^−|x|) e^max(x, 0): in this form nothing overflows and small logits keep their digits.
        size_BHTS = -(-x_BHTS.abs()).expm1() * (x_BHTS.relu() - top_BHT1).exp()
        return size_BHTS * (x_BHTS > 0) / (size_BHTS.sum(dim=-1, keepdim=True) + 1e-6 * (-top_BHT1).exp())


class Sigmoid(Normaliser):
    """Every key judged by itself: unnormalised weights in (0, 1). n is the number of keys that the query may see."""

    formula = "σ(x − ln n + bias)"
    source = "arXiv 2409.04431"
    is_softmax = False

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = 0.0

    def weights(
        self, logits_BHTS: Tensor, slot_BHT1: Tensor | None, learned: dict[str, Tensor], heads: Heads
    ) -> Tensor:
        n_BHT1 = (~logits_BHTS.isneginf()).sum(dim=-1, keepdim=True).to(logits_BHTS.dtype)
        return (logits_BHTS - n_BHT1.log() + self.bias).sigmoid()


class Differential(Normaliser):
    """The difference of two softmaxes: heads h and h + H/2 are a pair, and both weigh their own values by P_h − λ P_{h+H/2}.

    λ = exp(λq1·λk1) − exp(λq2·λk2) + λ₀ with λ₀ = 0.8 − 0.6 e^(−0.3 layer). The pair's 2K channels are then divided by
    their root mean square, times a learned gain and 1 − λ₀.
    """

    formula = "p₁ − λ p₂, then RMSNorm · (1 − λ₀) over the pair"
    source = "arXiv 2410.05258"
    is_softmax = False

    kind: Literal["differential"] = "differential"

    def check(self, n_heads: int, n_kv_heads: int) -> None:
        if n_heads % 2 or n_kv_heads % 2:
            raise ValueError(
                f"differential: n_heads={n_heads} and n_kv_heads={n_kv_heads}, and heads come in pairs; take even numbers "
                "of both"
            )

    def learned(self, heads: Heads) -> dict[str, Learned]:
        K = heads.head_dim
        vectors = {f"lambda_{name}_K": Learned((K,), 0.0, std=0.1) for name in ("q1", "k1", "q2", "k2")}
        return vectors | {"gain_2K": Learned((2 * K,), 1.0)}

    def weights(
        self, logits_BHTS: Tensor, slot_BHT1: Tensor | None, learned: dict[str, Tensor], heads: Heads
    ) -> Tensor:
        q1, k1, q2, k2 = (_wide(learned[f"lambda_{name}_K"]) for name in ("q1", "k1", "q2", "k2"))
        lambda_ = (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + _lambda_start(heads.layer)
        first, second = logits_BHTS.softmax(dim=-1).chunk(2, dim=1)
        return (first - lambda_ * second).repeat(1, 2, 1, 1)

    def finish(self, y_BTHK: Tensor, learned: dict[str, Tensor], heads: Heads) -> Tensor:
        pairs = _wide(y_BTHK).unflatten(2, (2, heads.n_heads // 2))  # [B, T, 2, H/2, K]
        gain = _wide(learned["gain_2K"]).view(2, 1, heads.head_dim)
        # The mean square over the pair's 2K channels; 10⁻⁵ as in the paper's code.
        normed = pairs * (pairs.square().mean(dim=(2, 4), keepdim=True) + 1e-5).rsqrt()
        return (normed * gain * (1.0 - _lambda_start(heads.layer))).flatten(2, 3).to(y_BTHK.dtype)


def _lambda_start(layer: int) -> float:
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def _wide(values: Tensor) -> Tensor:
    """In float32; float64 stays."""
    return values.float() if values.element_size() < 4 else values


NORMALISERS: dict[str, type[Normaliser]] = {
    "softmax": Softmax,
    "sink-logit": SinkLogit,
    "off-by-one": OffByOne,
    "key-bias": KeyBias,
    "clipped": Clipped,
    "softpick": Softpick,
    "sigmoid": Sigmoid,
    "differential": Differential,
}

# What a configuration holds: one of the table, told apart by its kind.
Normalisers = Annotated[Union[tuple(NORMALISERS.values())], Field(discriminator="kind")]  # noqa: UP007  (the table is the union)
