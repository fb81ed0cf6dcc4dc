"""associate: a key asked by another name, `BOS FACT key value … ASK name` → `value`, none of the fact's tokens in the question.

Notable: the names are a table that is the same in all items of all seeds, and must be learned. Hops are tables one
behind the other: the names of names.
"""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, FACT, KEYS, N_VALUES, VALUES

_NAMED = 256  # keys that have another name; ids KEYS + 256 · hops and following are the names


def name_of(key: int, hops: int) -> int:
    """The other name of a key (offsets in the keys' range) after so many hops; ids say nothing to a model."""
    return hops * _NAMED + (key * 77**hops + 91) % _NAMED


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, 1 + knobs.distractors
    page = Page("associate", knobs, index, tail=2)
    evidence, others = page.places(3, 1, n - 1)
    keys = page.draws.distinct(n, _NAMED)
    values = [VALUES + v for v in page.draws.distinct(n, N_VALUES)]
    for i, start in enumerate(evidence + others):
        page.put(start, "fact", FACT, KEYS + keys[i], values[i], role="distractor" if i else "evidence")
    page.ask("ask", ASK, KEYS + name_of(keys[0], h))
    page.answer(values[0])
    return page.item(floor=1 / n, rivals=[(v,) for v in values[1:]])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, 1 + knobs.distractors
    pages = Pages("associate", knobs, first, n_items, tail=2)
    evidence_BE, others_BO = pages.places(3, 1, n - 1)
    keys_BN = pages.draws.distinct(n, _NAMED)
    values_BN = VALUES + pages.draws.distinct(n, N_VALUES)
    pages.put(np.hstack([evidence_BE, others_BO]), FACT, KEYS + keys_BN, values_BN)
    pages.ask(ASK, KEYS + name_of(keys_BN[:, 0], h))
    pages.answer(values_BN[:, 0])
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="associate",
    what="finds a fact by what the words mean",
    mirrors="NoLiMa (arXiv 2502.05167)",
    signal="1.3M weights in two seeds of three after 24.6M tokens of it, not at 10.4M",
    define=define,
    sample=sample,
    forms={"fact": "The code of {} is {}.", "ask": "The code of what {} means is"},
    hardness="hops from the key to the name that is asked",
    levels=range(1, 4),
    default_hardness=1,
    distractors=3,
)
