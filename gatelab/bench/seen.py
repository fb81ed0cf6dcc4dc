"""Which keys a query of a benchmark sees: earlier ones, of its window and of its document."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from .plan import OpsPlan


@dataclass(frozen=True)
class Seen:
    """Of sequences of `length` that are `documents` as long as each other, to a token, or one document each; `window`: a query
    sees so many keys, its own included, or all."""

    batch: int
    length: int
    documents: int
    window: int | None
    device: torch.device

    @classmethod
    def of(cls, plan: OpsPlan) -> "Seen":
        return cls(plan.batch, plan.length, plan.documents, plan.window, torch.device(plan.device))

    @property
    def is_plain(self) -> bool:
        """Whether causality is all."""
        return self.window is None and self.documents == 1

    @cached_property
    def document_T(self) -> Tensor:
        """Each position's document; none begins at a multiple of a tile but by chance."""
        return torch.arange(self.length, device=self.device) * self.documents // self.length

    def among(self, t: Tensor, s: Tensor) -> Tensor:
        """Whether queries at positions t see keys at positions s, broadcast."""
        seen = (t >= s) & (self.document_T[t] == self.document_T[s])
        return seen if self.window is None else seen & (t - s < self.window)

    @cached_property
    def mask_TS(self) -> Tensor | None:
        """The same of all positions, for those that take nothing else; None where causality is all."""
        if self.is_plain:
            return None
        every_T = torch.arange(self.length, device=self.device)
        return self.among(every_T[:, None], every_T)

    @cached_property
    def given(self) -> dict[str, object]:
        """As arguments of `gated_attention`, of what is not plain."""
        out: dict[str, object] = {} if self.window is None else {"window": self.window}
        return out if self.documents == 1 else out | {"segment_ids_BT": self.document_T.expand(self.batch, -1)}

    @cached_property
    def pairs(self) -> float:
        """Of a query and a key that it sees, in a sequence: T²/2 where it is plain, as `floors.attention_ms` counts them."""
        if self.is_plain:
            return self.length**2 / 2
        ends = [-(-self.length * d // self.documents) for d in range(self.documents + 1)]
        lengths = [b - a for a, b in pairwise(ends)]
        reach = [min(n, self.window or n) for n in lengths]
        return float(sum(w * (w + 1) / 2 + (n - w) * w for n, w in zip(lengths, reach, strict=True)))
