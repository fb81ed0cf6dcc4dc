"""What an intervention is: a frozen value that is parsed from one word and prints as it.

    kind [@key or site] [=value] [:layers and heads] [~dose]        zero-value@first:l18h8,l19~0.5

Notable: `dose` is how much of an edit is done, 0 nothing and 1 all of it, so every kind has a dose–response curve; edits of
the text count tokens instead. A prefix makes a control: `other-` before a key or before heads takes others at random,
`like-` puts a random direction of the same norm in the place of the edit's effect.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import field_validator, model_validator
from torch import Tensor

from ...config.base import Config, nearest
from ...config.gate import SITES
from .anatomy import Anatomy

_NUMBER = r"(\d+(\.\d*)?|\.\d+)(e-?\d+)?"
_PLACE = r"l\d+(?:h\d+)?"
_KEY = re.compile(r"(other-)?(first|strongest|\d+)")
# What may stand behind `=`: its pattern, and the same in words.
_VALUES = {
    "factor": (rf"-?{_NUMBER}", "a number such as 0.5"),
    "score": (rf"open|-?{_NUMBER}", "a score such as 0.5, or open"),
    "id": (r"\d+", "a token's id"),
    "limit": (rf"q0?\.\d+|{_NUMBER}x", "a quantile of |x| such as q0.999, or a multiple of its median such as 100x"),
}


@dataclass(frozen=True)
class Kind:
    """One kind of edit: a clause that says what it does, and which parts its word has. Its dose is a share, or a count of
    tokens; `doses` are those of a curve unless others are asked for."""

    what: str
    at: Literal["", "key", "site"] = ""
    value: Literal["", "factor", "score", "id", "limit"] = ""
    where: Literal["", "layers", "heads"] = "heads"
    doses: tuple[float, ...] = (0.25, 0.5, 1.0)
    is_counted: bool = False


@dataclass
class Recording:
    """What an edit takes from another forward pass: gates' scores [B, T, H, K or 1] by (layer, site), norms' roots of the
    mean square [B, T, 1] by the module's name, or what makes attention patterns by (layer, name)."""

    gates: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[tuple[int, str], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What an edit needs besides its word: a seed for whatever is drawn, the keys that `strongest` means by (layer, head),
    and a recording."""

    seed: int = 0
    positions: Mapping[tuple[int, int], int] | None = None
    recorded: Recording | None = None


class Intervention(Config, ABC):
    """One edit of a forward pass; its classes are in the files beside this one.

    Raises:
        ValueError: for parts that its kind does not have, or lacks, in a sentence.
    """

    kind: str
    at: str | None = None
    value: str | None = None
    where: str = ""
    dose: float = 1.0
    is_like: bool = False

    kinds: ClassVar[dict[str, Kind]]
    has_like: ClassVar[bool] = False  # whether its control is a random direction

    @field_validator("value", mode="before")
    @classmethod
    def _shortest(cls, value: object) -> object:
        try:
            return digits(float(value))
        except (TypeError, ValueError):
            return value

    @model_validator(mode="after")
    def _possible(self) -> "Intervention":
        why = self._wrong_parts() or self._wrong_dose() or self._wrong_where()
        if why:
            raise ValueError(f"intervention {self.word!r}: {why}")
        return self

    @property
    def word(self) -> str:
        """The short name; `parse(intervention.word) == intervention`."""
        parts = [("", f"{'like-' * self.is_like}{self.kind}"), ("@", self.at), ("=", self.value), (":", self.where)]
        dose = "" if self.dose == 1 else f"~{digits(self.dose)}"
        return "".join(sign + text for sign, text in parts if text) + dose

    def __str__(self) -> str:
        return self.word

    @property
    def form(self) -> Kind:
        """The entry of its kind."""
        return self.kinds[self.kind]

    @property
    def needs(self) -> Literal["", "gates", "norms", "own gates", "pattern"]:
        """What has to be recorded in another pass beforehand: `gates` of another text or run, the rest of this very text."""
        return ""

    @property
    def places(self) -> tuple[tuple[int, int | None], ...]:
        """(layer, head) as named, head None for a whole layer; empty for everywhere."""
        found = re.findall(r"l(\d+)(?:h(\d+))?", self.where)
        return tuple((int(layer), int(head) if head else None) for layer, head in found)

    def at_dose(self, dose: float) -> "Intervention":
        """The same edit at another dose.

        Raises:
            ValueError: for a dose that its kind does not have.
        """
        return type(self)(**{**self.__dict__, "dose": dose})

    def acts_in(self, layer: int) -> bool:
        """Whether anything in a layer is edited."""
        return not self.places or any(named == layer for named, _ in self.places)

    def heads(self, layer: int, n_heads: int, seed: int) -> list[bool]:
        """Which heads of a layer are edited.

        Raises:
            ValueError: for a head beyond the layer's, or fewer other heads than were named.
        """
        named = {head for place, head in self.places if place == layer}
        if not self.places or None in named:
            return [True] * n_heads
        if named and max(named) >= n_heads:
            raise ValueError(f"{self.word}: layer {layer} has heads 0 to {n_heads - 1}, and no head {max(named)}")
        if self.where.startswith("other-") and named:
            rest = [h for h in range(n_heads) if h not in named]
            if len(rest) < len(named):
                raise ValueError(
                    f"{self.word}: layer {layer} has {len(rest)} heads besides the {len(named)} named; name fewer, or "
                    f"the whole layer as l{layer}"
                )
            named = set(_generator(seed, layer).choice(rest, len(named), replace=False).tolist())
        return [h in named for h in range(n_heads)]

    @abstractmethod
    def control(self) -> "Intervention":
        """The edit of the same size elsewhere that this one is compared with.

        Raises:
            ValueError: of a control.
        """

    @abstractmethod
    def applied(self, anatomy: Anatomy, given: Given) -> AbstractContextManager[None]:
        """Edits the model's forward passes; see `intervened`."""

    def recording(self, anatomy: Anatomy) -> AbstractContextManager[Recording]:
        """Records what the edit needs, see `recorded`."""
        raise ValueError(f"{self.word} needs no recording; run it as it is")

    def _wrong_parts(self) -> str | None:
        if self.kind not in self.kinds:
            return f"expected one of {', '.join(self.kinds)}{nearest(self.kind, list(self.kinds))}"
        form = self.form
        if self.is_like and not self.has_like:
            return f"{self.kind} has a control of its own; leave out 'like-'"
        if form.at == "" and self.at:
            return f"{self.kind} takes no '@'; leave out {self.at!r}"
        if form.at == "key" and not _KEY.fullmatch(self.at or ""):
            hint = nearest(self.at or "", ["first", "strongest"])
            return f"say which key, as in @first, @strongest or the position @37{hint}"
        if form.at == "site" and self.at is not None and self.at not in SITES:
            return f"no site {self.at!r}; expected one of {', '.join(SITES)}{nearest(self.at, list(SITES))}"
        if form.value == "" and self.value:
            return f"{self.kind} takes no '='; leave out {self.value!r}"
        if form.value:
            pattern, words = _VALUES[form.value]
            if not re.fullmatch(pattern, self.value or ""):
                return f"'=' takes {words}"
        return None

    def _wrong_dose(self) -> str | None:
        if not math.isfinite(self.dose) or self.dose < 0:
            return f"a dose is a number from 0, and ~{self.dose} is none"
        if self.form.is_counted and self.dose != int(self.dose):
            return f"its dose counts tokens, and {digits(self.dose)} is no whole number"
        if not self.form.is_counted and self.dose > 1:
            return "a dose is between 0, nothing changed, and 1, all of it"
        return None

    def _wrong_where(self) -> str | None:
        if not self.where:
            return None
        if not self.form.where:
            return "it edits the text, which all layers read; leave out what follows ':'"
        if not re.fullmatch(rf"(other-)?{_PLACE}(,{_PLACE})*", self.where):
            return f"':' takes layers and heads such as l18h8,l19, and {self.where!r} is none"
        if self.form.where == "layers" and any(head is not None for _, head in self.places):
            return "it edits whole layers; name no heads"
        if self.where.startswith("other-") and any(head is None for _, head in self.places):
            return "'other-' takes other heads of a layer; name heads, as in other-l18h8"
        return None


def digits(number: float) -> str:
    """The shortest digits that give the number back."""
    return repr(float(number)).removesuffix(".0").replace("e+", "e")


def same_norm(edit_BTD: Tensor, seed: int, layer: int) -> Tensor:
    """A random direction at every token, of the norm that the edit has there; the same on every device."""
    drawn = _generator(seed, layer).standard_normal(tuple(edit_BTD.shape), dtype=np.float32)
    wide_BTD = edit_BTD.to(torch.promote_types(edit_BTD.dtype, torch.float32))
    direction_BTD = torch.from_numpy(drawn).to(wide_BTD)
    unit_BTD = direction_BTD / direction_BTD.norm(dim=-1, keepdim=True)
    return unit_BTD * wide_BTD.norm(dim=-1, keepdim=True)


def shuffled(n: int, seed: int, layer: int) -> list[int]:
    """A permutation of n tokens, one a layer."""
    return _generator(seed, layer).permutation(n).tolist()


def _generator(seed: int, layer: int) -> np.random.Generator:
    return np.random.default_rng([seed, layer])
