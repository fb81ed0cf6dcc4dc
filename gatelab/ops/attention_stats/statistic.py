"""Statistics of attention weights, each a class that adds up blocks; `one_pass` feeds any number of them at once.

Adding a statistic is one class; a probe names it in `statistics`, and the weights of a layer are still computed once. The
blocks may be those of one stretch or of several in order. Definitions of what the probes make of them: docs/metrics.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .stretch import Block, Stretch


class Statistic(ABC):
    """Adds up blocks; its properties are the result, in float32, once all blocks were added."""

    @abstractmethod
    def add(self, block: Block) -> None:
        """Take in one block; blocks come in order."""


def one_pass(statistics: Iterable[Statistic], stretch: Stretch, *, block: int = 256) -> None:
    """Let each statistic add every block of a stretch."""
    statistics = tuple(statistics)
    for part in stretch.blocks(block) if statistics else ():
        for statistic in statistics:
            statistic.add(part)


class FirstKey(Statistic):
    """Mass on the first key, which is the query's document's first token, and in cross-attention key 0.

    `mass_BHT`; `slot_BHT`: mass taken by the slot; `gap_BHT`: ln of the mass over all other mass, the slot's included, which
    of a softmax is z₀ − LSE of the others (not below −87, what float32 holds; not-a-number where the first key is hidden or
    alone); `uniform_BT`: the first-key mass of uniform attention, 1 / number of visible keys; 0, as the mass is, where a
    window or a mask hides the first key; `first_BT`: the first key's position; `n_seen_BT`: how many keys the query sees.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, block: Block) -> None:
        index_BT1 = (block.first_BT - block.stretch.start_key)[..., None]
        # A cache of a window gives up the first keys.
        is_there_BT1 = index_BT1 >= 0
        index_BT1 = index_BT1.clamp(min=0)
        weights_BHTS = block.weights_BHTS
        index_BHT1 = index_BT1[:, None].expand(*weights_BHTS.shape[:3], 1)
        mass_BHT1 = weights_BHTS.gather(-1, index_BHT1) * is_there_BT1[:, None]
        if block.stretch.segment_ids_BT is None and block.stretch.start_key == 0:
            others_BHT = weights_BHTS[..., 1:].sum(dim=-1)
        else:
            # Not the sum less the mass, which would lose what is left beside a mass near one.
            others_BHT = weights_BHTS.scatter(-1, index_BHT1, 0.0).sum(dim=-1)
        mass_BHT, tiny = mass_BHT1.squeeze(-1), torch.finfo(torch.float32).tiny
        rest_BHT = others_BHT + block.slot_BHT
        gap_BHT = mass_BHT.clamp(min=tiny).log() - rest_BHT.clamp(min=tiny).log()
        sees_BT = (block.sees_BTS.gather(-1, index_BT1) & is_there_BT1).squeeze(-1)
        is_gap_BT = sees_BT & (block.n_seen_BT > 1)
        gap_BHT = gap_BHT.masked_fill(~is_gap_BT[:, None], torch.nan)
        uniform_BT = sees_BT / block.n_seen_BT
        self._parts.append((mass_BHT, block.slot_BHT, gap_BHT, uniform_BT, block.first_BT, block.n_seen_BT))

    def _joined(self, i: int) -> Tensor:
        return torch.cat([parts[i] for parts in self._parts], dim=-1)

    mass_BHT = property(lambda self: self._joined(0))
    slot_BHT = property(lambda self: self._joined(1))
    gap_BHT = property(lambda self: self._joined(2))
    uniform_BT = property(lambda self: self._joined(3))
    first_BT = property(lambda self: self._joined(4))
    n_seen_BT = property(lambda self: self._joined(5))


class Columns(Statistic):
    """What every key gets. `importance_BHS`: α_k, the mean mass on key k over the queries that see it, 0 where none does;
    `uniform_BS`: the same of uniform attention; `n_queries_BS`: how many queries see it; `mass_BHS`: the sum of its
    masses over the queries that see more than one key, and `uniform_mass_BS` that of uniform attention."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, ...] = ()
        self._n_keys = 0

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
        self._sum_up(sums, block.stretch.start_key, block.stretch.n_tokens)

    def _sum_up(self, sums: tuple[Tensor, ...], start: int, n_tokens: int | None) -> None:
        """Add sums over keys from position `start` on; a causal block reaches further than those before it."""
        end = start + sums[0].shape[-1]
        self._n_keys = max(self._n_keys, end)
        room = self._sums[0].shape[-1] if self._sums else 0
        if end > room:
            room = max(end, n_tokens or 0)
            kept = self._sums or tuple(s[..., :0] for s in sums)
            self._sums = tuple(F.pad(s, (0, room - s.shape[-1])) for s in kept)
        for total, new in zip(self._sums, sums, strict=True):
            total[..., start:end] += new

    def _of(self, i: int) -> Tensor:
        return self._sums[i][..., : self._n_keys]

    mass_BHS = property(lambda self: self._of(1))
    n_queries_BS = property(lambda self: self._of(3))
    uniform_mass_BS = property(lambda self: self._of(4))

    @property
    def importance_BHS(self) -> Tensor:
        # A key that no query sees has none.
        return self._of(0) / self.n_queries_BS.clamp(min=1)[:, None]

    @property
    def uniform_BS(self) -> Tensor:
        return self._of(2) / self.n_queries_BS.clamp(min=1)


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
