"""find: functions and what they do, `BOS DEF name w1 w2 w3 … ASK w3 w2 w1` → `name`: the one that does all of it.

Notable: functions share their words, so no word alone says which is meant; the name stands before its description.
"""

import numpy as np

from .keys import grid_key_rows, grid_keys
from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, DEF, N_VALUES, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, 1 + knobs.distractors
    page = Page("find", knobs, index, tail=1 + h)
    evidence, others = page.places(2 + h, 1, n - 1)
    does = grid_keys(page.draws, n, h)
    names = [VALUES + v for v in page.draws.distinct(n, N_VALUES)]
    for i, start in enumerate(evidence + others):
        page.put(start, "function", DEF, names[i], does[i], role="distractor" if i else "evidence")
    page.ask("ask", ASK, does[0][::-1])
    page.answer(names[0])
    return page.item(floor=1 / n, rivals=[(name,) for name in names[1:]])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, 1 + knobs.distractors
    pages = Pages("find", knobs, first, n_items, tail=1 + h)
    evidence_BE, others_BO = pages.places(2 + h, 1, n - 1)
    does = grid_key_rows(pages.draws, n, h)
    names_BN = VALUES + pages.draws.distinct(n, N_VALUES)
    pages.put(np.hstack([evidence_BE, others_BO]), DEF, names_BN, *does)
    pages.ask(ASK, *(word_BN[:, 0] for word_BN in reversed(does)))
    pages.answer(names_BN[:, 0])
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="find",
    what="finds the function that a description means",
    mirrors="RepoQA's needle functions",
    signal="not at 1.3M or 10.4M weights after 24.6M tokens; other hardness not measured",
    define=define,
    sample=sample,
    forms={"function": "Function {} does {}.", "ask": "The function that does {} is"},
    hardness="words of a description",
    levels=range(1, 6),
    default_hardness=3,
    distractors=7,
)
