"""aggregate: which words are the most frequent? `BOS w w' w w'' … ASK` → the frequent words, the most frequent first."""

from math import perm

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskError, TaskItem
from .vocabulary import ASK, KEYS, N_KEYS


def counts(knobs: Knobs) -> list[int]:
    """How often each word comes: `hardness` frequent ones, each oftener than the next, then the others, all as often.

    Raises:
        TaskError: when there is no room for a difference.
    """
    h, n = knobs.hardness, knobs.distractors
    room = knobs.length - 1 - h
    often = room // (n + 2 * h)
    step = max(1, often // h)
    left = room - n * often
    least, extra = divmod(left - step * h * (h - 1) // 2, h)
    if often < 1 or least <= often:
        raise TaskError(
            f"aggregate: length={knobs.length} has {room} places for {h} frequent and {n} other words, too few for a "
            f"difference; raise length, or lower distractors or hardness"
        )
    return [least + step * (h - 1 - i) + (i < extra) for i in range(h)] + [often] * n


def define(knobs: Knobs, index: int) -> TaskItem:
    h = knobs.hardness
    page = Page("aggregate", knobs, index, tail=h)
    each = counts(knobs)
    words = [KEYS + k for k in page.draws.distinct(len(each), N_KEYS)]
    places = page.draws.order(sum(each))
    start = 0
    for i, count in enumerate(each):
        for at in places[start : start + count]:
            page.put(1 + at, "word", words[i], role="evidence" if i < h else "distractor")
        start += count
    page.ask("ask", ASK)
    page.answer(*words[:h])
    right = tuple(words[:h])
    return page.item(floor=1 / perm(len(each), h), rivals=[(*right[:-1], w) for w in words[h:]])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h = knobs.hardness
    pages = Pages("aggregate", knobs, first, n_items, tail=h)
    each = counts(knobs)
    words_BN = KEYS + pages.draws.distinct(len(each), N_KEYS)
    places_BT = 1 + pages.draws.order(sum(each))
    pages.put(places_BT, np.repeat(words_BN, each, axis=1))
    pages.ask(ASK)
    pages.answer(*words_BN[:, :h].T)
    pages.width = 1
    n_frequent = sum(each[:h])
    return pages.batch(places_BT[:, :n_frequent], places_BT[:, n_frequent:])


TASK = Task(
    name="aggregate",
    what="counts words all over the text; its evidence has no one place",
    mirrors="RULER common and frequent words (cwe, fwe)",
    signal="in part at 1.3M and 10.4M weights after 24.6M tokens",
    define=define,
    sample=sample,
    forms={"word": "{}", "ask": "are words, of which the most frequent are"},
    hardness="words that are asked",
    levels=range(1, 9),
    default_hardness=3,
    distractors=20,
    answer="set",
    has_depth=False,
)
