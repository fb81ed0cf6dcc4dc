"""Statistics of attention weights, each a class that adds up blocks; `one_pass` feeds any number of them at once.

Adding a statistic is one class here; a probe names it in `statistics`, and the weights of a layer are still computed
once. Definitions of what the probes make of them: docs/metrics.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Block


class Statistic(ABC):
    """Adds up blocks; its properties are the result, in float32, once all blocks were added."""

    @abstractmethod
    def add(self, block: Block) -> None:
        """Take in one block; blocks come in order."""


class FirstKey(Statistic):
    """Mass on the first key, which is the query's document's first token, and in cross-attention key 0.

    `mass_BHT`; `slot_BHT`: mass taken by the slot; `uniform_BT`: the first-key mass of uniform attention, 1 / number of
    visible keys; 0, as the mass is, where a window or a mask hides the first key; `first_BT`: the first key's position;
    `n_seen_BT`: how many keys the query sees.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, block: Block) -> None:
        B, H, T, _ = block.weights_BHTS.shape
        index_BT1 = block.first_BT[..., None]
        mass_BHT = block.weights_BHTS.gather(-1, index_BT1[:, None].expand(B, H, T, 1)).squeeze(-1)
        uniform_BT = block.sees_BTS.gather(-1, index_BT1).squeeze(-1) / block.n_seen_BT
        self._parts.append((mass_BHT, block.slot_BHT, uniform_BT, block.first_BT, block.n_seen_BT))

    def _joined(self, i: int) -> Tensor:
        return torch.cat([parts[i] for parts in self._parts], dim=-1)

    mass_BHT = property(lambda self: self._joined(0))
    slot_BHT = property(lambda self: self._joined(1))
    uniform_BT = property(lambda self: self._joined(2))
    first_BT = property(lambda self: self._joined(3))
    n_seen_BT = property(lambda self: self._joined(4))


class Columns(Statistic):
    """What every key gets. `importance_BHS`: α_k, the mean mass on key k over the queries that see it, 0 where none does;
    `uniform_BS`: the same of uniform attention; `n_queries_BS`: how many queries see it; `mass_BHS`: the sum of its
    masses over the queries that see more than one key, and `uniform_mass_BS` that of uniform attention."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, ...] | None = None

    def add(self, block: Block) -> None:
        column_BHS = block.weights_BHTS.sum(dim=2)
        sees_BTS = block.sees_BTS.float()
        share_BT = 1.0 / block.n_seen_BT.clamp(min=1)
        uniform_BS = torch.einsum("bt,bts->bs", share_BT, sees_BTS)
        # A query that sees one key alone says nothing: what it gives to that key is taken out again.
        alone_BT = (block.n_seen_BT == 1).float()
        index_BT = sees_BTS.argmax(dim=-1)
        index_BHT = index_BT[:, None].expand(block.weights_BHTS.shape[:3])
        given_BHT = block.weights_BHTS.gather(-1, index_BHT[..., None]).squeeze(-1) * alone_BT[:, None]
        mass_BHS = column_BHS.scatter_add(-1, index_BHT, -given_BHT)
        uniform_mass_BS = uniform_BS.scatter_add(-1, index_BT, -alone_BT)
        sums = (column_BHS, mass_BHS, uniform_BS, sees_BTS.sum(dim=1), uniform_mass_BS)
        if self._sums is not None:
            # A causal block reaches further than those before it.
            n = column_BHS.shape[-1]
            before = (F.pad(s, (0, n - s.shape[-1])) for s in self._sums)
            sums = tuple(a + b for a, b in zip(before, sums, strict=True))
        self._sums = sums

    n_queries_BS = property(lambda self: self._sums[3])
    mass_BHS = property(lambda self: self._sums[1])
    uniform_mass_BS = property(lambda self: self._sums[4])

    @property
    def importance_BHS(self) -> Tensor:
        # A key that no query sees has none.
        return self._sums[0] / self.n_queries_BS.clamp(min=1)[:, None]

    @property
    def uniform_BS(self) -> Tensor:
        return self._sums[2] / self.n_queries_BS.clamp(min=1)


class Spread(Statistic):
    """How attention is spread, of the weights' sizes divided by their sum, so that a slot, a gate on the scores and a
    normaliser that is no softmax change it through the keys alone; not-a-number for a query whose weights are all 0.

    `entropy_BHT` in nats, −Σ p ln p; `focus_BHT`: 1 / Σ p², the number of keys that would share such a focus evenly.
    """

    def __init__(self) -> None:
        self._entropy: list[Tensor] = []
        self._focus: list[Tensor] = []

    def add(self, block: Block) -> None:
        size_BHTS = block.weights_BHTS.abs()
        sum_BHT = size_BHTS.sum(dim=-1)
        # Σ p ln p of p = w / Σ w, without another T × S tensor for p.
        self._entropy.append(sum_BHT.log() + torch.special.entr(size_BHTS).sum(dim=-1) / sum_BHT)
        self._focus.append(sum_BHT.square() / size_BHTS.square_().sum(dim=-1))

    entropy_BHT = property(lambda self: torch.cat(self._entropy, dim=-1))
    focus_BHT = property(lambda self: torch.cat(self._focus, dim=-1))


class LargestLogit(Statistic):
    """`largest_BH`: the largest q·k/√K of a query and a key that it sees; without biases and gates on the scores."""

    largest_BH: Tensor | None = None

    def add(self, block: Block) -> None:
        largest_BH = block.logits_BHTS().amax(dim=(2, 3))
        self.largest_BH = largest_BH if self.largest_BH is None else torch.maximum(self.largest_BH, largest_BH)


class Output(Statistic):
    """`y_BTHK`: the weights times the values, before what a normaliser does to finish it, in float32.

    Raises:
        ValueError: in a pass without values.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, block: Block) -> None:
        if block.v_BSGK is None:
            raise ValueError("Output weighs values, and this pass has none; give attention_blocks v_BSGK")
        weights_BGRTS = block.weights_BHTS.unflatten(1, (block.v_BSGK.shape[2], -1))
        self._parts.append(torch.einsum("bgrts,bsgk->btgrk", weights_BGRTS, block.v_BSGK).flatten(2, 3))

    y_BTHK = property(lambda self: torch.cat(self._parts, dim=1))


def one_pass(statistics: Iterable[Statistic], blocks: Iterable[Block]) -> None:
    """Let each statistic add every block."""
    statistics = tuple(statistics)
    for block in blocks:
        for statistic in statistics:
            statistic.add(block)
