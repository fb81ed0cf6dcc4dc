"""track: chains of assignments, `SET a value … SET b a … SET c b … ASK c` → `value`; distractors are other chains."""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, KEYS, N_KEYS, N_VALUES, SET, VALUES


def define(knobs: Knobs, index: int) -> TaskItem:
    links, chains = knobs.hardness + 1, 1 + knobs.distractors
    page = Page("track", knobs, index, tail=2)
    evidence, others = page.places(3, links, links * (chains - 1))
    names = [KEYS + k for k in page.draws.distinct(links * chains, N_KEYS)]
    values = [VALUES + v for v in page.draws.distinct(chains, N_VALUES)]
    starts = [evidence, *(sorted(others[c * links : (c + 1) * links]) for c in range(chains - 1))]
    for c in range(chains):
        for i, start in enumerate(starts[c]):
            name = names[c * links + i]
            said = names[c * links + i - 1] if i else values[c]
            page.put(start, "set", SET, name, said, role="distractor" if c else "evidence")
    page.ask("ask", ASK, names[links - 1])
    page.answer(values[0])
    return page.item(floor=1 / chains, rivals=[(v,) for v in values[1:]])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    links, chains = knobs.hardness + 1, 1 + knobs.distractors
    pages = Pages("track", knobs, first, n_items, tail=2)
    evidence_BE, others_BO = pages.places(3, links, links * (chains - 1))
    names_BCN = KEYS + pages.draws.distinct(links * chains, N_KEYS).reshape(n_items, chains, links)
    values_BC = VALUES + pages.draws.distinct(chains, N_VALUES)
    others_BO = np.sort(others_BO.reshape(n_items, chains - 1, links), axis=2).reshape(n_items, -1)
    said_BCN = np.concatenate([values_BC[:, :, None], names_BCN[:, :, :-1]], axis=2)
    starts_BN = np.hstack([evidence_BE, others_BO])
    pages.put(starts_BN, SET, names_BCN.reshape(n_items, -1), said_BCN.reshape(n_items, -1))
    pages.ask(ASK, names_BCN[:, 0, -1])
    pages.answer(values_BC[:, 0])
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="track",
    what="follows a value through assignments",
    mirrors="RULER variable tracking (vt)",
    signal="not with two hops at 1.3M or 10.4M weights after 24.6M tokens, nor with one hop and two chains at 1.3M after 12.3M",
    define=define,
    sample=sample,
    forms={"set": "Let {} = {}.", "ask": "So {} ="},
    hardness="hops from a name to a name",
    levels=range(1, 9),
    default_hardness=2,
    distractors=3,
)
