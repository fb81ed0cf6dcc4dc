"""What is gathered of the residual stream after one block: norms, the largest entries, moments, by channel and position.

Notable: a median needs all values side by side. Of a sequence that comes whole it is exact; of one in stretches it is read
off counts of the values' leading bits, to within 0.05%.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.attention_stats import joined

# A float32 without its sign is 31 bits; the first 18 are the exponent and 10 bits of the mantissa.
_DROPPED = 13
_N_COUNTS = 1 << (31 - _DROPPED)


@dataclass
class ResidualView:
    """The residual stream after one block, [B, T, D], added in one piece or in stretches in order; `stack` is None, or
    `encoder` in an encoder-decoder.

    `largest_B` is max |x|, at `position_B` and `channel_B` (−1 where x is not a number); `norm_BT`: ‖x_t‖; `level_BD`: the
    mean over tokens of |x_c| over the token's root mean square; `moments_B4`: means of x, x², x³, x⁴. `norms_alone`: only
    `norm_BT` is gathered. `layer` is a number, or those of `norms_side_by_side`.
    """

    layer: int | tuple[int, ...]
    stack: str | None
    norms_alone: bool = False
    largest_B: Tensor | None = None
    position_B: Tensor | None = None
    channel_B: Tensor | None = None
    n_tokens: int = 0
    _norms: list[Tensor] = field(default_factory=list, repr=False)
    _level_BD: Tensor | float = 0.0
    _moments_B4: Tensor | float = 0.0
    _x_BTD: Tensor | None = field(default=None, repr=False)
    _counts_BN: Tensor | None = field(default=None, repr=False)

    def add(self, x_BTD: Tensor) -> None:
        """The next tokens."""
        norm_BT = torch.linalg.vector_norm(x_BTD, dim=-1, dtype=torch.float32)
        self._norms.append(norm_BT)
        if not self.norms_alone:
            self._add_entries(x_BTD, norm_BT)
        self.n_tokens += x_BTD.shape[1]

    def _add_entries(self, x_BTD: Tensor, norm_BT: Tensor) -> None:
        given_BTD, x_BTD = x_BTD, x_BTD.float()
        n_channels = x_BTD.shape[2]
        largest_B, index_B = x_BTD.abs().flatten(1).max(dim=1)
        position_B = (self.n_tokens + index_B // n_channels).masked_fill(largest_B.isnan(), -1)
        channel_B = (index_B % n_channels).masked_fill(largest_B.isnan(), -1)
        if self.largest_B is None:
            self.largest_B, self.position_B, self.channel_B = largest_B, position_B, channel_B
        else:
            # Not-a-number stays, wherever it stood.
            is_kept_B = (self.largest_B >= largest_B) | self.largest_B.isnan()
            self.largest_B = torch.where(is_kept_B, self.largest_B, largest_B)
            self.position_B = torch.where(is_kept_B, self.position_B, position_B)
            self.channel_B = torch.where(is_kept_B, self.channel_B, channel_B)
        rms_BT1 = norm_BT[..., None] / n_channels**0.5
        self._level_BD = self._level_BD + (x_BTD.abs() / rms_BT1).nan_to_num(0.0).sum(dim=1)
        wide_BN = x_BTD.double().flatten(1)
        power_BN, sums = wide_BN.clone(), []
        for _ in range(4):
            sums.append(power_BN.sum(dim=1))
            power_BN *= wide_BN
        self._moments_B4 = self._moments_B4 + torch.stack(sums, dim=1)
        self._keep(given_BTD)

    def _keep(self, x_BTD: Tensor) -> None:
        """The first piece as it is, and from the second on counts of leading bits."""
        if not self.n_tokens:
            self._x_BTD = x_BTD
            return
        if self._x_BTD is not None:
            self._counts_BN, self._x_BTD = _counted(self._x_BTD), None
        self._counts_BN = self._counts_BN + _counted(x_BTD)

    @property
    def norms(self) -> "ResidualView":
        """The norms alone, which hold nothing of the stream."""
        return ResidualView(self.layer, self.stack, True, n_tokens=self.n_tokens, _norms=[self.norm_BT])

    device = property(lambda self: self._norms[0].device)
    norm_BT = property(lambda self: joined(self._norms, dim=1))
    level_BD = property(lambda self: self._level_BD / self.n_tokens)

    @property
    def median_B(self) -> Tensor:
        """Of |x| over tokens and channels; of two in the middle the lower."""
        if self._x_BTD is not None:
            x_BN = self._x_BTD.float().abs().flatten(1)
            # A GPU sorts a row of millions in less time than it finds its median.
            return x_BN.sort(dim=1).values[:, (x_BN.shape[1] - 1) // 2] if x_BN.is_cuda else x_BN.median(dim=1).values
        total_BN = self._counts_BN.cumsum(dim=1)
        half_B1 = (total_BN[:, -1:] + 1) // 2
        index_B1 = torch.searchsorted(total_BN, half_B1)
        middle_B1 = ((index_B1.int() << _DROPPED) + (1 << (_DROPPED - 1))).view(torch.float32)
        return middle_B1.masked_fill(index_B1 == 0, 0.0).squeeze(1)

    @property
    def kurtosis_B(self) -> Tensor:
        """Mean (x − μ)⁴ / σ⁴ over tokens and channels."""
        n = self.n_tokens * self.level_BD.shape[1]
        mean_B, square_B, cube_B, fourth_B = (self._moments_B4 / n).unbind(dim=1)
        central_B = fourth_B - 4 * mean_B * cube_B + 6 * mean_B**2 * square_B - 3 * mean_B**4
        variance_B = square_B - mean_B**2
        # What rounding leaves of equal values is no variance.
        return (central_B / variance_B.square()).masked_fill(variance_B <= 1e-12 * square_B, torch.nan).float()


def norms_side_by_side(views: list[ResidualView]) -> ResidualView:
    """The norms of several layers' views as those of one, one layer after the other in the batch."""
    layers, first = tuple(view.layer for view in views), views[0]
    norms = [torch.cat([view.norm_BT for view in views])]
    return ResidualView(layers, first.stack, True, n_tokens=first.n_tokens, _norms=norms)


def _counted(x_BTD: Tensor) -> Tensor:
    leading_BN = x_BTD.float().abs().flatten(1).view(torch.int32) >> _DROPPED
    return torch.stack([torch.bincount(row_N, minlength=_N_COUNTS) for row_N in leading_BN])
