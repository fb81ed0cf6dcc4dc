"""absent: a key that may not be there, `BOS FACT key value … ASK key'` → `NONE`, or its value; half of the items each."""

import numpy as np

from .keys import grid_key_rows, grid_keys
from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, FACT, N_VALUES, NONE, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, 1 + knobs.distractors
    page = Page("absent", knobs, index, tail=1 + h)
    evidence, others = page.places(2 + h, 1, n - 1)
    keys = grid_keys(page.draws, n + 1, h)
    values = [VALUES + v for v in page.draws.distinct(n, N_VALUES)]
    is_there = page.draws.below(2) == 1
    for i, start in enumerate(evidence + others):
        role = "evidence" if not i and is_there else "distractor" if i else ""
        page.put(start, "fact", FACT, keys[i], values[i], role=role)
    page.ask("ask", ASK, keys[0] if is_there else keys[n])
    page.answer(values[0] if is_there else NONE)
    rivals = [NONE, *values]
    # To say NONE always is right in half of the items, and copying in fewer.
    return page.item(floor=1 / 2, rivals=[(v,) for v in rivals], factors={"is_there": is_there})


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, 1 + knobs.distractors
    pages = Pages("absent", knobs, first, n_items, tail=1 + h)
    evidence_BE, others_BO = pages.places(2 + h, 1, n - 1)
    keys = grid_key_rows(pages.draws, n + 1, h)
    values_BN = VALUES + pages.draws.distinct(n, N_VALUES)
    is_there_B = pages.draws.below(2) == 1
    pages.put(np.hstack([evidence_BE, others_BO]), FACT, *(key_BN[:, :n] for key_BN in keys), values_BN)
    pages.ask(ASK, *(np.where(is_there_B, key_BN[:, 0], key_BN[:, n]) for key_BN in keys))
    pages.answer(np.where(is_there_B, values_BN[:, 0], NONE))
    return pages.batch(evidence_BE, others_BO, is_there_B=is_there_B)


TASK = Task(
    name="absent",
    what="says that there is no answer where there is none",
    mirrors="unanswerable questions; abstention",
    signal="not at 1.3M or 10.4M weights after 24.6M tokens; other hardness not measured",
    define=define,
    sample=sample,
    forms={"fact": "The code of {} is {}.", "ask": "The code of {} (or none) is"},
    hardness="tokens of a key; with two or more, the absent one is made of tokens that are there",
    levels=range(1, 5),
    default_hardness=1,
    distractors=7,
)
