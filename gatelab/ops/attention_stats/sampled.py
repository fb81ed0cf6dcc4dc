"""Statistics of a few whole rows of the weights, spread evenly over the queries: distance, position, rank.

Notable: where a mean over all queries would ask for every weight once more, a mean over 64 rows does nearly as well; and
of a rank, which needs rows side by side, more than that cannot be kept. Which rows, is a function of the length alone.
"""

from abc import abstractmethod

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
        query_R = block.query_T[index_R]
        distance_RS = (query_R[:, None] - key_S).abs().float()
        length = stretch.n_tokens or max(stretch.start + stretch.shape[2], stretch.start_key + stretch.shape[3])
        n = length.bit_length()
        # A query whose weights are all 0 looks nowhere.
        total_BHR = weights_BHRS.sum(dim=-1)
        is_some_BHR = total_BHR != 0
        far_BHR = torch.einsum("bhrs,rs->bhr", weights_BHRS, distance_RS) / total_BHR.where(is_some_BHR, 1.0)
        origin_1 = torch.zeros_like(query_R[:1])
        sums = (
            _by_octave(weights_BHRS, query_R, stretch.start_key, n),
            _by_octave(uniform_BRS, query_R, stretch.start_key, n),
            _by_octave(weights_BHRS.sum(dim=2, keepdim=True), origin_1, stretch.start_key, n),
            _by_octave(uniform_BRS.sum(dim=1, keepdim=True), origin_1, stretch.start_key, n),
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
    n, is_there_BT = T.bit_length(), ~value_BT.isnan()
    value_BT, there_BT = value_BT.masked_fill(~is_there_BT, 0.0).double(), is_there_BT.double()
    if position_BT is None:
        origin_1 = torch.zeros(1, dtype=torch.int64, device=value_BT.device)
        sums_BN, counts_BN = (_by_octave(x_BT[:, None], origin_1, 0, n) for x_BT in (value_BT, there_BT))
    else:
        zeros_BN = torch.zeros(B, n, dtype=torch.float64, device=value_BT.device)
        index_BT = octave(position_BT)
        sums_BN, counts_BN = (zeros_BN.scatter_add(1, index_BT, x_BT) for x_BT in (value_BT, there_BT))
    return (sums_BN / torch.where(counts_BN > 0, counts_BN, torch.nan)).float()


def _by_octave(mass: Tensor, origin_R: Tensor, start_key: int, n: int) -> Tensor:
    """Sums over keys by the octave of their distance from a row's origin, and over rows, […, R, S] -> […, N].

    As differences of running sums in float64: the keys of an octave stand side by side, on either side of the origin.
    """
    S = mass.shape[-1]
    running = F.pad(mass.double().cumsum(dim=-1), (1, 0))
    # The octaves' least distances, and the first one beyond.
    edge_N = (2 ** torch.arange(n + 1, device=mass.device)) - 1
    origin_R1 = origin_R[:, None] - start_key

    def before(key_RN: Tensor) -> Tensor:
        """The sum over the keys before each of these places."""
        index_RN = key_RN.clamp(0, S).expand(*mass.shape[:-2], *key_RN.shape)
        return running.gather(-1, index_RN)

    after = before(origin_R1 + edge_N)
    left = before(origin_R1 - edge_N + 1)
    # Distance 0 is on both sides and counts once, on the right.
    sums = after[..., 1:] - after[..., :-1] + left[..., :-1] - left[..., 1:]
    own = before(origin_R1 + 1) - before(origin_R1)
    sums[..., :1] -= own
    return sums.sum(dim=-2)


class Rank(Sampled):
    """Ranks of the matrix of the sampled rows, 64 at most. `effective_BH`: exp of the entropy of its singular values over
    their sum; `stable_BH`: their sum of squares over the largest square. The rows are kept, 64 × S float32 a head."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add_rows(self, block: Block, index_R: Tensor) -> None:
        self._rows.append(F.pad(block.sampled(index_R)[0], (block.stretch.start_key, 0)))

    @property
    def gram_BHRR(self) -> Tensor:
        """The rows' products with one another, float64: their eigenvalues are the squared singular values."""
        n = max(rows.shape[-1] for rows in self._rows)
        rows_BHRS = torch.cat([F.pad(rows, (0, n - rows.shape[-1])) for rows in self._rows], dim=2)
        gram_BHRR = torch.zeros(*rows_BHRS.shape[:3], rows_BHRS.shape[2], dtype=torch.float64, device=rows_BHRS.device)
        for s in range(0, n, 4096):
            part_BHRS = rows_BHRS[..., s : s + 4096].double()
            gram_BHRR += part_BHRS @ part_BHRS.mT
        return gram_BHRR

    effective_BH = property(lambda self: ranks(self.gram_BHRR)[0])
    stable_BH = property(lambda self: ranks(self.gram_BHRR)[1])


def ranks(gram_BHRR: Tensor) -> tuple[Tensor, Tensor]:
    """Effective and stable rank, [B, H] both, of matrices whose rows have these products."""
    # The solver does not come back from what is not a number.
    is_number_BH = gram_BHRR.isfinite().all(dim=-1).all(dim=-1)
    square_BHR = _eigenvalues(gram_BHRR.where(is_number_BH[..., None, None], 0.0)).clamp(min=0)
    square_BHR = square_BHR.masked_fill(~is_number_BH[..., None], torch.nan)
    singular_BHR = square_BHR.sqrt()
    share_BHR = singular_BHR / singular_BHR.sum(dim=-1, keepdim=True)
    effective_BH = torch.special.entr(share_BHR).sum(dim=-1).exp()
    return effective_BH.float(), (square_BHR.sum(dim=-1) / square_BHR.amax(dim=-1)).float()


def _eigenvalues(gram_BHRR: Tensor) -> Tensor:
    try:
        return torch.linalg.eigvalsh(gram_BHRR)
    except torch.linalg.LinAlgError:
        # One matrix that a GPU's solver gives up on would take all others with it; LAPACK gives up on fewer.
        each = [_alone(gram_RR) for gram_RR in gram_BHRR.flatten(0, -3).cpu()]
        return torch.stack(each).view(gram_BHRR.shape[:-1]).to(gram_BHRR.device)


def _alone(gram_RR: Tensor) -> Tensor:
    try:
        return torch.linalg.eigvalsh(gram_RR)
    except torch.linalg.LinAlgError:
        return gram_RR.new_full(gram_RR.shape[:1], torch.nan)
