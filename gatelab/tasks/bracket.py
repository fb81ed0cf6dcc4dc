"""bracket: the beginning of a text of brackets, `BOS ( [ ] { < > ASK` → `} )`: what closes all that is open.

Notable: it is a Dyck word of four kinds, a random walk that is turned back at its limits and at its end.
"""

import numpy as np

from .page import Page
from .pages import Pages
from .task import Knobs, Task, TaskBatch, TaskError, TaskItem
from .vocabulary import ASK, CLOSE, N_BRACKETS, OPEN

_DEEPER = 4  # the walk goes so much deeper than what is open at its end


def _n_steps(knobs: Knobs) -> int:
    """Brackets of the walk: `hardness` that stay open, and pairs."""
    h, room = knobs.hardness, knobs.length - 1 - knobs.hardness
    most = (room - h) // 2
    n = most if knobs.distractors is None else knobs.distractors
    if room < h or n > most:
        least = 1 + 2 * h + 2 * (knobs.distractors or 0)
        raise TaskError(
            f"bracket: length={knobs.length} has room for {room} brackets, fewer than {h} open ones and "
            f"{knobs.distractors or 0} pairs; take a length of at least {least}"
        )
    return h + 2 * n


def define(knobs: Knobs, index: int) -> TaskItem:
    h, n = knobs.hardness, _n_steps(knobs)
    page = Page("bracket", knobs, index, tail=h)
    begin = page.cursor - n
    turns, kinds = page.draws.many(n, 2), page.draws.many(n, N_BRACKETS)
    stack: list[tuple[int, int]] = []
    closed: list[tuple[int, int]] = []
    for i in range(n):
        left, depth = n - i, len(stack)
        opens = turns[i] == 1
        if depth == 0 or h - depth == left:
            opens = True
        elif depth == h + _DEEPER or depth - h == left:
            opens = False
        if opens:
            stack.append((kinds[i], begin + i))
            page.tokens[begin + i] = OPEN + kinds[i]
        else:
            kind, opened = stack.pop()
            page.tokens[begin + i] = CLOSE + kind
            closed += [(opened, OPEN + kind), (begin + i, CLOSE + kind)]
    for kind, at in reversed(stack):
        page.put(at, "bracket", OPEN + kind, role="evidence")
    for at, token in closed:
        page.put(at, "bracket", token)
    page.ask("ask", ASK)
    page.answer(*(CLOSE + kind for kind, _ in reversed(stack)))
    return page.item(floor=N_BRACKETS**-h, factors={"distances": [page.cursor - at for _, at in reversed(stack)]})


def sample(knobs: Knobs, first: int, n_items: int) -> TaskBatch:
    h, n = knobs.hardness, _n_steps(knobs)
    pages = Pages("bracket", knobs, first, n_items, tail=h)
    begin = pages.cursor - n
    turns_TB, kinds_TB = (pages.draws.many(n, options).T.copy() for options in (2, N_BRACKETS))
    tokens_TB = np.empty((n, n_items), np.int64)
    # One place more than the walk goes deep: what is closed at depth 0 is looked up, and never written.
    kind_DB, place_DB = np.zeros((2, h + _DEEPER + 1, n_items), np.int64)
    kind_flat, place_flat = kind_DB.reshape(-1), place_DB.reshape(-1)
    depth_B, rows = np.zeros(n_items, np.int64), np.arange(n_items)
    for i in range(n):
        left = n - i
        opens_B = turns_TB[i] == 1
        opens_B |= (depth_B == 0) | (depth_B == h - left)
        opens_B &= (depth_B < h + _DEEPER) & (depth_B != h + left)
        depth_B -= ~opens_B
        top_B = depth_B * n_items + rows
        kind_B = np.where(opens_B, kinds_TB[i], kind_flat[top_B])
        kind_flat[top_B], place_flat[top_B] = kind_B, np.where(opens_B, begin + i, place_flat[top_B])
        tokens_TB[i] = kind_B + np.where(opens_B, OPEN, CLOSE)
        depth_B += opens_B
    pages.tokens_BT[:, begin : pages.cursor] = tokens_TB.T
    pages.ask(ASK)
    pages.answer(*(CLOSE + kind_DB[d] for d in reversed(range(h))))
    pages.width = 1
    return pages.batch(place_DB[:h][::-1].T, np.zeros((n_items, 0), np.int64))


TASK = Task(
    name="bracket",
    what="closes what is open, the innermost first",
    mirrors="code; Dyck languages",
    signal="1M weights",
    define=define,
    sample=sample,
    forms={"bracket": "{}", "ask": ""},
    hardness="brackets that are open at the end",
    levels=range(1, 13),
    default_hardness=4,
    distractors=None,
    has_depth=False,
)
