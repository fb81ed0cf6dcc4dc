"""select: marked sentences among noise, `BOS … MARK a b c d … ASK` → `a b c d …`, in the text's order.

Notable: it stands for a summary, the part of one that can be scored without a judge. Distractors carry another mark.
"""

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskItem
from .vocabulary import ASK, KEYS, MARK, N_KEYS, OTHER

_WORDS = 4


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, knobs.distractors
    page = Page("select", knobs, index, tail=_WORDS * h)
    evidence, others = page.places(1 + _WORDS, h, n)
    drawn = [KEYS + k for k in page.draws.many((h + n) * _WORDS, N_KEYS)]
    sentences = [tuple(drawn[i * _WORDS : (i + 1) * _WORDS]) for i in range(h + n)]
    for i, start in enumerate(evidence + others):
        if i < h:
            page.put(start, "marked", MARK, sentences[i], role="evidence")
        else:
            page.put(start, "other", OTHER, sentences[i], role="distractor")
    page.ask("ask", ASK)
    page.answer(*(t for s in sentences[:h] for t in s))
    right = sentences[:h]
    rivals = [(*right[:i], s, *right[i + 1 :]) for i in range(h) for s in sentences[h:]]
    swapped = [[*right[:i], right[i + 1], right[i], *right[i + 2 :]] for i in range(h - 1)]
    floor = 1.0
    for i in range(h):
        floor /= h + n - i
    return page.item(floor=floor, rivals=[tuple(t for s in r for t in s) for r in [*swapped, *rivals]])


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, knobs.distractors
    pages = Pages("select", knobs, first, n_items, tail=_WORDS * h)
    evidence_BE, others_BO = pages.places(1 + _WORDS, h, n)
    words_BNW = KEYS + pages.draws.many((h + n) * _WORDS, N_KEYS).reshape(n_items, h + n, _WORDS)
    columns = words_BNW.transpose(2, 0, 1)
    pages.put(evidence_BE, MARK, *(c[:, :h] for c in columns))
    pages.put(others_BO, OTHER, *(c[:, h:] for c in columns))
    pages.ask(ASK)
    pages.answer(*words_BNW[:, :h].reshape(n_items, -1).T)
    return pages.batch(evidence_BE, others_BO)


TASK = Task(
    name="select",
    what="repeats the marked sentences and nothing else",
    mirrors="summaries (QMSum, GovReport), as far as a summary is a selection",
    signal="1.3M and 10.4M weights after 24.6M tokens",
    define=define,
    sample=sample,
    forms={"marked": "Important: {}.", "other": "Unimportant: {}.", "ask": "All that is important:"},
    hardness="marked sentences",
    levels=range(1, 9),
    default_hardness=3,
    distractors=3,
)
