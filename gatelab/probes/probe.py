"""What a probe is: it sees a layer's tensors as they pass, keeps small per-sequence numbers, and gives rows."""

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config.gate import GateSpec
from ..config.normaliser import Heads, Normaliser
from ..config.run import ProbeConfig
from ..record import Row


@dataclass(frozen=True)
class AttentionView:
    """One attention layer's tensors in one forward pass, as they entered the softmax, and what they were scored with.

    `stack` is None for causal self-attention, `encoder` for one that sees both ways, `cross` for one that looks at a
    context of other tokens. `gates` holds (spec, logits [B, T, H, K or 1]; 1 in the place of B and T for a constant) by
    site; a gate on the log-sum-exp gives what is added to it. `domain_BT` numbers the domain of each query (−1: none),
    or is None.
    """

    layer: int
    stack: str | None
    q_BTHK: Tensor
    k_BSGK: Tensor
    v_BSGK: Tensor
    gates: dict[str, tuple[GateSpec, Tensor]]
    normaliser: Normaliser
    learned: dict[str, Tensor] | None
    heads: Heads
    window: int | None
    bias_BHTS: Tensor | None
    segment_ids_BT: Tensor | None
    domain_BT: Tensor | None

    @property
    def where(self) -> dict[str, object]:
        """The coordinates of the layer."""
        return {"layer": self.layer} | ({} if self.stack is None else {"stack": self.stack})


@dataclass(frozen=True)
class ResidualView:
    """The residual stream after one block, [B, T, D]; `stack` is None, or `encoder` in an encoder-decoder."""

    layer: int
    stack: str | None
    x_BTD: Tensor


Key = tuple[tuple[str, object], ...]


class Probe(ABC):
    """Accumulates per-sequence means. `metrics` names what it measures: metric -> unit (docs/metrics.md defines them).

    `add` files a number a sequence under its coordinates; `rows` averages over sequences.
    """

    name: ClassVar[str]
    metrics: ClassVar[dict[str, str]]

    def __init__(self, config: ProbeConfig, domains: tuple[str, ...]):
        self.config, self.domains = config, domains
        self._values: dict[tuple[str, Key], list[Tensor]] = defaultdict(list)

    def attention(self, view: AttentionView) -> None:  # noqa: B027  (a probe overrides what it looks at)
        """Called after each attention layer."""

    def residual(self, view: ResidualView) -> None:  # noqa: B027
        """Called after each block."""

    def add(self, metric: str, value_B: Tensor, **coordinates: object) -> None:
        """File one number a sequence."""
        self._values[metric, tuple(sorted(coordinates.items()))].append(value_B.detach().float().cpu())

    @abstractmethod
    def summaries(self, rows: list[Row]) -> list[Row]:
        """Model-level rows from the layer rows."""

    def rows(self, run: str, step: int) -> list[Row]:
        """All rows: heads, layers, model."""
        rows = []
        for (metric, coordinates), parts in self._values.items():
            value_B = torch.cat(parts)
            value_B = value_B[~value_B.isnan()]
            if value_B.numel():
                mean = value_B.double().mean().item()
                rows.append(Row(run, step, self.name, metric, mean, self.metrics[metric], **dict(coordinates)))
        return self.summaries(rows) + rows


def over_layers(rows: list[Row], metric: str, reduce: str = "mean") -> list[Row]:
    """Model-level rows of a metric: its layer rows (no head) reduced over layers, one a combination of the other
    coordinates."""
    groups: dict[Row, list[float]] = defaultdict(list)
    for row in rows:
        if row.metric == metric and row.layer is not None and row.head is None:
            groups[replace(row, layer=None, value=0.0)].append(row.value)
    reducers = {"mean": lambda v: sum(v) / len(v), "max": max}
    return [replace(key, value=reducers[reduce](values)) for key, values in groups.items()]
