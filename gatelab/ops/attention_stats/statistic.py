"""Statistics of attention weights, each a class that adds up blocks; `one_pass` feeds any number of them at once.

Adding a statistic is one class; a probe names it in `statistics`, and the weights of a layer are still computed once. The
blocks may be those of one stretch or of several in order. Definitions of what the probes make of them: docs/metrics.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .block import Block
from .fused import functions, serves
from .stretch import Stretch


class Statistic(ABC):
    """Adds up blocks; its properties are the result, in float32, once all blocks were added."""

    @abstractmethod
    def add(self, block: Block) -> None:
        """Take in one block; blocks come in order."""


def one_pass(statistics: Iterable[Statistic], stretch: Stretch, *, block: int = 256) -> None:
    """Let each statistic add every block of a stretch; where kernels serve it, the stretch as one block of theirs."""
    statistics = tuple(statistics)
    if not statistics:
        return
    for part in [stretch.fused(functions())] if serves(stretch) else stretch.blocks(block):
        for statistic in statistics:
            statistic.add(part)


def n_bytes_of(stretch: Stretch, *, block: int = 256) -> int:
    """About how many bytes `one_pass` needs: the stretch itself and, where no kernels serve it, the weights of a block, three
    times over with what the statistics make of them."""
    tensors = (stretch.q_BTHK, stretch.k_BSGK, stretch.v_BSGK, stretch.y_BTHK, stretch.weights_BHTS)
    held = sum(x.numel() * x.element_size() for x in tensors if x is not None)
    if serves(stretch):
        return held
    B, H, T, S = stretch.shape
    return held + 3 * 4 * B * H * min(T, block) * S


def joined(parts: list[Tensor], dim: int = -1) -> Tensor:
    """The parts one behind the other; one alone as it is, not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


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
        self._parts.append(
            (
                block.first_mass_BHT,
                block.slot_BHT,
                block.first_gap_BHT,
                block.first_uniform_BT,
                block.first_BT,
                block.n_seen_BT,
            )
        )

    def _joined(self, i: int) -> Tensor:
        return joined([parts[i] for parts in self._parts])

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
        self._n_keys, self._is_own = 0, False

    def add(self, block: Block) -> None:
        self._sum_up(block.received(), block.stretch.start_key, block.stretch.n_tokens)

    def _sum_up(self, sums: tuple[Tensor, ...], start: int, n_tokens: int | None) -> None:
        """Add sums over keys from position `start` on; a causal block reaches further than those before it."""
        end = start + sums[0].shape[-1]
        self._n_keys = max(self._n_keys, end)
        if not self._sums and start == 0 and end >= (n_tokens or 0):
            self._sums = sums  # as they are, unless more follows
            return
        room = self._sums[0].shape[-1] if self._sums else 0
        if end > room:
            room = max(end, n_tokens or 0)
            kept = self._sums or tuple(s[..., :0] for s in sums)
            self._sums, self._is_own = tuple(F.pad(s, (0, room - s.shape[-1])) for s in kept), True
        if not self._is_own:
            self._sums, self._is_own = tuple(s.clone() for s in self._sums), True
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
        entropy_BHT, focus_BHT = block.entropy_and_focus()
        self._entropy.append(entropy_BHT)
        self._focus.append(focus_BHT)

    entropy_BHT = property(lambda self: joined(self._entropy))
    focus_BHT = property(lambda self: joined(self._focus))


class LargestLogit(Statistic):
    """`largest_BH`: the largest q·k/√K of a query and a key that it sees; without biases and gates on the scores."""

    largest_BH: Tensor | None = None

    def add(self, block: Block) -> None:
        largest_BH = block.largest_BH()
        self.largest_BH = largest_BH if self.largest_BH is None else torch.maximum(self.largest_BH, largest_BH)
