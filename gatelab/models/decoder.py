"""A decoder-only language model of equal blocks."""

import torch
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..nn.cache import KVCache
from ..nn.linear import Linear
from ..nn.norm import Norm
from .block import Block


class Decoder(nn.Module):
    """Token ids [B, T] to logits [B, T, V].

    Computes in `compute_dtype`; None is the type of its weights. A trainer may compute in bfloat16 over float32 weights.
    `config` is resolved (no None left).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.position_embedding = nn.Embedding(c.max_seq_len, c.d_model) if c.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layers))
        self.final_norm = Norm(c.d_model, c.norm, c.norm_eps) if c.norm_position != "post" else nn.Identity()
        self.head = Linear(c.d_model, c.vocab_size, bias=False)
        if c.tied_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens_BT: Tensor, *, segment_ids_BT: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Logits of the next token at every position, in the compute type.

        Args:
            segment_ids_BT: document numbers; attention stays within a document.
            cache: decoding: the tokens continue at position cache.length, which moves on.

        Raises:
            ValueError: when the sequence is longer than the positions or the cache.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens_BT.shape[1]
        x_BTD = self.embedding(tokens_BT)
        if self.position_embedding is not None:
            if end > self.config.max_seq_len:
                raise ValueError(f"{end} tokens are more than max_seq_len={self.config.max_seq_len} learned positions")
            x_BTD = x_BTD + self.position_embedding.weight[start:end]
        x_BTD = x_BTD.to(self.compute_dtype or x_BTD.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, segment_ids_BT=segment_ids_BT, cache=cache)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.head(self.final_norm(x_BTD))

    def new_cache(self, batch: int, max_seq_len: int | None = None) -> KVCache:
        """An empty cache that fits this model."""
        c = self.config
        return KVCache(
            n_layers=c.n_layers,
            batch=batch,
            max_seq_len=max_seq_len or c.max_seq_len,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            dtype=self.compute_dtype or self.head.weight.dtype,
            device=self.head.weight.device,
        )
