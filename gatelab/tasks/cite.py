"""cite: numbered documents of two facts each, `BOS DOC 7 FACT k v FACT k' v' … ASK k` → `v 7`: the value, then where it stands.

Notable: several documents may say the same; all of their numbers are asked then, in the text's order. Numbers are in no
order, so that they can be read but not counted.
"""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, DOC, FACT, KEYS, N_KEYS, N_NUMBERS, N_VALUES, NUMBERS, VALUES

_WIDTH = 8


def define(knobs: Knobs, index: int) -> TaskItem:
    g, n = knobs.hardness, knobs.hardness + knobs.distractors
    page = Page("cite", knobs, index, tail=2 + g)
    evidence, others = page.places(_WIDTH, g, n - g)
    numbers = [NUMBERS + d for d in page.draws.distinct(n, N_NUMBERS)]
    keys = [KEYS + k for k in page.draws.distinct(2 * n, N_KEYS)]
    values = [VALUES + v for v in page.draws.many(2 * n, N_VALUES)]
    second = page.draws.many(n, 2)
    for i, start in enumerate(evidence + others):
        facts = [(keys[2 * i], values[2 * i]), (keys[2 * i + 1], values[2 * i + 1])]
        if i < g:
            facts[second[i]] = keys[0], values[0]
            facts[1 - second[i]] = keys[2 * i + 1], values[2 * i + 1]
        (k, v), (k2, v2) = facts
        page.put(
            start, "document", DOC, numbers[i], FACT, k, v, FACT, k2, v2, role="evidence" if i < g else "distractor"
        )
    page.ask("ask", ASK, keys[0])
    page.answer(values[0], *numbers[:g])
    right = (values[0], *numbers[:g])
    rivals = [(*right[:-1], d) for d in numbers[g:]] + [(v, *right[1:]) for v in values[1:]]
    return page.item(floor=1 / ((2 * n - g + 1) * n**g), rivals=rivals)


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    g, n = knobs.hardness, knobs.hardness + knobs.distractors
    pages = Pages("cite", knobs, first, n_items, tail=2 + g)
    evidence_BE, others_BO = pages.places(_WIDTH, g, n - g)
    numbers_BN = NUMBERS + pages.draws.distinct(n, N_NUMBERS)
    keys_BN2 = KEYS + pages.draws.distinct(2 * n, N_KEYS).reshape(n_items, n, 2)
    values_BN2 = VALUES + pages.draws.many(2 * n, N_VALUES).reshape(n_items, n, 2)
    is_second_BG1 = pages.draws.many(n, 2)[:, :g, None] == 1
    for facts_BN2 in (keys_BN2, values_BN2):
        facts_BN2[:, :g, 0] = facts_BN2[:, :1, 0]
        facts_BN2[:, :g] = np.where(is_second_BG1, facts_BN2[:, :g, ::-1], facts_BN2[:, :g])
    (k, k2), (v, v2) = keys_BN2.transpose(2, 0, 1), values_BN2.transpose(2, 0, 1)
    pages.put(np.hstack([evidence_BE, others_BO]), DOC, numbers_BN, FACT, k, v, FACT, k2, v2)
    asked = is_second_BG1[:, 0, 0].astype(np.int64)
    rows = np.arange(n_items)
    pages.ask(ASK, keys_BN2[rows, 0, asked])
    pages.answer(values_BN2[rows, 0, asked], *numbers_BN[:, :g].T)
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="cite",
    what="answers and says which document the answer is from",
    mirrors="L-CiteEval with gold documents (arXiv 2410.02115)",
    signal="not with eight documents at 1.3M or 10.4M weights after 24.6M tokens, nor with two at 1.3M after 12.3M",
    define=define,
    sample=sample,
    forms={
        "document": "Document {}: the code of {} is {}; the code of {} is {}.",
        "ask": "The code of {}, and the documents that say it:",
    },
    hardness="documents that say it",
    levels=range(1, 4),
    default_hardness=1,
    distractors=7,
    answer="cite",
)
