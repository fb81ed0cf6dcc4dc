"""multiquery: several keys asked one after the other, `BOS FACT k1 v1 … ASK k2 v2 ASK k1 v1`, each value an answer."""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, FACT, KEYS, N_KEYS, N_VALUES, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, knobs.hardness + knobs.distractors
    page = Page("multiquery", knobs, index, tail=3 * h - 1)
    evidence, others = page.places(3, h, n - h)
    keys = [KEYS + k for k in page.draws.distinct(n, N_KEYS)]
    values = [VALUES + v for v in page.draws.distinct(n, N_VALUES)]
    for i, start in enumerate(evidence + others):
        page.put(start, "fact", FACT, keys[i], values[i], role="evidence" if i < h else "distractor")
    order = page.draws.order(h)
    for i in order:
        page.ask("ask", ASK, keys[i])
        page.answer(values[i])
    right = tuple(values[i] for i in order)
    return page.item(floor=n**-h, rivals=[(*right[:-1], v) for v in values if v != right[-1]])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, knobs.hardness + knobs.distractors
    pages = Pages("multiquery", knobs, first, n_items, tail=3 * h - 1)
    evidence_BE, others_BO = pages.places(3, h, n - h)
    keys_BN = KEYS + pages.draws.distinct(n, N_KEYS)
    values_BN = VALUES + pages.draws.distinct(n, N_VALUES)
    pages.put(np.hstack([evidence_BE, others_BO]), FACT, keys_BN, values_BN)
    rows = np.arange(n_items)
    for i_B in pages.draws.order(h).T:
        pages.ask(ASK, keys_BN[rows, i_B])
        pages.answer(values_BN[rows, i_B])
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="multiquery",
    what="answers several questions about one text",
    mirrors="RULER niah_multiquery",
    signal="not at 1.3M or 10.4M weights after 24.6M tokens; other hardness not measured",
    define=define,
    sample=sample,
    forms={"fact": "The code of {} is {}.", "ask": "The code of {} is"},
    hardness="keys that are asked",
    levels=range(2, 9),
    default_hardness=4,
    distractors=4,
    answer="set",
)
