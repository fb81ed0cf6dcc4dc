"""identifier: which variable holds a value now? `BOS DEF value old … DEF value new … ASK value` → `new`: the latest one.

Notable: the rivals are names that held the same value before, and so the place decides, as scopes do in code.
"""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, DEF, KEYS, N_KEYS, N_VALUES, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, 1 + knobs.hardness + knobs.distractors
    page = Page("identifier", knobs, index, tail=2)
    same, others = page.places(3, 1 + h, n - 1 - h)
    names = [KEYS + k for k in page.draws.distinct(n, N_KEYS)]
    values = [VALUES + v for v in page.draws.distinct(n - h, N_VALUES)]
    for i, start in enumerate(same):
        page.put(start, "set", DEF, values[0], names[i], role="evidence" if i == h else "distractor")
    for i, start in enumerate(others):
        page.put(start, "set", DEF, values[1 + i], names[1 + h + i], role="distractor")
    page.ask("ask", ASK, values[0])
    page.answer(names[h])
    return page.item(floor=1 / n, rivals=[(name,) for name in names[:h] + names[h + 1 :]])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, 1 + knobs.hardness + knobs.distractors
    pages = Pages("identifier", knobs, first, n_items, tail=2)
    same_BE, others_BO = pages.places(3, 1 + h, n - 1 - h)
    names_BN = KEYS + pages.draws.distinct(n, N_KEYS)
    values_BN = (VALUES + pages.draws.distinct(n - h, N_VALUES))[:, [0] * h + list(range(n - h))]
    starts_BN = np.hstack([same_BE, others_BO])
    pages.put(starts_BN, DEF, values_BN, names_BN)
    pages.ask(ASK, values_BN[:, 0])
    pages.answer(names_BN[:, h])
    return pages.batch(starts_BN[:, h : h + 1], np.delete(starts_BN, h, axis=1))


TASK = Task(
    name="identifier",
    what="takes the latest of the names that fit",
    mirrors="code completion over a long file (LCC, RepoBench)",
    signal="not at 1.3M or 10.4M weights after 24.6M tokens; other hardness not measured",
    define=define,
    sample=sample,
    forms={"set": "{1} = {0}", "ask": "assert {0} =="},
    hardness="earlier names of the same value",
    levels=range(1, 9),
    default_hardness=1,
    distractors=6,
    join="\n",
    noise="# {}",
)
