"""mqar: pairs first, then every key once among noise, `BOS k1 v1 k2 v2 … noise k2 noise k1 noise`; after a key, its value.

Notable: as in Zoology the text does not go on with the value but with noise, so values that were asked already cannot
be ruled out, and blind copying scores 1/n. How soon a key comes again follows a power law.
"""

from bisect import bisect_right
from functools import lru_cache

import numpy as np

from .page import Page, n_cells_of
from .pages import Pages
from .task import Knobs, Piece, Task, TaskBatch, TaskItem
from .vocabulary import KEYS, N_KEYS, N_VALUES, VALUES

# Exponent a of P(gap) ∝ gap^(a − 1), by hardness: Zoology's default first, then towards uniform (arXiv 2312.04927).
_EXPONENT = {1: 0.01, 2: 0.5, 3: 1.0}


@lru_cache(maxsize=64)
def gap_table(n_gaps: int, hardness: int) -> tuple[int, ...]:
    """Ends of the intervals of 32-bit numbers that stand for gaps 0, 1, …"""
    weights = [(gap + 1) ** (_EXPONENT[hardness] - 1) for gap in range(n_gaps)]
    total, sums, running = sum(weights), [], 0.0
    for weight in weights[:-1]:
        running += weight
        sums.append(int(running / total * 2**32))
    return tuple(sums)


def _rest(knobs: Knobs) -> tuple[int, int, int]:
    """(pairs, where the noise begins, its length)."""
    n = 1 + knobs.distractors
    n_cells_of("mqar", knobs, n, 2, n)
    return n, 1 + 2 * n, knobs.length - 1 - 2 * n


def define(knobs: Knobs, index: int) -> TaskItem:
    n, begin, room = _rest(knobs)
    page = Page("mqar", knobs, index, tail=0)
    keys = [KEYS + k for k in page.draws.distinct(n, N_KEYS)]
    values = [VALUES + v for v in page.draws.many(n, N_VALUES)]
    for i in range(n):
        page.put(1 + 2 * i, "pair", keys[i], values[i], role="evidence")
    table = gap_table(room, knobs.hardness)
    gaps = sorted(bisect_right(table, w) for w in page.draws.words(n))
    where = []
    for i, gap in enumerate(gaps):  # gaps that fall together, or too late, make room for one another
        where.append(min(max(gap, where[-1] + 1 if where else 0), room - n + i))
    for i, at in zip(page.draws.order(n), where, strict=True):
        page.cursor = begin + at
        page.ask("ask", keys[i])
        page.asked.append(page.cursor - 1)
        page.answers.append(values[i])
        page.pieces.append(
            Piece(page.cursor, page.cursor, "", ((values[i],),), "answer")
        )  # text has no other way to say it
    return page.item(floor=n**-n, rivals=[(*page.answers[:-1], v) for v in values])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    n, begin, room = _rest(knobs)
    pages = Pages("mqar", knobs, first, n_items, tail=0)
    keys_BN = KEYS + pages.draws.distinct(n, N_KEYS)
    values_BN = VALUES + pages.draws.many(n, N_VALUES)
    starts_BN = np.broadcast_to(1 + 2 * np.arange(n), (n_items, n))
    pages.put(starts_BN, keys_BN, values_BN)
    table = np.array(gap_table(room, knobs.hardness), np.uint64)
    gaps_BN = np.sort(np.searchsorted(table, pages.draws.words(n), side="right"), axis=1)
    apart_BN = np.maximum.accumulate(gaps_BN - np.arange(n), axis=1) + np.arange(n)
    asked_BN = begin + np.minimum(apart_BN, room - n + np.arange(n))
    order_BN = pages.draws.order(n)
    pages.put(asked_BN, np.take_along_axis(keys_BN, order_BN, axis=1))
    pages.width = 2
    none_B0 = np.zeros((n_items, 0), np.int64)
    return TaskBatch(
        tokens_BT=pages.tokens_BT,
        asked_BA=asked_BN,
        answer_BA=np.take_along_axis(values_BN, order_BN, axis=1),
        evidence_BE2=pages.spans(starts_BN),
        distractors_BE2=pages.spans(none_B0),
        depth_B=np.full(n_items, np.nan),
    )


TASK = Task(
    name="mqar",
    what="recalls many pairs at once",
    mirrors="multi-query associative recall of Zoology (arXiv 2312.04927)",
    signal="not with 16 pairs at 1.3M or 10.4M weights after 24.6M tokens, nor with four at 1.3M after 12.3M",
    define=define,
    sample=sample,
    forms={"pair": "{} is {}.", "ask": "{} is"},
    hardness="1: keys come again soon (a = 0.01), 2: a = 0.5, 3: anywhere (a = 1)",
    levels=range(1, 4),
    default_hardness=1,
    distractors=15,
    answer="each",
    has_depth=False,
    loads=(3, 7, 15, 31, 63),
)
