"""Rotary positions (arXiv 2104.09864), in the half-split layout of the Hugging Face checkpoints.

Notable: a share of the head's channels may turn, the first ones (GPT-NeoX, Qwen3-Next); the rest pass through. How the
frequencies are stretched past the trained context is a value, `RopeScaling`.
"""

import torch
from torch import Tensor, nn

from ..config.rope import RopeScaling, Unscaled, rotary_dim


class Rope(nn.Module):
    """Rotates channel pairs (i, i + R/2) of position t by t · theta^(−2i/R) · share_i; tables in float32.

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
        # Torch's power and Python's differ in the last bit for some widths, and shares of 1 keep torch's.
        plain = theta ** (-torch.arange(0, self.rotary_dim, 2, dtype=torch.float64) / self.rotary_dim)
        frequency = plain * torch.tensor(scaling.kept_shares(self.rotary_dim, theta), dtype=torch.float64)
        angle_TK = torch.outer(torch.arange(max_seq_len, dtype=torch.float64), frequency)
        self.register_buffer("cos_TK", (scaling.amplitude * angle_TK.cos()).float(), persistent=False)
        self.register_buffer("sin_TK", (scaling.amplitude * angle_TK.sin()).float(), persistent=False)

    def forward(self, x_BTHK: Tensor, start: int = 0) -> Tensor:
        """Positions start … start + T − 1; channels from R on as they came.

        Raises:
            ValueError: past the table, naming both lengths.
        """
        end = start + x_BTHK.shape[1]
        if end > self.cos_TK.shape[0]:
            raise ValueError(
                f"position {end - 1} is past max_seq_len={self.cos_TK.shape[0]}; build the model with a larger one"
            )
        # Angles of late positions need more digits than bfloat16 has.
        cos_T1K, sin_T1K = self.cos_TK[start:end, None], self.sin_TK[start:end, None]
        turning, rest = x_BTHK.split([self.rotary_dim, self.head_dim - self.rotary_dim], dim=-1)
        left, right = turning.float().chunk(2, dim=-1)
        turned = torch.cat([left * cos_T1K - right * sin_T1K, right * cos_T1K + left * sin_T1K], dim=-1)
        turned = turned.to(x_BTHK.dtype)
        return torch.cat([turned, rest], dim=-1) if self.rotary_dim < self.head_dim else turned

    def extra_repr(self) -> str:
        """Channels that turn, and the tables' length."""
        return f"rotary_dim={self.rotary_dim}, max_seq_len={self.cos_TK.shape[0]}"
