"""Rotary positions (arXiv 2104.09864), in the half-split layout of the Hugging Face checkpoints.

Notable: a share of the head's channels may turn, the first ones (GPT-NeoX, Qwen3-Next); the rest pass through. How the
frequencies are stretched past the trained context is a value, `RopeScaling`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.rope import RopeScaling, Unscaled, rotary_dim


class Rope(nn.Module):
    """Rotates channel pairs (i, i + R/2) of position t by t · theta^(−2i/R) · share_i; tables in float32, and in
    float64 in a module of that type.

    Args:
        head_dim, theta, max_seq_len: width K of a head, base of the frequencies, length of the tables in tokens.
        fraction: the share of the head's channels that turn, R = fraction · K.
        scaling: `LinearScaling(factor=4)` and the like; it says each pair's share and the tables' amplitude.

    Raises:
        ValueError: when fraction · head_dim is not even, theta not above 0, or the scaling cannot stretch these pairs.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        max_seq_len: int,
        fraction: float = 1.0,
        scaling: RopeScaling = Unscaled(),  # noqa: B008  (a frozen value)
    ):
        super().__init__()
        if not theta > 0:
            raise ValueError(f"rope_theta={theta}: the base of the frequencies is a number above 0, as in 10000")
        self.head_dim, self.rotary_dim = head_dim, rotary_dim(head_dim, fraction)
        self.theta, self.max_seq_len, self.scaling = theta, max_seq_len, scaling
        cos_TK, sin_TK = self._tables()
        self.register_buffer("cos_TK", cos_TK.float(), persistent=False)
        self.register_buffer("sin_TK", sin_TK.float(), persistent=False)

    def forward(self, x_BTHK: Tensor, start: int = 0, *, rows: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Positions start … start + T − 1, or those whose `rows` are given; channels from R on as they came.

        Raises:
            ValueError: past the table, naming both lengths.
        """
        if rows is None:
            self._make_values(x_BTHK)
            end = self.check(start + x_BTHK.shape[1])
            rows = self.cos_TK[start:end, None], self.sin_TK[start:end, None]
        cos_T1K, sin_T1K = rows
        if _is_eager(x_BTHK):
            return self._turned(x_BTHK, cos_T1K, sin_T1K)
        turning, rest = x_BTHK.split([self.rotary_dim, self.head_dim - self.rotary_dim], dim=-1)
        left, right = turning.to(torch.promote_types(turning.dtype, torch.float32)).chunk(2, dim=-1)
        turned = torch.cat([left * cos_T1K - right * sin_T1K, right * cos_T1K + left * sin_T1K], dim=-1)
        turned = turned.to(x_BTHK.dtype)
        return torch.cat([turned, rest], dim=-1) if self.rotary_dim < self.head_dim else turned

    def check(self, end: int) -> int:
        """`end`, before which positions lie.

        Raises:
            ValueError: past the table, naming both lengths.
        """
        if end > self.cos_TK.shape[0]:
            raise ValueError(
                f"position {end - 1} is past max_seq_len={self.cos_TK.shape[0]}; build the model with a larger one"
            )
        return end

    def rows(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of these positions, [B, T, 1, R/2], which turn queries and keys alike.

        Raises:
            ValueError: for a position below 0 or past the table, on a CPU. Compiled code and GPUs wait for no value: there it is
                the index error that an embedding has for an id past its vocabulary, on a GPU a device-side assertion.
        """
        self._make_values(positions_BT)
        n = self.cos_TK.shape[0]
        if type(positions_BT) is Tensor and positions_BT.device.type == "cpu" and not torch.compiler.is_compiling():
            if ((positions_BT < 0) | (positions_BT >= n)).any():
                raise ValueError(
                    f"positions_BT from {int(positions_BT.min())} to {int(positions_BT.max())}: expected 0 to {n - 1}, as "
                    f"max_seq_len={n}; build the model with a larger one"
                )
        else:
            # The compiler would count numbers below 0 from the end.
            positions_BT = torch.where(positions_BT < 0, n, positions_BT)
        cos_BT1K, sin_BT1K = (F.embedding(positions_BT, t)[:, :, None] for t in (self.cos_TK, self.sin_TK))
        return cos_BT1K, sin_BT1K

    def _turned(self, x_BTHK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor) -> Tensor:
        """The same in four kernels in the place of nine: sums are written to their place, rounded once."""
        turned_BTHK = torch.empty_like(x_BTHK, memory_format=torch.contiguous_format)
        widths = [self.rotary_dim // 2, self.rotary_dim // 2, self.head_dim - self.rotary_dim]
        left, right, rest = x_BTHK.split_with_sizes(widths, dim=-1)
        to_left, to_right, to_rest = turned_BTHK.split_with_sizes(widths, dim=-1)
        torch.addcmul(left * cos_T1K, right, sin_T1K, value=-1, out=to_left)
        torch.addcmul(right * cos_T1K, left, sin_T1K, out=to_right)
        if self.rotary_dim < self.head_dim:
            to_rest.copy_(rest)
        return turned_BTHK

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines in float64, times the amplitude, [max_seq_len, R / 2]."""
        # Torch's power and Python's differ in the last bit for some widths, and shares of 1 keep torch's.
        plain = self.theta ** (-torch.arange(0, self.rotary_dim, 2, dtype=torch.float64) / self.rotary_dim)
        frequency = plain * torch.tensor(self.scaling.kept_shares(self.rotary_dim, self.theta), dtype=torch.float64)
        angle_TK = torch.outer(torch.arange(self.max_seq_len, dtype=torch.float64), frequency)
        return self.scaling.amplitude * angle_TK.cos(), self.scaling.amplitude * angle_TK.sin()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rope":
        """A module's way to another type or device. The tables are made anew where that would round them (angles of late
        positions need more digits than bfloat16 has) or where they had no values yet, on the meta device."""
        before = self.cos_TK
        super()._apply(fn, recurse)
        after = self.cos_TK
        if not after.is_meta and (before.is_meta or after.dtype != before.dtype):
            self._remake(after.device, torch.promote_types(after.dtype, torch.float32))
        return self

    def _make_values(self, like: Tensor) -> None:
        if self.cos_TK.is_meta and not like.is_meta:
            self._remake(like.device, torch.float32)

    def _remake(self, device: torch.device, dtype: torch.dtype) -> None:
        # Whatever the ambient device is: under `with torch.device("meta")` there would be no values again.
        with torch.device("cpu"):
            tables = self._tables()
        self.cos_TK, self.sin_TK = (t.to(device, dtype) for t in tables)

    def extra_repr(self) -> str:
        """Channels that turn, and the tables' length."""
        return f"rotary_dim={self.rotary_dim}, max_seq_len={self.cos_TK.shape[0]}"


def _is_eager(x: Tensor) -> bool:
    """Whether kernels run as they are called and no gradient follows them, so that results may be written in place."""
    return type(x) is Tensor and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
