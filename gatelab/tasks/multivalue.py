"""multivalue: one key with several values, `BOS FACT key v1 … FACT key v2 … ASK key` → `v1 v2 …` in the text's order."""

from math import perm

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, FACT, KEYS, N_KEYS, N_VALUES, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, knobs.distractors
    page = Page("multivalue", knobs, index, tail=1 + h)
    evidence, others = page.places(3, h, n)
    keys = [KEYS + k for k in page.draws.distinct(1 + n, N_KEYS)]
    values = [VALUES + v for v in page.draws.distinct(h + n, N_VALUES)]
    for i, start in enumerate(evidence):
        page.put(start, "fact", FACT, keys[0], values[i], role="evidence")
    for i, start in enumerate(others):
        page.put(start, "fact", FACT, keys[1 + i], values[h + i], role="distractor")
    page.ask("ask", ASK, keys[0])
    page.answer(*values[:h])
    right = tuple(values[:h])
    rivals = [(*right[:i], value, *right[i + 1 :]) for i, value in zip(range(h), values[h:], strict=False)]
    return page.item(floor=1 / perm(h + n, h), rivals=rivals)


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, knobs.distractors
    pages = Pages("multivalue", knobs, first, n_items, tail=1 + h)
    evidence_BE, others_BO = pages.places(3, h, n)
    keys_BN = KEYS + pages.draws.distinct(1 + n, N_KEYS)
    values_BN = VALUES + pages.draws.distinct(h + n, N_VALUES)
    pages.put(np.hstack([evidence_BE, others_BO]), FACT, keys_BN[:, [0] * h + list(range(1, 1 + n))], values_BN)
    pages.ask(ASK, keys_BN[:, 0])
    pages.answer(*values_BN[:, :h].T)
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="multivalue",
    what="gathers all values of one key",
    mirrors="RULER niah_multivalue",
    signal="not at 1.3M or 10.4M weights after 24.6M tokens; other hardness not measured",
    define=define,
    sample=sample,
    forms={"fact": "A code of {} is {}.", "ask": "All codes of {} are"},
    hardness="values of the key",
    levels=range(2, 9),
    default_hardness=4,
    distractors=4,
    answer="set",
)
