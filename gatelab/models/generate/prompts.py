"""Prompts of unequal length, continued together: whole continuations, or token by token as they come.

Notable: shorter prompts stand behind padding that no token looks at, so that every row is what it is alone. Where more than
distances count (learned positions, registers, a key without a place, a hidden first key, dropped keys), only prompts of equal
length share a pass. With a `Keep` that drops tokens a prompt is read a token a pass, so that it sees no more than its
continuation.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.cache import Padding
from ..decoder import Decoder
from .continuation import check_length, continued, refuse_no_decoder
from .keep import Keep, new_cache
from .sampling import Sampling

Prompt = Sequence[int] | Tensor
_GREEDY, _ALL = Sampling(), Keep()


def continuations(
    model: Decoder,
    prompts: Sequence[Prompt],
    n_tokens: int,
    *,
    sampling: Sampling = _GREEDY,
    stop_ids: Collection[int] = (),
    keep: Keep = _ALL,
) -> list[list[int]]:
    """The tokens that follow each prompt, without the prompt: `n_tokens`, or fewer up to a stop id, which is the last.

    Arguments and errors as of `stream`.
    """
    batch = _Batch.of(model, prompts, n_tokens, sampling, stop_ids, keep)
    steps, is_running_B = [], torch.ones(len(prompts), dtype=torch.bool, device=batch.device)
    stop_S = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=batch.device)
    with closing(batch.steps()) as tokens:
        for new_B in tokens:
            steps.append(new_B)
            # The one place that waits for the device: where there is nothing to stop at, nothing waits.
            if len(stop_S):
                is_running_B &= ~torch.isin(new_B, stop_S)
                if not is_running_B.any():
                    break
    rows = torch.stack(steps, dim=1).tolist() if steps else [[] for _ in prompts]
    return [_stopped(row, stop_ids) for row in rows]


def stream(
    model: Decoder,
    prompts: Sequence[Prompt],
    n_tokens: int,
    *,
    sampling: Sampling = _GREEDY,
    stop_ids: Collection[int] = (),
    keep: Keep = _ALL,
) -> Iterator[list[int | None]]:
    """The next token of every prompt, `n_tokens` times, or until all have come to a stop id; None of those that have.

    Args:
        prompts: ids of each, one token at least.
        sampling: how a token is taken from its logits; rows draw from streams of their own.
        stop_ids: the tokens after which a row is done.
        keep: which keys stay when the text grows; what is kept of it has to fit into the model's positions, and with
            `Keep()` all of it.

    Raises:
        ValueError: no prompt, an empty one or ids that the model does not have, a length beyond its positions, a `keep`
            that it cannot follow, no decoder.
    """
    batch = _Batch.of(model, prompts, n_tokens, sampling, stop_ids, keep)
    return _streamed(batch, frozenset(stop_ids))


def _streamed(batch: "_Batch", stop_ids: frozenset[int]) -> Iterator[list[int | None]]:
    is_done = [False] * batch.n_rows
    with closing(batch.steps()) as tokens:
        for new_B in tokens:
            row = [None if done else token for token, done in zip(new_B.tolist(), is_done, strict=True)]
            is_done = [done or token in stop_ids for token, done in zip(row, is_done, strict=True)]
            yield row
            if all(is_done):
                return


@dataclass(frozen=True)
class _Batch:
    """Checked prompts, as groups of rows that share their passes."""

    model: Decoder
    prompts: list[Tensor]
    n_tokens: int
    sampling: Sampling
    keep: Keep

    @classmethod
    def of(
        cls,
        model: Decoder,
        prompts: Sequence[Prompt],
        n_tokens: int,
        sampling: Sampling,
        stop_ids: Collection[int],
        keep: Keep,
    ) -> "_Batch":
        refuse_no_decoder(model)
        if not isinstance(sampling, Sampling):
            raise ValueError(f"sampling={sampling!r}: give a Sampling, as in Sampling(temperature=0.8, top_p=0.95)")
        device, V = model.head.weight.device, model.config.vocab_size
        ids = [_ids(prompt, row, V, device) for row, prompt in enumerate(prompts)]
        if not ids:
            raise ValueError("prompts is empty: give the ids of one prompt at least")
        if any(not 0 <= token < V for token in stop_ids):
            raise ValueError(f"stop_ids {sorted(stop_ids)}: expected ids from 0 to {V - 1}")
        longest = max(len(i) for i in ids)
        check_length(model, longest, n_tokens, keep)
        sampling.uniforms(len(ids), 0)  # refuses another number of seeds
        return cls(model, ids, n_tokens, sampling, keep)

    @property
    def device(self) -> torch.device:
        return self.prompts[0].device

    @property
    def n_rows(self) -> int:
        return len(self.prompts)

    def steps(self) -> Iterator[Tensor]:
        """Each next token of all rows, [B]."""
        groups = self._groups()
        uniform_BN = self.sampling.uniforms(self.n_rows, self.n_tokens)
        of_groups = [self._group(g, None if uniform_BN is None else uniform_BN[g]) for g in groups]
        if len(groups) == 1:
            yield from of_groups[0]
            return
        place_B = torch.tensor([row for group in groups for row in group], device=self.device).argsort()
        for news in zip(*of_groups, strict=True):
            yield torch.cat(news)[place_B]

    def _groups(self) -> list[list[int]]:
        c = self.model.config
        counts_distances = c.positions != "learned" and not c.registers and c.softmax.kind != "key-bias"
        if counts_distances and not c.first_hidden_from and self.keep.last is None:
            return [list(range(self.n_rows))]
        rows_of: dict[int, list[int]] = {}
        for row, ids in enumerate(self.prompts):
            rows_of.setdefault(len(ids), []).append(row)
        return list(rows_of.values())

    def _group(self, rows: list[int], uniform_BN: Tensor | None) -> Iterator[Tensor]:
        model, ids = self.model, [self.prompts[row] for row in rows]
        T = max(len(i) for i in ids)
        tokens_BT = torch.stack([F.pad(i, (T - len(i), 0)) for i in ids])
        cache = new_cache(model, len(rows), T + self.n_tokens, self.keep)
        if any(len(i) < T for i in ids):
            n_padding_B = torch.tensor([T - len(i) for i in ids], device=self.device)
            dtype = model.compute_dtype or model.head.weight.dtype
            cache.padding = Padding(n_padding_B, T + self.n_tokens, dtype)
        pieces = [tokens_BT] if self.keep.last is None else list(tokens_BT.split(1, dim=1))
        return continued(
            model, lambda t_BT: model.hidden(t_BT, cache=cache), pieces, self.n_tokens, self.sampling, uniform_BN
        )


def _ids(prompt: Prompt, row: int, vocab_size: int, device: torch.device) -> Tensor:
    if isinstance(prompt, str):
        raise ValueError(f"prompt {row} is text, and a model reads ids; give those that its tokenizer makes of it")
    ids = torch.as_tensor(prompt)
    if ids.dim() != 1 or not len(ids):
        raise ValueError(
            f"prompt {row} of shape {tuple(ids.shape)}: expected the ids of its tokens in a row, one at least to go on from"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"prompt {row} of type {ids.dtype}: expected whole numbers")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocab_size:
        raise ValueError(f"prompt {row} has ids from {least} to {most}: expected ids from 0 to {vocab_size - 1}")
    return ids.to(device, torch.int64)


def _stopped(row: list[int], stop_ids: Collection[int]) -> list[int]:
    ends = [i for i, token in enumerate(row) if token in stop_ids]
    return row[: ends[0] + 1] if ends else row
