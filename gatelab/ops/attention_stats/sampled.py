"""Statistics of a few whole rows of the weights, spread evenly over the queries: distance, position, rank.

Notable: where a mean over all queries would ask for every weight once more, a mean over 64 rows does nearly as well; and
of a rank, which needs rows side by side, more than that cannot be kept. Which rows, is a function of the length alone.
"""

from abc import abstractmethod
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .block import Block
from .statistic import Statistic

N_ROWS = 64


def sampled_queries(n_queries: int) -> list[int]:
    """Positions of at most 64 queries, in order: evenly from the last down to past the first."""
    n = min(N_ROWS, max(n_queries - 1, 1))
    return [max(n_queries - 1 - i * (n_queries - 1) // n, 0) for i in reversed(range(n))]


class Sampled(Statistic):
    """Takes the sampled rows out of the blocks."""

    def add(self, block: Block) -> None:
        # Told on the host: a look does not wait for the device.
        length = block.stretch.n_tokens or block.stretch.start + block.stretch.shape[2]
        start, stop = block.start, block.start + len(block.query_T)
        index = [query - start for query in sampled_queries(length) if start <= query < stop]
        if index:
            self.add_rows(block, torch.tensor(index, device=block.query_T.device))

    @abstractmethod
    def add_rows(self, block: Block, index_R: Tensor) -> None:
        """Take in the block's queries with these places in it."""


class Places(Sampled):
    """Where attention goes, over the sampled queries that see more than one key, in octaves: octave n holds distances, or
    positions, from 2ⁿ − 1 to 2ⁿ⁺¹ − 2.

    `distance_BHN`: mean mass by distance |i − j|; `distance_uniform_BN`: that of uniform attention; `position_BHN` and
    `position_uniform_BN`: by the key's position; `mean_distance_BH`: mean over queries of Σ P(i, j)·|i − j| / Σ P(i, j).
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, ...] = ()
        self._count_B: Tensor | int = 0

    def add_rows(self, block: Block, index_R: Tensor) -> None:
        stretch = block.stretch
        weights_BHRS, sees_BRS = block.sampled(index_R)
        n_seen_BR = sees_BRS.sum(dim=-1)
        counted_BR = (n_seen_BR > 1).float()
        uniform_BRS = sees_BRS * (counted_BR / n_seen_BR.clamp(min=1))[..., None]
        weights_BHRS = weights_BHRS * counted_BR[:, None, :, None]
        key_S = torch.arange(stretch.start_key, stretch.start_key + block.n_keys, device=index_R.device)
        distance_RS = (block.query_T[index_R, None] - key_S).abs()
        length = stretch.n_tokens or max(stretch.start + stretch.shape[2], stretch.start_key + stretch.shape[3])
        n = length.bit_length()
        # A query whose weights are all 0 looks nowhere.
        total_BHR = weights_BHRS.sum(dim=-1)
        is_some_BHR = total_BHR != 0
        far_BHR = torch.einsum("bhrs,rs->bhr", weights_BHRS, distance_RS.float()) / total_BHR.where(is_some_BHR, 1.0)
        sums = (
            _by_octave(weights_BHRS, octave(distance_RS), n),
            _by_octave(uniform_BRS, octave(distance_RS), n),
            _by_octave(weights_BHRS, octave(key_S).expand_as(distance_RS), n),
            _by_octave(uniform_BRS, octave(key_S).expand_as(distance_RS), n),
            far_BHR.sum(dim=-1),
            is_some_BHR.sum(dim=-1),
        )
        self._sums = tuple(a + b for a, b in zip(self._sums, sums, strict=True)) if self._sums else sums
        self._count_B = self._count_B + counted_BR.sum(dim=1)

    def _mean(self, i: int) -> Tensor:
        sums = self._sums[i]
        return (sums / self._count_B.view(-1, *[1] * (sums.dim() - 1))).float()

    distance_BHN = property(lambda self: self._mean(0))
    distance_uniform_BN = property(lambda self: self._mean(1))
    position_BHN = property(lambda self: self._mean(2))
    position_uniform_BN = property(lambda self: self._mean(3))
    mean_distance_BH = property(lambda self: self._sums[4] / self._sums[5])


def octave(position: Tensor) -> Tensor:
    """n of the positions 2ⁿ − 1 to 2ⁿ⁺¹ − 2."""
    # frexp is exact where a float32 logarithm is not.
    return torch.frexp((position + 1).double()).exponent.long() - 1


def by_octave(value_BT: Tensor, position_BT: Tensor | None = None) -> Tensor:
    """Mean over the positions of each octave, [B, N]; not-a-number where there is none. Values that are not-a-number do not
    count; positions are 0 … T − 1 unless given, and less than T."""
    B, T = value_BT.shape
    if position_BT is None:
        position_BT = torch.arange(T, device=value_BT.device).expand(B, T)
    index_BT, n = octave(position_BT), T.bit_length()
    is_there_BT = ~value_BT.isnan()
    zeros_BN = torch.zeros(B, n, dtype=torch.float64, device=value_BT.device)
    sums_BN = zeros_BN.scatter_add(1, index_BT, value_BT.masked_fill(~is_there_BT, 0.0).double())
    counts_BN = zeros_BN.scatter_add(1, index_BT, is_there_BT.double())
    return (sums_BN / torch.where(counts_BN > 0, counts_BN, torch.nan)).float()


def _by_octave(mass: Tensor, octave_RS: Tensor, n: int) -> Tensor:
    """Sums over keys and queries, […, R, S] -> […, N]."""
    # A float32 loses what is added last to tens of thousands of like numbers.
    zeros = torch.zeros(*mass.shape[:-2], n, dtype=torch.float64, device=mass.device)
    return zeros.scatter_add(-1, octave_RS.flatten().expand(*mass.shape[:-2], -1), mass.flatten(-2).double())


class Rank(Sampled):
    """Ranks of the matrix of the sampled rows, 64 at most. `effective_BH`: exp of the entropy of its singular values over
    their sum; `stable_BH`: their sum of squares over the largest square. The rows are kept, 64 × S float32 a head."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add_rows(self, block: Block, index_R: Tensor) -> None:
        self._rows.append(F.pad(block.sampled(index_R)[0], (block.stretch.start_key, 0)))

    @cached_property
    def _singular_BHR(self) -> Tensor:
        n = max(rows.shape[-1] for rows in self._rows)
        rows_BHRS = torch.cat([F.pad(rows, (0, n - rows.shape[-1])) for rows in self._rows], dim=2)
        gram_BHRR = torch.zeros(*rows_BHRS.shape[:3], rows_BHRS.shape[2], dtype=torch.float64, device=rows_BHRS.device)
        for s in range(0, n, 4096):
            part_BHRS = rows_BHRS[..., s : s + 4096].double()
            gram_BHRR += part_BHRS @ part_BHRS.mT
        # The solver does not come back from what is not a number.
        is_number_BH = gram_BHRR.isfinite().all(dim=-1).all(dim=-1)
        singular_BHR = torch.linalg.eigvalsh(gram_BHRR.where(is_number_BH[..., None, None], 0.0)).clamp(min=0).sqrt()
        return singular_BHR.masked_fill(~is_number_BH[..., None], torch.nan)

    @property
    def effective_BH(self) -> Tensor:
        singular_BHR = self._singular_BHR
        share_BHR = singular_BHR / singular_BHR.sum(dim=-1, keepdim=True)
        return torch.special.entr(share_BHR).sum(dim=-1).exp().float()

    @property
    def stable_BH(self) -> Tensor:
        square_BHR = self._singular_BHR.square()
        return (square_BHR.sum(dim=-1) / square_BHR.amax(dim=-1)).float()
