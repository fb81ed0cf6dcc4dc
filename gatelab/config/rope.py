"""How rotary positions are stretched past the trained context: none, linear, NTK-aware, YaRN, Llama 3; plain Python floats.

A rotary encoding (arXiv 2104.09864) turns channel pair i of position t by t · theta^(−2i/R), R the channels that turn.
A scaling says what share of its plain frequency each pair keeps, and what cosines and sines are multiplied by:

    none       1                                                                        amplitude 1
    linear     1/factor                            (arXiv 2306.15595)                   amplitude 1
    ntk        factor^(−2i/(R−2))                  (NTK-aware, static)                  amplitude 1
    yarn       1 for fast pairs, 1/factor for slow, a ramp between (arXiv 2309.00071)   amplitude 0.1 ln(factor) + 1
    llama3     the same with a ramp in turns, not in pairs          (Llama 3.1)         amplitude 1

Notable: the shares multiply, so that `none` leaves every bit of the plain frequencies, and no factor overflows.
"""

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .base import Config

Factor = Annotated[float, Field(ge=1, description="the stretched context over the trained one")]
TrainedLength = Annotated[int, Field(gt=0, description="the context in tokens that the weights were trained with")]
Turns = Annotated[float, Field(gt=0)]


class Scaling(Config):
    """What every kind answers: the share that each pair keeps, the frequencies, the amplitude."""

    @abstractmethod
    def kept_shares(self, rotary_dim: int, theta: float) -> list[float]:
        """What each pair keeps of its plain frequency, rotary_dim / 2 values in [0, 1], the fastest pair first."""

    def frequencies(self, rotary_dim: int, theta: float) -> list[float]:
        """Radians a token by which each pair turns, rotary_dim / 2 values, the fastest pair first.

        Raises:
            ValueError: for an odd rotary_dim, a theta that is not above 0, and what the kind cannot stretch.
        """
        if rotary_dim < 2 or rotary_dim % 2:
            raise ValueError(f"rotary_dim={rotary_dim}: rope turns pairs of channels; take an even number above 0")
        if not theta > 0:
            raise ValueError(f"theta={theta}: the base of the frequencies is a number above 0, as in theta=10000")
        shares = self.kept_shares(rotary_dim, theta)
        return [theta ** (-i / rotary_dim) * s for i, s in zip(range(0, rotary_dim, 2), shares, strict=True)]

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by: logits of the turning channels grow by its square."""
        return 1.0

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """One sentence for all that is missing, since a kind alone is how one usually forgets it."""
        fields = {name: f for name, f in cls.model_fields.items() if f.is_required()}
        absent = [f"{n} ({f.description})" for n, f in fields.items() if isinstance(value, dict) and n not in value]
        if absent:
            kind = cls.model_fields["kind"].default
            raise ValueError(f"{kind} without {' and '.join(absent)}: state {'it' if len(absent) == 1 else 'both'}")
        return value


class Unscaled(Scaling):
    """The plain frequencies."""

    kind: Literal["none"] = "none"

    def kept_shares(self, rotary_dim: int, theta: float) -> list[float]:
        """1 for every pair."""
        return [1.0] * (rotary_dim // 2)


class LinearScaling(Scaling):
    """Position interpolation: all pairs turn `factor` times slower, so position factor · t reads as t did.

    Source: arXiv 2306.15595.
    """

    kind: Literal["linear"] = "linear"
    factor: Factor

    def kept_shares(self, rotary_dim: int, theta: float) -> list[float]:
        """1 / factor for every pair."""
        return [1 / self.factor] * (rotary_dim // 2)


class NTKScaling(Scaling):
    """NTK-aware: the base becomes theta · factor^(R/(R−2)), so the fastest pair keeps its speed and the slowest has 1/factor.

    The static form, the same at every length. Source: bloc97, 2023; derived in arXiv 2309.00071, section 3.1.
    """

    kind: Literal["ntk"] = "ntk"
    factor: Factor

    def kept_shares(self, rotary_dim: int, theta: float) -> list[float]:
        """factor^(−2i/(R−2)).

        Raises:
            ValueError: for one pair, which cannot be both the fastest and the slowest.
        """
        if rotary_dim == 2:
            raise ValueError(
                "rotary_dim=2 is one pair of channels, and ntk spreads the stretch over several; "
                "take more channels, or kind 'linear'"
            )
        return [self.factor ** (-i / (rotary_dim - 2)) for i in range(0, rotary_dim, 2)]


class YaRN(Scaling):
    """YaRN: pairs that turn more than `beta_fast` times within the trained context keep their speed, those that turn
    less than `beta_slow` times are slowed by `factor`, with a ramp between; cosines and sines are multiplied by
    `attention_factor` (None: 0.1 ln(factor) + 1).

    The ramp is that of the released code: linear in the pair's index, its ends rounded outwards to whole pairs, or with
    `truncate` False left where they fall (gpt-oss, whose configuration has this name for it).
    Source: arXiv 2309.00071, sections 3.2 to 3.4.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Factor
    original_seq_len: TrainedLength
    beta_fast: Turns = 32.0
    beta_slow: Turns = 1.0
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    truncate: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> "YaRN":
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"beta_fast={self.beta_fast:g} is not above beta_slow={self.beta_slow:g}: pairs with more turns than "
                "beta_fast are kept and those with fewer than beta_slow are slowed; take 32 and 1"
            )
        return self

    def kept_shares(self, rotary_dim: int, theta: float) -> list[float]:
        """1 up to the ramp, 1 / factor after it.

        Raises:
            ValueError: for theta of 1 or less, whose pairs do not grow slower with their index.
        """
        if theta <= 1:
            raise ValueError(f"theta={theta:g}: yarn needs pairs that turn at falling speeds; take a base above 1")

        def pair_with(turns: float) -> float:
            return rotary_dim * math.log(self.original_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first, last = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first = max(first, 0)
        # The thousandth is the released code's: a ramp of no length is a step.
        last = max(min(last, rotary_dim - 1), first + 1e-3)
        ramp = [min(max((i - first) / (last - first), 0.0), 1.0) for i in range(rotary_dim // 2)]
        return [1 - slowed * (1 - 1 / self.factor) for slowed in ramp]

    @property
    def amplitude(self) -> float:
        """`attention_factor`, or 0.1 ln(factor) + 1."""
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor


class Llama3Scaling(Scaling):
    """Llama 3.1: pairs that turn more than `high_freq_factor` times within the trained context keep their speed, those that
    turn less than `low_freq_factor` times are slowed by `factor`, and between the share grows linearly with the turns.

    Source: the released code of Llama 3.1, whose names these are.
    """

    kind: Literal["llama3"] = "llama3"
    factor: Factor
    original_seq_len: TrainedLength
    low_freq_factor: Turns = 1.0
    high_freq_factor: Turns = 4.0

    @model_validator(mode="after")
    def _ordered(self) -> "Llama3Scaling":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor:g} is not above low_freq_factor={self.low_freq_factor:g}: pairs "
                "with more turns than the first are kept and those with fewer than the second are slowed; take 4 and 1"
            )
        return self

    def kept_shares(self, rotary_dim: int, theta: float) -> list[float]:
        """1 for fast pairs, 1 / factor for slow ones, between them by their turns in the trained context."""

        def share(pair: int) -> float:
            turns = self.original_seq_len * theta ** (-2 * pair / rotary_dim) / (2 * math.pi)
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = min(max(kept, 0.0), 1.0)
            return 1 - (1 - kept) * (1 - 1 / self.factor)

        return [share(pair) for pair in range(rotary_dim // 2)]


def _kind_of_word(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


RopeScaling = Annotated[
    Unscaled | LinearScaling | NTKScaling | YaRN | Llama3Scaling,
    Field(discriminator="kind"),
    BeforeValidator(_kind_of_word),
]


def rotary_dim(head_dim: int, fraction: float) -> int:
    """How many channels of a head turn, the first ones: head_dim · fraction (Qwen3-Next 0.25; arXiv 2204.06745).

    Raises:
        ValueError: unless that is an even number from 2 to head_dim, naming a fraction that works.
    """
    if fraction == 1 and head_dim % 2:
        raise ValueError(f"head_dim={head_dim} is odd, and rope turns pairs of channels; take an even one")
    turning = round(head_dim * fraction) if 0 < fraction <= 1 else 0
    # A fraction that is written with six digits misses a whole number of channels by a little.
    if turning < 2 or turning % 2 or not math.isclose(turning, head_dim * fraction, rel_tol=1e-5):
        even = min(max(2 * round(head_dim * min(1, max(0, fraction)) / 2), 2), head_dim // 2 * 2)
        works = f"take rope_fraction={even / head_dim:g} for {even}" if even else "take a head_dim of 2 or more"
        raise ValueError(
            f"rope_fraction={fraction:g} of head_dim={head_dim} is {head_dim * fraction:g} channels, and rope turns an "
            f"even number from 2 to {head_dim}; {works}"
        )
    return turning
