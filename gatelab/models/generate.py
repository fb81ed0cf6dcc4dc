"""Greedy or sampled continuation with a key/value cache, of a decoder or of an encoder-decoder's targets."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..nn.cache import KVCache
from .decoder import Decoder
from .encoder_decoder import EncoderDecoder
from .model import Model


@torch.no_grad()
def generate(model: Decoder, tokens_BT: Tensor, n_tokens: int, *, temperature: float = 0.0, seed: int = 0) -> Tensor:
    """`tokens_BT` continued by `n_tokens`, [B, T + n_tokens].

    Args:
        temperature: 0 takes the most likely token; otherwise samples from softmax(logits / temperature).
        seed: of the sampling.

    Raises:
        ValueError: when the whole does not fit into the model's positions, there is no token to go on from, a number is
            negative, or the model is no decoder.
    """
    _refuse_others(model)
    if not isinstance(model, Decoder):
        remedy = "call generate_target" if isinstance(model, EncoderDecoder) else "take model.arch=decoder"
        raise ValueError(f"arch={model.config.arch!r} does not continue the tokens that it reads; {remedy}")
    cache = _cache(model, tokens_BT, n_tokens, temperature)
    return _continued(lambda new_BT: model(new_BT, cache=cache), tokens_BT, n_tokens, temperature, seed)


@torch.no_grad()
def generate_target(
    model: EncoderDecoder,
    tokens_BS: Tensor,
    decoder_tokens_BT: Tensor,
    n_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """`decoder_tokens_BT` continued by `n_tokens` targets, [B, T + n_tokens].

    Args:
        tokens_BS: what the encoder reads, once.
        decoder_tokens_BT: the targets so far, the start token first (`gatelab.data.objective_batch` says which it is).
        temperature, seed: as in `generate`.

    Raises:
        ValueError: when a sequence does not fit into the model's positions, there is no target to go on from, a number is
            negative, or the model is no encoder-decoder.
    """
    _refuse_others(model)
    if not isinstance(model, EncoderDecoder):
        remedy = "call generate" if isinstance(model, Decoder) else "take model.arch=encoder-decoder"
        raise ValueError(f"arch={model.config.arch!r} has no decoder that looks at what an encoder read; {remedy}")
    cache = _cache(model, decoder_tokens_BT, n_tokens, temperature)
    return _continued(
        lambda new_BT: model(tokens_BS, new_BT, cache=cache), decoder_tokens_BT, n_tokens, temperature, seed
    )


def _refuse_others(model: Model) -> None:
    if not isinstance(model, Model):
        raise ValueError(
            f"{type(model).__name__} is no model of gatelab.build_model; give one, and not what torch.compile made of it"
        )


def _cache(model: Model, tokens_BT: Tensor, n_tokens: int, temperature: float) -> KVCache:
    if not isinstance(tokens_BT, Tensor) or tokens_BT.dim() != 2 or not tokens_BT.shape[1]:
        given = f"of shape {tuple(tokens_BT.shape)}" if isinstance(tokens_BT, Tensor) else type(tokens_BT).__name__
        raise ValueError(f"tokens {given}: expected a tensor [batch, tokens] of ids, one token at least to go on from")
    if n_tokens < 0:
        raise ValueError(f"n_tokens={n_tokens}: expected the number of new tokens, 0 or more")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: expected 0 for the most likely token, or a number above 0")
    total = tokens_BT.shape[1] + n_tokens
    if total > model.config.max_seq_len:
        raise ValueError(
            f"{tokens_BT.shape[1]} tokens and {n_tokens} more do not fit into max_seq_len={model.config.max_seq_len}; ask "
            "for fewer, or build the model with a larger one"
        )
    return model.new_cache(tokens_BT.shape[0], total)


def _continued(
    logits_of: Callable[[Tensor], Tensor], tokens_BT: Tensor, n_tokens: int, temperature: float, seed: int
) -> Tensor:
    generator = torch.Generator(tokens_BT.device).manual_seed(seed)
    new_BT = tokens_BT
    for _ in range(n_tokens):
        logits_BV = logits_of(new_BT)[:, -1].float()
        if temperature == 0.0:
            new_BT = logits_BV.argmax(dim=-1, keepdim=True)
        else:
            new_BT = torch.multinomial((logits_BV / temperature).softmax(dim=-1), 1, generator=generator)
        tokens_BT = torch.cat([tokens_BT, new_BT], dim=1)
    return tokens_BT
