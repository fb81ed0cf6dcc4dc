"""Greedy or sampled continuation with a key/value cache, of a decoder or of an encoder-decoder's targets."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..decoder import Decoder
from ..encoder_decoder import EncoderDecoder
from ..model import Model
from .keep import Keep, check_keep, new_cache
from .sampling import Sampling, next_tokens

Hidden = Callable[[Tensor], Tensor]


def generate(
    model: Decoder,
    tokens_BT: Tensor,
    n_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | tuple[int, ...] = 0,
) -> Tensor:
    """`tokens_BT` continued by `n_tokens`, [B, T + n_tokens]; prompts of unequal length, and those that stop, are for
    `continuations`.

    Args:
        temperature, top_k, top_p, seed: as in `Sampling`; temperature 0 takes the most likely token.

    Raises:
        ValueError: when the whole does not fit into the model's positions, there is no token to go on from, a number is not
            allowed, or the model is no decoder.
    """
    refuse_no_decoder(model)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    _check(model, tokens_BT, n_tokens)
    cache = new_cache(model, tokens_BT.shape[0], tokens_BT.shape[1] + n_tokens, Keep())
    uniform_BN = sampling.uniforms(len(tokens_BT), n_tokens)
    new = continued(model, lambda t_BT: model.hidden(t_BT, cache=cache), [tokens_BT], n_tokens, sampling, uniform_BN)
    return torch.cat([tokens_BT, *(new_B[:, None] for new_B in new)], dim=1)


def generate_target(
    model: EncoderDecoder,
    tokens_BS: Tensor,
    decoder_tokens_BT: Tensor,
    n_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | tuple[int, ...] = 0,
) -> Tensor:
    """`decoder_tokens_BT` continued by `n_tokens` targets, [B, T + n_tokens].

    Args:
        tokens_BS: what the encoder reads, once.
        decoder_tokens_BT: the targets so far, the start token first (`gatelab.data.objective_batch` says which it is).
        temperature, top_k, top_p, seed: as in `Sampling`.

    Raises:
        ValueError: when a sequence does not fit into the model's positions, there is no target to go on from, a number is not
            allowed, or the model is no encoder-decoder.
    """
    _refuse_others(model)
    if not isinstance(model, EncoderDecoder):
        remedy = "call generate" if isinstance(model, Decoder) else "take model.arch=encoder-decoder"
        raise ValueError(f"arch={model.config.arch!r} has no decoder that looks at what an encoder read; {remedy}")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    _check(model, decoder_tokens_BT, n_tokens)
    cache = new_cache(model, decoder_tokens_BT.shape[0], decoder_tokens_BT.shape[1] + n_tokens, Keep())
    uniform_BN = sampling.uniforms(len(decoder_tokens_BT), n_tokens)
    new = continued(
        model,
        lambda t_BT: model.hidden(tokens_BS, t_BT, cache=cache),
        [decoder_tokens_BT],
        n_tokens,
        sampling,
        uniform_BN,
    )
    return torch.cat([decoder_tokens_BT, *(new_B[:, None] for new_B in new)], dim=1)


def continued(
    model: Model,
    hidden_of: Hidden,
    pieces: list[Tensor],
    n_tokens: int,
    sampling: Sampling,
    uniform_BN: Tensor | None,
) -> Iterator[Tensor]:
    """Yields each next token of the rows, [B], without waiting for the device; reads `pieces` [B, T] of the prompts, one
    pass each, before the first."""
    if not n_tokens:
        return
    uniform_NB = None if uniform_BN is None else uniform_BN.T.to(pieces[0].device)
    # A first pass may make tables (of RoPE, on a model from the meta device) that training reads later; those that follow
    # make nothing that stays, and take less time in inference mode.
    with torch.no_grad():
        for piece_BT in pieces:
            last_BD = hidden_of(piece_BT)[:, -1]
    for i in range(n_tokens):
        # Not around the yield: what the caller does between two tokens is its own.
        with torch.inference_mode():
            new_B = next_tokens(model.head(last_BD), sampling, None if uniform_NB is None else uniform_NB[i])
        yield new_B
        if i + 1 < n_tokens:
            with torch.inference_mode():
                last_BD = hidden_of(new_B[:, None])[:, -1]


def refuse_no_decoder(model: Model) -> None:
    """Refuses what does not continue the tokens that it reads.

    Raises:
        ValueError: saying what to do instead.
    """
    _refuse_others(model)
    if not isinstance(model, Decoder):
        remedy = "call generate_target" if isinstance(model, EncoderDecoder) else "take model.arch=decoder"
        raise ValueError(f"arch={model.config.arch!r} does not continue the tokens that it reads; {remedy}")


def check_length(model: Model, n_prompt: int, n_tokens: int, keep: Keep) -> None:
    """Refuses a negative number of new tokens, and more than positions allow of what is kept.

    Raises:
        ValueError: saying how many there are.
    """
    if not isinstance(n_tokens, int) or n_tokens < 0:
        raise ValueError(f"n_tokens={n_tokens}: expected the number of new tokens, 0 or more")
    check_keep(model.config, keep)
    if keep.last is None and n_prompt + n_tokens > model.config.max_seq_len:
        raise ValueError(
            f"{n_prompt} tokens and {n_tokens} more do not fit into max_seq_len={model.config.max_seq_len}; ask for fewer, "
            "or build the model with a larger one"
        )


def _refuse_others(model: Model) -> None:
    if not isinstance(model, Model):
        raise ValueError(
            f"{type(model).__name__} is no model of gatelab.build_model; give one, and not what torch.compile made of it"
        )


def _check(model: Model, tokens_BT: Tensor, n_tokens: int) -> None:
    if not isinstance(tokens_BT, Tensor) or tokens_BT.dim() != 2 or not tokens_BT.shape[1]:
        given = f"of shape {tuple(tokens_BT.shape)}" if isinstance(tokens_BT, Tensor) else type(tokens_BT).__name__
        raise ValueError(f"tokens {given}: expected a tensor [batch, tokens] of ids, one token at least to go on from")
    if tokens_BT.is_floating_point():
        raise ValueError(f"tokens of type {tokens_BT.dtype}: expected ids, which are whole numbers")
    check_length(model, tokens_BT.shape[1], n_tokens, Keep())
