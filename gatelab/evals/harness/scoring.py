"""The log-probability of continuations: batched by length, contexts with several continuations read once.

Notable: a row holds a context and all but the last token of its continuation, and rows that are equal so far are one. Where
reading a context once saves enough, its continuations go on from its keys and values, and the first token of each is judged
where the context ends; so do contexts from a beginning that they share. What shares a pass depends on what is asked alone, not on
its order. A greedy token has the one largest logit: a tie is none, and is told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from .beginnings import Tuple, at_once, families
from .passes import WORTH, Passes

# Bounds the memory of logits, not the result.
_LOGITS = 2**25


@dataclass(frozen=True)
class Scored:
    """The summed log-probability in nats; whether every token is the one most likely; whether one of them only shares that
    place, all others being most likely."""

    log_p: float
    is_greedy: bool
    is_tied: bool

    @property
    def is_finite(self) -> bool:
        return isfinite(self.log_p)


NOTHING = Scored(nan, False, False)


def score(
    passes: Passes,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int,
    shares: bool = True,
    done: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """The score of each (context, continuation), in their order.

    Args:
        asked: one token at least in each; together at most one more than the positions allow.
        batch_size: rows a pass.
        shares: read contexts, and what they begin with, once where it pays and the model can.
        done: told how many have been answered since.
    """
    rest: dict[Tuple, dict[Tuple, list[int]]] = {}
    for (context, continuation), number in sorted(
        ((tuple(c), tuple(e)), number) for number, (c, e) in enumerate(asked)
    ):
        rest.setdefault(context, {}).setdefault(continuation, []).append(number)
    can_share = shares and passes.shares
    # Contexts are read by the batch.
    worth = max(WORTH, passes.worth // batch_size)
    is_shared = {c: can_share and _saved(c, list(ends)) >= worth for c, ends in rest.items()}
    sums: dict[tuple[Tuple, Tuple], _Sum] = {(c, e): _Sum() for c, ends in rest.items() for e in ends}
    scored: list[Scored | None] = [None] * len(asked)
    n_reads = {c: 1 if is_shared[c] else max(1, len(_longer(list(ends)))) for c, ends in rest.items()}
    finished_passes = (
        finished
        for family in families(n_reads, worth=passes.worth if can_share else None)
        for read in [_Reading(passes, family.members[0][: family.n_shared])]
        for finished in chain(
            _whole(read, {c: list(rest[c]) for c in family.members if not is_shared[c]}, sums, batch_size),
            _shared(read, {c: list(rest[c]) for c in family.members if is_shared[c]}, sums, batch_size),
        )
    )
    for finished in finished_passes:
        n = 0
        for context, continuation in finished:
            for number in rest[context][continuation]:
                scored[number] = sums[context, continuation].scored()
                n += 1
        done(n)
    return scored


@dataclass
class _Sum:
    """What has been judged of one continuation."""

    log_p: float = 0.0
    n_greedy: int = 0
    n_tied: int = 0
    n_tokens: int = 0

    def add(self, log_p_N: list[float], is_top_N: list[bool], is_tied_N: list[bool]) -> None:
        self.log_p += sum(log_p_N)
        self.n_greedy += sum(is_top_N)
        self.n_tied += sum(is_tied_N)
        self.n_tokens += len(log_p_N)

    def scored(self) -> Scored:
        is_most = self.n_greedy + self.n_tied == self.n_tokens and isfinite(self.log_p)
        return Scored(self.log_p, is_most and not self.n_tied, is_most and self.n_tied > 0)


def _saved(context: Tuple, continuations: list[Tuple]) -> int:
    """Tokens that are not read again."""
    return (len(_longer(continuations)) - 1) * len(context)


def _longer(continuations: list[Tuple]) -> set[Tuple]:
    """What is read behind a context, but for nothing."""
    return {e[:-1] for e in continuations if len(e) > 1}


class _Reading:
    """Passes over what follows a beginning, which is read once; it may be empty. Rows and contexts are given with it."""

    def __init__(self, passes: Passes, beginning: Tuple):
        self.passes, self.start = passes, len(beginning)
        self._memory = passes.begin([beginning])[1] if beginning else None
        self.pads = passes.pads and not beginning

    def whole(self, rows: list[Tuple]) -> Tensor:
        """What the head reads at every token of rows behind the beginning."""
        if self._memory is None:
            return self.passes.whole(rows)
        return self.passes.go_on(self._memory, [0] * len(rows), [row[self.start :] for row in rows])[0]

    def begin(self, contexts: list[Tuple]) -> tuple[Tensor, Any]:
        """As `Passes.begin`; of one length behind a beginning."""
        if self._memory is None:
            return self.passes.begin(contexts)
        x_BTD, memory = self.passes.go_on(self._memory, [0] * len(contexts), [c[self.start :] for c in contexts])
        return x_BTD[:, -1], memory

    def most(self, n_tokens: int, batch_size: int) -> int:
        """Rows of so many tokens at once: as the memory of keys and values allows, where they are held."""
        return batch_size if self._memory is None else at_once(self.passes, n_tokens, batch_size)


@dataclass(frozen=True)
class _Ask:
    """Targets, the first of which is predicted at a row's position `start`."""

    row: int
    start: int
    targets: Tuple
    of: tuple[Tuple, Tuple]


def _whole(
    read: _Reading, rest: dict[Tuple, list[Tuple]], sums: dict[tuple[Tuple, Tuple], _Sum], batch_size: int
) -> Iterator[list[tuple[Tuple, Tuple]]]:
    """Each row by itself; yields what is finished after each pass."""
    rows: dict[Tuple, list[tuple[int, Tuple, tuple[Tuple, Tuple]]]] = {}
    for context, continuations in rest.items():
        longest = max(continuations, key=len)
        for continuation in continuations:
            # What one token continues is answered by any row of its context.
            fed = context + (longest if len(continuation) == 1 else continuation)[:-1]
            at = len(context) - 1 - read.start
            rows.setdefault(fed, []).append((at, continuation, (context, continuation)))
    ordered = sorted(rows, key=lambda row: (len(row), row), reverse=True)
    while ordered:
        n = read.most(len(ordered[0]), batch_size)
        batch, ordered = ordered[:n], ordered[n:]
        asks = [_Ask(i, at, targets, of) for i, row in enumerate(batch) for at, targets, of in rows[row]]
        _judge(read.passes, read.whole(batch), asks, sums)
        yield [ask.of for ask in asks]


def _shared(
    read: _Reading, rest: dict[Tuple, list[Tuple]], sums: dict[tuple[Tuple, Tuple], _Sum], batch_size: int
) -> Iterator[list[tuple[Tuple, Tuple]]]:
    """Contexts once, then all that follows them; yields what is finished after each batch of contexts."""
    passes = read.passes
    for contexts in _batches(rest, batch_size, read):
        last_BD, memory = read.begin(contexts)
        asks = [_Ask(i, 0, e[:1], (c, e)) for i, c in enumerate(contexts) for e in rest[c]]
        _judge(passes, last_BD[:, None], asks, sums)
        rows: dict[tuple[int, Tuple], list[Tuple]] = {}
        for i, context in enumerate(contexts):
            for continuation in rest[context]:
                if len(continuation) > 1:
                    rows.setdefault((i, continuation[:-1]), []).append(continuation)
        ordered = sorted(rows, key=lambda key: (len(key[1]), key), reverse=True)
        while ordered:
            n = at_once(passes, len(contexts[0]) + len(ordered[0][1]), batch_size)
            batch, ordered = ordered[:n], ordered[n:]
            x_BTD, _ = passes.go_on(memory, [i for i, _ in batch], [fed for _, fed in batch])
            later = [_Ask(n, 0, e[1:], (contexts[key[0]], e)) for n, key in enumerate(batch) for e in rows[key]]
            _judge(passes, x_BTD, later, sums)
        yield [ask.of for ask in asks]


def _batches(rest: dict[Tuple, list[Tuple]], batch_size: int, read: _Reading) -> Iterator[list[Tuple]]:
    """Contexts that share a pass, the longest first; of equal length where the model takes no padding. What follows any of
    them, padded like the longest, has positions."""
    batch: list[Tuple] = []
    longest, most, most_tokens = 0, batch_size, read.passes.max_tokens
    for context in sorted(rest, key=lambda context: (len(context), context), reverse=True):
        tail = max(map(len, rest[context])) - 1
        is_other = batch and not read.pads and len(context) != len(batch[0])
        is_beyond = batch and most_tokens is not None and len(batch[0]) + max(longest, tail) > most_tokens
        if batch and (len(batch) == most or is_other or is_beyond):
            yield batch
            batch, longest = [], 0
        if not batch:
            most = at_once(read.passes, len(context), batch_size)
        batch.append(context)
        longest = max(longest, tail)
    if batch:
        yield batch


@torch.no_grad()
def _judge(passes: Passes, x_BTD: Tensor, asks: list[_Ask], sums: dict[tuple[Tuple, Tuple], _Sum]) -> None:
    """Add what the model says of the targets."""
    places = dict.fromkeys((a.row, a.start + i) for a in asks for i in range(len(a.targets)))
    number = {place: n for n, place in enumerate(places)}
    row_N, at_N = torch.tensor(list(places), device=x_BTD.device).T
    place_M = [number[a.row, a.start + i] for a in asks for i in range(len(a.targets))]
    target_M = [target for a in asks for target in a.targets]
    found = _of_targets(passes, x_BTD[row_N, at_N], place_M, target_M)
    start = 0
    for ask in asks:
        sums[ask.of].add(*(column[start : start + len(ask.targets)] for column in found))
        start += len(ask.targets)


def _of_targets(
    passes: Passes, x_ND: Tensor, place_M: list[int], target_M: list[int]
) -> tuple[list[float], list[bool], list[bool]]:
    """Of M targets, each at one of N places: log-probability, whether it alone has the largest logit, whether it shares it."""
    at_once = max(1, _LOGITS // passes.n_ids)
    by_place = sorted(range(len(place_M)), key=place_M.__getitem__)
    log_p, is_top, is_tied = [0.0] * len(place_M), [False] * len(place_M), [False] * len(place_M)
    first = 0
    for start in range(0, len(x_ND), at_once):
        mine = []
        while first < len(by_place) and place_M[by_place[first]] < start + at_once:
            mine.append(by_place[first])
            first += 1
        logits_NV = passes.logits(x_ND[start : start + at_once]).float()
        place = torch.tensor([place_M[m] - start for m in mine], device=x_ND.device)
        target = torch.tensor([target_M[m] for m in mine], device=x_ND.device)
        own_M = logits_NV[place, target]
        is_largest_M = own_M == logits_NV.amax(dim=-1)[place]
        # Few are the largest, and only among these can there be a tie; of logits, since their logarithms are rounded.
        n_equal_M = torch.ones_like(place)
        n_equal_M[is_largest_M] = (logits_NV[place[is_largest_M]] == own_M[is_largest_M, None]).sum(dim=-1)
        log_p_NV = logits_NV.log_softmax(dim=-1)
        columns = (log_p_NV[place, target], is_largest_M & (n_equal_M == 1), n_equal_M > 1)
        for m, *values in zip(mine, *(column.tolist() for column in columns), strict=True):
            log_p[m], is_top[m], is_tied[m] = values
    return log_p, is_top, is_tied
