"""multikey: a haystack made of pairs, `BOS key value key value … ASK key` → `value`."""

import numpy as np

from .keys import grid_key_rows, grid_keys
from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, N_VALUES, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    h = knobs.hardness
    page = Page("multikey", knobs, index, tail=1 + h)
    evidence, others = page.places(h + 1, 1, knobs.distractors)
    starts = evidence + others
    keys = grid_keys(page.draws, len(starts), h)
    values = [VALUES + v for v in page.draws.many(len(starts), N_VALUES)]
    for i, start in enumerate(starts):
        page.put(start, "pair", keys[i], values[i], role="distractor" if i else "evidence")
    page.ask("ask", ASK, keys[0])
    page.answer(values[0])
    return page.item(
        floor=1 / len(starts), rivals=[(v,) for v in values[1:]], factors={"neighbours": _beside(starts, values)}
    )


def _beside(starts: list[int], values: list[int]) -> list[int]:
    """The values of the pairs on either side of the first."""
    width = min(abs(s - starts[0]) for s in starts[1:]) if len(starts) > 1 else 0
    return [v for s, v in zip(starts[1:], values[1:], strict=True) if abs(s - starts[0]) == width]


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h = knobs.hardness
    pages = Pages("multikey", knobs, first, n_items, tail=1 + h)
    evidence_BE, others_BO = pages.places(h + 1, 1, knobs.distractors)
    n = 1 + others_BO.shape[1]
    keys = grid_key_rows(pages.draws, n, h)
    values_BN = VALUES + pages.draws.many(n, N_VALUES)
    pages.put(np.hstack([evidence_BE, others_BO]), *keys, values_BN)
    pages.ask(ASK, *(key_BN[:, 0] for key_BN in keys))
    pages.answer(values_BN[:, 0])
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="multikey",
    what="finds one pair where everything else is pairs too",
    mirrors="RULER niah_multikey_2 and 3; key-value retrieval of Lost in the Middle (arXiv 2307.03172)",
    signal="not at 1.3M or 10.4M weights after 24.6M tokens; other hardness not measured",
    define=define,
    sample=sample,
    forms={"pair": "{} is {}.", "ask": "{} is"},
    hardness="tokens of a key; with two or more, keys share tokens",
    levels=range(1, 5),
    default_hardness=1,
    distractors=None,
)
