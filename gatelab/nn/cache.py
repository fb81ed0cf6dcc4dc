"""Keys and values of the tokens so far, for decoding; memory is taken once."""

from typing import NamedTuple

import torch
from torch import Tensor


class Keys(NamedTuple):
    """What queries look at: keys and values [B, S, G, K], and a score gate's logits [B, S, H] where there is one."""

    k_BSGK: Tensor
    v_BSGK: Tensor
    score_logits_BSH: Tensor | None = None


class KVCache:
    """Room for `max_seq_len` tokens of `batch` sequences in every layer.

    `length` is the number of tokens stored; it moves when the model's last layer has run (`advance`). `context` keeps
    what cross-attention layers made of their context, by layer. A layer whose scores are gated stores a logit a head.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        max_seq_len: int,
        n_kv_heads: int,
        head_dim: int,
        n_score_heads: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (n_layers, batch, max_seq_len, n_kv_heads, head_dim)
        self.k_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.score_logits_LBSH = torch.zeros((*shape[:3], n_score_heads), dtype=dtype, device=device)
        self.context: dict[int, Keys] = {}
        self.length = 0

    def append(self, layer: int, new: Keys) -> Keys:
        """Store the new tokens of one layer; returns all so far.

        Raises:
            ValueError: when they do not fit, are of another number of sequences or other heads, belong to a layer that the
                cache does not have, or have score logits and the cache no room for them.
        """
        if layer >= self.k_LBSGK.shape[0]:
            raise ValueError(f"layer {layer} of a cache for {self.k_LBSGK.shape[0]} layers; make it with more n_layers")
        if new.k_BSGK.shape[2:] != self.k_LBSGK.shape[3:]:
            heads, room = tuple(new.k_BSGK.shape[2:]), tuple(self.k_LBSGK.shape[3:])
            raise ValueError(
                f"keys of (heads, channels) = {heads}, and the cache is for {room}; make it with the layer's n_kv_heads and "
                "head_dim, or with the model's new_cache"
            )
        batch, given = self.k_LBSGK.shape[1], new.k_BSGK.shape[0]
        if given != batch:
            raise ValueError(f"{given} sequences, and the cache is for {batch}; make it with batch={given}")
        start, end = self.length, self.length + new.k_BSGK.shape[1]
        if end > self.k_LBSGK.shape[2]:
            raise ValueError(
                f"{end} tokens do not fit into a cache for {self.k_LBSGK.shape[2]}; make it with a larger max_seq_len"
            )
        stores = [self.k_LBSGK, self.v_LBSGK]
        if new.score_logits_BSH is not None:
            if self.score_logits_LBSH.shape[3] != new.score_logits_BSH.shape[2]:
                raise ValueError(
                    f"this layer gates the scores of {new.score_logits_BSH.shape[2]} heads and the cache has room for "
                    f"{self.score_logits_LBSH.shape[3]}; make it with n_score_heads, or with the model's new_cache"
                )
            stores.append(self.score_logits_LBSH)
        for store, value in zip(stores, new, strict=False):
            store[layer, :, start:end] = value
        return Keys(*(store[layer, :, :end] for store in stores))

    def keep_context(self, layer: int, keys: Keys) -> Keys:
        """Keep what a cross-attention layer made of its context; returns it."""
        self.context[layer] = keys
        return keys

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that all layers have stored."""
        self.length += n_tokens
