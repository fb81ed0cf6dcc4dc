"""The log-probability of continuations: batched by length, contexts with several continuations read once.

Notable: a row holds a context and all but the last token of its continuation, and rows that are equal so far are one. Where
reading a context once saves enough, its continuations go on from its keys and values, and the first token of each is judged
where the context ends. A greedy token has the one largest logit: a tie is none, and is told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite, nan

import torch
from torch import Tensor

from .passes import Passes

Tuple = tuple[int, ...]
# Bounds the memory of logits, not the result.
_LOGITS = 2**25
# A second pass and a copied cache cost about as much as reading so many tokens.
_WORTH = 32


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
        shares: read contexts once where it pays and the model can.
        done: told how many have been answered since.
    """
    rest: dict[Tuple, dict[Tuple, list[int]]] = {}
    for number, (context, continuation) in enumerate(asked):
        rest.setdefault(tuple(context), {}).setdefault(tuple(continuation), []).append(number)
    is_shared = {c: shares and passes.shares and _pays(c, list(ends)) for c, ends in rest.items()}
    sums: dict[tuple[Tuple, Tuple], _Sum] = {(c, e): _Sum() for c, ends in rest.items() for e in ends}
    scored: list[Scored | None] = [None] * len(asked)
    alone = {c: list(e) for c, e in rest.items() if not is_shared[c]}
    together = {c: list(e) for c, e in rest.items() if is_shared[c]}
    for finished in chain(_whole(passes, alone, sums, batch_size), _shared(passes, together, sums, batch_size)):
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


def _pays(context: Tuple, continuations: list[Tuple]) -> bool:
    n_longer = len({e[:-1] for e in continuations if len(e) > 1})
    return (n_longer - 1) * len(context) >= _WORTH


@dataclass(frozen=True)
class _Ask:
    """Targets, the first of which is predicted at a row's position `start`."""

    row: int
    start: int
    targets: Tuple
    of: tuple[Tuple, Tuple]


def _whole(
    passes: Passes, rest: dict[Tuple, list[Tuple]], sums: dict[tuple[Tuple, Tuple], _Sum], batch_size: int
) -> Iterator[list[tuple[Tuple, Tuple]]]:
    """Each row from its first token on; yields what is finished after each pass."""
    rows: dict[Tuple, list[tuple[int, Tuple, tuple[Tuple, Tuple]]]] = {}
    for context, continuations in rest.items():
        longest = max(continuations, key=len)
        for continuation in continuations:
            # What one token continues is answered by any row of its context.
            fed = context + (longest if len(continuation) == 1 else continuation)[:-1]
            rows.setdefault(fed, []).append((len(context) - 1, continuation, (context, continuation)))
    ordered = sorted(rows, key=len, reverse=True)
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        asks = [_Ask(i, at, targets, of) for i, row in enumerate(batch) for at, targets, of in rows[row]]
        _judge(passes, passes.whole(batch), asks, sums)
        yield [ask.of for ask in asks]


def _shared(
    passes: Passes, rest: dict[Tuple, list[Tuple]], sums: dict[tuple[Tuple, Tuple], _Sum], batch_size: int
) -> Iterator[list[tuple[Tuple, Tuple]]]:
    """Contexts once, then all that follows them; yields what is finished after each batch of contexts."""
    for contexts in _batches(rest, batch_size, passes):
        last_BD, memory = passes.begin(contexts)
        asks = [_Ask(i, 0, e[:1], (c, e)) for i, c in enumerate(contexts) for e in rest[c]]
        _judge(passes, last_BD[:, None], asks, sums)
        rows: dict[tuple[int, Tuple], list[Tuple]] = {}
        for i, context in enumerate(contexts):
            for continuation in rest[context]:
                if len(continuation) > 1:
                    rows.setdefault((i, continuation[:-1]), []).append(continuation)
        ordered = sorted(rows, key=lambda key: len(key[1]), reverse=True)
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            x_BTD = passes.go_on(memory, [i for i, _ in batch], [fed for _, fed in batch])
            later = [_Ask(n, 0, e[1:], (contexts[key[0]], e)) for n, key in enumerate(batch) for e in rows[key]]
            _judge(passes, x_BTD, later, sums)
        yield [ask.of for ask in asks]


def _batches(rest: dict[Tuple, list[Tuple]], batch_size: int, passes: Passes) -> Iterator[list[Tuple]]:
    """Contexts that share a pass, the longest first; of equal length where the model takes no padding. What follows any of
    them, padded like the longest, has positions."""
    batch: list[Tuple] = []
    longest = 0
    for context in sorted(rest, key=len, reverse=True):
        tail = max(map(len, rest[context])) - 1
        is_other = batch and not passes.pads and len(context) != len(batch[0])
        is_beyond = batch and passes.max_tokens is not None and len(batch[0]) + max(longest, tail) > passes.max_tokens
        if len(batch) == batch_size or is_other or is_beyond:
            yield batch
            batch, longest = [], 0
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
