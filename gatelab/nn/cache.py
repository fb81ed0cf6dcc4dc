"""Keys and values of the tokens so far, for decoding; memory is taken once."""

import torch
from torch import Tensor


class KVCache:
    """Room for `max_seq_len` tokens of `batch` sequences in every layer.

    `length` is the number of tokens stored; it moves when the model's last layer has run (`advance`).
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        max_seq_len: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (n_layers, batch, max_seq_len, n_kv_heads, head_dim)
        self.k_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, layer: int, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens of one layer; returns all keys and values so far, [B, S, G, K].

        Raises:
            ValueError: when they do not fit.
        """
        end = self.length + k_BTGK.shape[1]
        if end > self.k_LBSGK.shape[2]:
            raise ValueError(
                f"{end} tokens do not fit into a cache for {self.k_LBSGK.shape[2]}; make it with a larger max_seq_len"
            )
        self.k_LBSGK[layer, :, self.length : end] = k_BTGK
        self.v_LBSGK[layer, :, self.length : end] = v_BTGK
        return self.k_LBSGK[layer, :, :end], self.v_LBSGK[layer, :, :end]

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that all layers have stored."""
        self.length += n_tokens
