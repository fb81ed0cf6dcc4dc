"""conflict: a fact that is in the weights, and a text that may say otherwise, `BOS … FACT key other … ASK key` → `other`.

Notable: `remembered` is the fact of each key, the same in all items of all seeds; a model learns it from the half of the
items whose text does not say. The other half says something else, and the text is right.
"""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, FACT, KEYS, N_KEYS, N_VALUES, VALUES

_FACTS = 32  # at hardness 1; each level has twice as many, so that each is seen half as often


def remembered(key: int) -> int:
    """The value of a key (offsets in their ranges) that is to be learned by heart; ids say nothing to a model."""
    return (389 * key + 17) % N_VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    n_facts, n = _FACTS << knobs.hardness - 1, 1 + knobs.distractors
    page = Page("conflict", knobs, index, tail=2)
    evidence, others = page.places(3, 1, n - 1)
    key = page.draws.below(n_facts)
    keys = [n_facts + k for k in page.draws.distinct(n, N_KEYS - n_facts)]
    shift = page.draws.many(1, N_VALUES - 1)[0]
    drawn = page.draws.many(n, N_VALUES)
    says = page.draws.below(2) == 1
    memory = VALUES + remembered(key)
    other = VALUES + (remembered(key) + 1 + shift) % N_VALUES
    values = [other, *(VALUES + v for v in drawn[1:])]
    for i, start in enumerate(evidence + others):
        if i or not says:
            page.put(start, "fact", FACT, KEYS + keys[i], VALUES + drawn[i], role="distractor" if i else "")
        else:
            page.put(start, "fact", FACT, KEYS + key, other, role="evidence")
    page.ask("ask", ASK, KEYS + key)
    page.answer(other if says else memory)
    rivals = [memory, *values[1:]] if says else [VALUES + v for v in drawn]
    # To say what was learned always is right in half of the items, and copying in fewer.
    return page.item(floor=1 / 2, rivals=[(v,) for v in rivals], factors={"says": says, "memory": memory})


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    n_facts, n = _FACTS << knobs.hardness - 1, 1 + knobs.distractors
    pages = Pages("conflict", knobs, first, n_items, tail=2)
    evidence_BE, others_BO = pages.places(3, 1, n - 1)
    key_B = pages.draws.below(n_facts)
    keys_BN = n_facts + pages.draws.distinct(n, N_KEYS - n_facts)
    shift_B = pages.draws.below(N_VALUES - 1)
    values_BN = pages.draws.many(n, N_VALUES)
    says_B = pages.draws.below(2) == 1
    memory_B = remembered(key_B)
    other_B = (memory_B + 1 + shift_B) % N_VALUES
    keys_BN[:, 0] = np.where(says_B, key_B, keys_BN[:, 0])
    values_BN[:, 0] = np.where(says_B, other_B, values_BN[:, 0])
    pages.put(np.hstack([evidence_BE, others_BO]), FACT, KEYS + keys_BN, VALUES + values_BN)
    pages.ask(ASK, KEYS + key_B)
    pages.answer(VALUES + np.where(says_B, other_B, memory_B))
    return pages.batch(evidence_BE, others_BO, is_there_B=says_B)


TASK = Task(
    name="conflict",
    what="believes the text where it contradicts the weights",
    mirrors="knowledge conflicts; faithfulness to the context",
    signal="1.3M weights after 24.6M tokens of it, not at 10.4M",
    define=define,
    sample=sample,
    forms={"fact": "The code of {} is {}.", "ask": "The code of {} is"},
    hardness="facts to know: 32, 64, 128, …",
    levels=range(1, 6),
    default_hardness=1,
    distractors=3,
)
