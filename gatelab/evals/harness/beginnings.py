"""Long beginnings that several rows of tokens share (worked examples, instructions), so that each is read once.

Notable: rows in lexicographic order share most with their neighbours, so what they begin with is a tree of intervals. A row goes on
from one beginning: all rows of an interval have one, or those of the intervals within it have theirs, whichever saves more tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .passes import WORTH, Ids, Passes

Tuple = tuple[int, ...]
# Bytes of keys and values that are copied for the rows of a pass; a single row may take more.
HELD = 2**32


@dataclass(frozen=True)
class Family:
    """Rows that go on from the first `n_shared` tokens of any of them; 0: from nothing."""

    n_shared: int
    members: tuple[Tuple, ...]


def families(n_reads: Mapping[Tuple, int], *, worth: int | None = WORTH) -> list[Family]:
    """Each row in one family; those of the longest beginnings first, and last what shares none.

    Args:
        n_reads: rows of one token or more, each with how often it would be read. A beginning leaves every row its last token.
        worth: tokens that a beginning has to save; None: there are to be none.
    """
    rows = sorted(n_reads)
    found = [] if worth is None else _best(rows, n_reads, worth)
    shared = [Family(n, tuple(rows[first:end])) for n, first, end in found]
    taken = {row for family in shared for row in family.members}
    alone = tuple(row for row in rows if row not in taken)
    ordered = sorted(shared, key=lambda f: (-f.n_shared, f.members))
    return [*ordered, Family(0, alone)] if alone else ordered


@dataclass
class _Interval:
    """Rows from `first` on that share `n_shared` tokens; `saved` is the most that beginnings within it save, `chosen` these."""

    n_shared: int
    first: int
    saved: int
    chosen: list[tuple[int, int, int]]


def _best(rows: list[Tuple], n_reads: Mapping[Tuple, int], worth: int) -> list[tuple[int, int, int]]:
    """(shared tokens, first row, end) of the beginnings that are chosen, by intervals that close from left to right."""
    reads = [0]
    for row in rows:
        reads.append(reads[-1] + n_reads[row])
    open_ = [_Interval(0, 0, 0, [])]
    for end in range(1, len(rows) + 1):
        n_shared = _common(rows[end - 1], rows[end]) if end < len(rows) else 0
        last = _closed(len(rows[end - 1]) - 1, end - 1, end, reads, worth, _Interval(0, end - 1, 0, []))
        while True:
            if open_[-1].n_shared < n_shared:
                open_.append(_Interval(n_shared, last.first, last.saved, last.chosen))
                break
            top = open_[-1]
            top.saved += last.saved
            top.chosen.extend(last.chosen)
            if top.n_shared == n_shared:
                break
            open_.pop()
            last = _closed(top.n_shared, top.first, end, reads, worth, top)
    return open_[0].chosen


def _closed(n_shared: int, first: int, end: int, reads: list[int], worth: int, parts: _Interval) -> _Interval:
    """One beginning for all rows, or those within, whichever saves more."""
    saved = (reads[end] - reads[first] - 1) * n_shared - worth
    return parts if saved <= parts.saved else _Interval(n_shared, first, saved, [(n_shared, first, end)])


def _common(a: Tuple, b: Tuple) -> int:
    """How many first tokens are equal, one being left of each."""
    low, high = 0, min(len(a), len(b)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def at_once(passes: Passes, n_tokens: int, batch_size: int) -> int:
    """Rows of so many tokens whose keys and values are held together: `batch_size`, or what HELD bytes allow, one at least."""
    return max(1, min(batch_size, HELD // max(1, passes.token_bytes * n_tokens)))


@dataclass(frozen=True)
class Batch:
    """Prompts by their numbers, and what has been read of a beginning that they share, or None."""

    numbers: list[int]
    beginning: Any = None


def batches(passes: Passes, prompts: Sequence[Ids], *, batch_size: int, n_new: int) -> Iterator[Batch]:
    """Prompts that share a pass and `n_new` steps, the longest first; of one length where the model takes no padding. What
    several begin with is read once, and let go with the last of them."""
    numbers: dict[Tuple, list[int]] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(tuple(prompt), []).append(number)
    n_reads = {row: len(of) for row, of in numbers.items()}
    # A family has batches of its own, whose steps may come on top.
    worth = passes.worth + passes.step * n_new if passes.shares and passes.resumes else None
    for family in families(n_reads, worth=worth):
        n_shared, rows = family.n_shared, sorted(family.members, key=lambda row: (len(row), row), reverse=True)
        beginning = passes.begin([rows[0][:n_shared]])[1] if n_shared else None
        pads = passes.pads_behind if n_shared else passes.pads
        most, batch = batch_size, []
        for row, number in ((r, n) for r in rows for n in numbers[r]):
            if batch and (len(batch) == most or not (pads or len(row) == len(prompts[batch[0]]))):
                yield Batch(batch, beginning)
                batch = []
            if n_shared and not batch:
                most = at_once(passes, len(row) + n_new, batch_size)
            batch.append(number)
        yield Batch(batch, beginning)
