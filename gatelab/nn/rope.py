"""Rotary positions (arXiv 2104.09864), in the half-split layout of the Hugging Face checkpoints."""

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """Rotates channel pairs (i, i + K/2) of position t by t · theta^(−2i/K); tables in float32."""

    def __init__(self, head_dim: int, theta: float, max_seq_len: int):
        super().__init__()
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle_TK = torch.outer(torch.arange(max_seq_len, dtype=torch.float64), frequency)
        self.register_buffer("cos_TK", angle_TK.cos().float(), persistent=False)
        self.register_buffer("sin_TK", angle_TK.sin().float(), persistent=False)

    def forward(self, x_BTHK: Tensor, start: int = 0) -> Tensor:
        """Positions start … start + T − 1.

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
        left, right = x_BTHK.float().chunk(2, dim=-1)
        return torch.cat([left * cos_T1K - right * sin_T1K, right * cos_T1K + left * sin_T1K], dim=-1).to(x_BTHK.dtype)
