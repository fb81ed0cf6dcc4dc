"""needle: `BOS noise FACT key value noise ASK key` → `value`; distractors are facts of other keys."""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, FACT, KEYS, N_KEYS, N_VALUES, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, 1 + knobs.distractors
    page = Page("needle", knobs, index, tail=1 + h)
    evidence, others = page.places(2 + h, 1, n - 1)
    keys = [KEYS + k for k in page.draws.distinct(n, N_KEYS)]
    drawn = [VALUES + v for v in page.draws.many(n * h, N_VALUES)]
    values = [tuple(drawn[i * h : (i + 1) * h]) for i in range(n)]
    for i, start in enumerate(evidence + others):
        page.put(start, "fact", FACT, keys[i], values[i], role="distractor" if i else "evidence")
    page.ask("ask", ASK, keys[0])
    page.answer(*values[0])
    return page.item(floor=1 / n, rivals=values[1:])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, 1 + knobs.distractors
    pages = Pages("needle", knobs, first, n_items, tail=1 + h)
    evidence_BE, others_BO = pages.places(2 + h, 1, n - 1)
    keys_BN = KEYS + pages.draws.distinct(n, N_KEYS)
    values_BNH = VALUES + pages.draws.many(n * h, N_VALUES).reshape(n_items, n, h)
    pages.put(np.hstack([evidence_BE, others_BO]), FACT, keys_BN, *values_BNH.transpose(2, 0, 1))
    pages.ask(ASK, keys_BN[:, 0])
    pages.answer(*values_BNH[:, 0].T)
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="needle",
    what="finds one fact in a long text, whatever its depth",
    mirrors="the needle test; RULER niah_single (arXiv 2404.06654)",
    signal="1.3M and 10.4M weights after 24.6M tokens",
    define=define,
    sample=sample,
    forms={"fact": "The code of {} is {}.", "ask": "The code of {} is"},
    hardness="tokens of the value",
    levels=range(1, 9),
    default_hardness=1,
    distractors=0,
)
