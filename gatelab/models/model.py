"""What all architectures share: embeddings, registers, positions, stacks of blocks, the head.

Notable: parameter names are those of a plain decoder (`blocks.0…`, `final_norm`); a second stack has its own prefix, so
that models of different architectures share initial values where they share names.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..config.architecture import Stack
from ..config.model import ModelConfig
from ..config.run import Recompute
from ..nn.attention import GatedAttention
from ..nn.cache import KVCache
from ..nn.linear import Linear, lookup, spread
from ..nn.norm import Norm
from ..nn.relative import RelativeBias
from ..ops.gated_attention import choose
from .block import Block, Pass
from .recompute import through_twice


class Model(nn.Module, ABC):
    """Embeddings, the stacks that the architecture names, and a head.

    Computes in `compute_dtype`; None is the type of its weights. A trainer may compute in bfloat16 over float32 weights.
    `config` is resolved (no None left). `recompute`: `layer` has the backward pass compute every block again.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.recompute: Recompute = "none"
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        for stack in c.architecture.stacks:
            self._add(stack)
        self.head = Linear(c.d_model, c.vocab_size, bias=False)
        if c.tied_embeddings:
            self.head.weight = self.embedding.weight

    @property
    def is_packed(self) -> bool:
        """Whether attention layers compute q, k, v and the gates of x in one matrix product; may be set at any time."""
        return all(layer.is_packed for layer in self._attention_layers())

    @is_packed.setter
    def is_packed(self, value: bool) -> None:
        for layer in self._attention_layers():
            layer.is_packed = value

    @property
    def attention(self) -> str:
        """The implementation that attention layers take, joined by `+` where they differ; may be set at any time.

        Raises:
            ValueError: on being set, for a name that does not exist, or does not serve the normaliser.
        """
        return "+".join(sorted({layer.impl for layer in self._attention_layers()}))

    @attention.setter
    def attention(self, impl: str) -> None:
        choose(impl, self.config.softmax)
        for layer in self._attention_layers():
            layer.impl = impl

    @abstractmethod
    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits."""

    @abstractmethod
    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """What the head reads."""

    def run(self, stack: Stack, tokens_BT: Tensor, given: Pass) -> Tensor:
        """The normed hidden state that a stack makes of tokens, [B, T, D]; registers are added and taken off here.

        Raises:
            ValueError: tokens without a batch axis, beyond the vocabulary (on a CPU), or with kinds of another shape; more tokens
                than learned positions; registers together with document numbers.
        """
        c, cache = self.config, given.cache
        types_BT = given.token_types_BT
        if types_BT is not None and (not c.n_token_types or types_BT.shape != tokens_BT.shape):
            raise ValueError(
                f"token_types of shape {tuple(types_BT.shape)} for tokens of shape {tuple(tokens_BT.shape)} and "
                f"n_token_types={c.n_token_types}: give one for each token, to a model that has such kinds"
            )
        if tokens_BT.dim() != 2:
            raise ValueError(f"tokens of shape {tuple(tokens_BT.shape)}: expected [batch, tokens]")
        start = 0 if cache is None else cache.length
        R = c.registers if start == 0 else 0
        if c.registers and given.segment_ids_BT is not None:
            raise ValueError(f"registers={c.registers} and document numbers do not go together; leave one out")
        x_BTD = self._embed(stack, tokens_BT, max(0, start - c.registers), given.token_types_BT)
        if R:
            registers_RD = spread(self._of(stack, "registers_RD"), x_BTD, n_dims=2).to(x_BTD.dtype)
            registers_BRD = registers_RD.expand(tokens_BT.shape[0], -1, -1)
            x_BTD = torch.cat([registers_BRD, x_BTD], dim=1)
        relative = getattr(self, _prefix(stack) + "relative")
        if relative is not None:
            T = x_BTD.shape[1]
            given.bias_BHTS = relative(T, start + T, start).to(torch.promote_types(x_BTD.dtype, torch.float32))
        is_twice = self.recompute == "layer" and cache is None and torch.is_grad_enabled()
        for block in getattr(self, stack.blocks):
            x_BTD = through_twice(block, x_BTD, given) if is_twice else block(x_BTD, given)
        if cache is not None:
            cache.advance(x_BTD.shape[1])
        return self._of(stack, "final_norm")(x_BTD[:, R:] if R else x_BTD)

    def new_cache(self, batch: int, max_seq_len: int | None = None) -> KVCache:
        """An empty cache that fits this model's causal stack."""
        c = self.config
        stack = c.architecture.stacks[-1]
        return KVCache(
            n_layers=c.depth(stack),
            batch=batch,
            max_seq_len=(max_seq_len or c.max_seq_len) + c.registers,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            n_score_heads=c.n_heads if any(g.site == "scores" for g in c.gates(stack)) else 0,
            dtype=self.compute_dtype or self.head.weight.dtype,
            device=self.head.weight.device,
        )

    def _attention_layers(self) -> list[GatedAttention]:
        return [m for m in self.modules() if isinstance(m, GatedAttention)]

    def _add(self, stack: Stack) -> None:
        c, prefix = self.config, _prefix(stack)
        learned = nn.Embedding(c.max_seq_len, c.d_model) if c.positions == "learned" else None
        setattr(self, prefix + "position_embedding", learned)
        kinds = nn.Embedding(c.n_token_types, c.d_model) if c.n_token_types else None
        setattr(self, prefix + "token_type_embedding", kinds)
        embedding_norm = None if c.embedding_norm == "none" else Norm(c.d_model, c.embedding_norm, c.norm_eps)
        setattr(self, prefix + "embedding_norm", embedding_norm)
        if c.registers:
            setattr(self, prefix + "registers_RD", nn.Parameter(torch.zeros(c.registers, c.d_model)))
        relative = RelativeBias(c.n_heads, is_causal=stack.is_causal) if c.positions == "relative" else None
        setattr(self, prefix + "relative", relative)
        setattr(self, stack.blocks, nn.ModuleList(Block(c, stack, layer) for layer in range(c.depth(stack))))
        is_post = c.norm_position == "post"
        norm = nn.Identity() if is_post else Norm(c.d_model, c.norm, c.norm_eps, rank=c.norm_rank)
        setattr(self, prefix + "final_norm", norm)

    def _of(self, stack: Stack, name: str) -> nn.Module:
        return getattr(self, _prefix(stack) + name)

    def _embed(self, stack: Stack, tokens_BT: Tensor, start: int, token_types_BT: Tensor | None) -> Tensor:
        try:
            x_BTD, end = lookup(self.embedding.weight, tokens_BT), start + tokens_BT.shape[1]
        except IndexError:  # raised on a CPU alone, where nobody compiled it; a GPU is not made to wait
            n_ids = self.config.vocab_size
            raise ValueError(
                f"tokens from {int(tokens_BT.min())} to {int(tokens_BT.max())}: expected ids from 0 to {n_ids - 1}, as "
                f"vocab_size={n_ids}; build the model with a larger one, or take its own tokenizer"
            ) from None
        table = self._of(stack, "position_embedding")
        if table is not None:
            if end > self.config.max_seq_len:
                raise ValueError(f"{end} tokens are more than max_seq_len={self.config.max_seq_len} learned positions")
            x_BTD = x_BTD + spread(table.weight[..., start:end, :], x_BTD, n_dims=2)
        kinds = self._of(stack, "token_type_embedding")
        if kinds is not None:
            types_BT = torch.zeros_like(tokens_BT) if token_types_BT is None else token_types_BT
            x_BTD = x_BTD + lookup(kinds.weight, types_BT)
        norm = self._of(stack, "embedding_norm")
        x_BTD = x_BTD if norm is None else norm(x_BTD)
        return x_BTD.to(self.compute_dtype or x_BTD.dtype)


def _prefix(stack: Stack) -> str:
    return stack.blocks.removesuffix("blocks")
