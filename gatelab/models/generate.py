"""Greedy or sampled continuation with a key/value cache."""

import torch
from torch import Tensor

from .decoder import Decoder


@torch.no_grad()
def generate(model: Decoder, tokens_BT: Tensor, n_tokens: int, *, temperature: float = 0.0, seed: int = 0) -> Tensor:
    """`tokens_BT` continued by `n_tokens`, [B, T + n_tokens].

    Args:
        temperature: 0 takes the most likely token; otherwise samples from softmax(logits / temperature).
        seed: of the sampling.

    Raises:
        ValueError: when the whole does not fit into the model's positions.
    """
    total = tokens_BT.shape[1] + n_tokens
    if total > model.config.max_seq_len:
        raise ValueError(f"{total} tokens do not fit into max_seq_len={model.config.max_seq_len}")
    generator = torch.Generator(tokens_BT.device).manual_seed(seed)
    cache = model.new_cache(tokens_BT.shape[0], total)
    new_BT = tokens_BT
    for _ in range(n_tokens):
        logits_BV = model(new_BT, cache=cache)[:, -1].float()
        if temperature == 0.0:
            new_BT = logits_BV.argmax(dim=-1, keepdim=True)
        else:
            new_BT = torch.multinomial((logits_BV / temperature).softmax(dim=-1), 1, generator=generator)
        tokens_BT = torch.cat([tokens_BT, new_BT], dim=1)
    return tokens_BT
