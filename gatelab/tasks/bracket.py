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
    turns_BT, kinds_BT = pages.draws.many(n, 2), pages.draws.many(n, N_BRACKETS)
    depth_TB = _walk(turns_BT.T.copy(), h)
    before_BT, after_BT = depth_TB[:-1].T, depth_TB[1:].T
    # By level, each from its first bracket to its last: there every one that closes stands behind the one that it closes.
    order_BT = np.argsort(np.minimum(before_BT, after_BT), axis=1, kind="stable")
    at_BT = order_BT + n * np.arange(n_items)[:, None]
    opens_BT, kinds_BT = (after_BT > before_BT).take(at_BT), kinds_BT.take(at_BT)
    kinds_BT[:, 1:] = np.where(opens_BT[:, 1:], kinds_BT[:, 1:], kinds_BT[:, :-1])
    order_BT += begin
    # What stays open is followed by none that closes: one a level, the outermost first.
    stays_BT = opens_BT.copy()
    stays_BT[:, :-1] &= opens_BT[:, 1:]
    kind_BH, place_BH = (found_BT[stays_BT].reshape(n_items, h)[:, ::-1] for found_BT in (kinds_BT, order_BT))
    kinds_BT += np.where(opens_BT, OPEN, CLOSE)
    pages.put(order_BT, kinds_BT)
    pages.ask(ASK)
    pages.answer(*(CLOSE + kind_BH.T))
    pages.width = 1
    return pages.batch(place_BH, np.zeros((n_items, 0), np.int64))


def _walk(turns_TB: np.ndarray, h: int) -> np.ndarray:
    """How many brackets are open before each step and after the last, [T + 1, B]: the only part that goes step by step, each by
    one look into a table of (step, turn, depth)."""
    n, deepest = len(turns_TB), h + _DEEPER
    depth, left_T11 = np.arange(deepest + 1), np.arange(n, 0, -1)[:, None, None]
    opens = (np.arange(2)[:, None] == 1) | (depth == 0) | (depth == h - left_T11)
    opens &= (depth < deepest) & (depth != h + left_T11)
    table = (depth + np.where(opens, 1, -1)).reshape(-1).astype(np.int8)
    at_TB = (2 * np.arange(n)[:, None] + turns_TB) * len(depth)
    depth_TB = np.zeros((n + 1, turns_TB.shape[1]), table.dtype)
    for at_B, before_B, after_B in zip(at_TB, depth_TB[:-1], depth_TB[1:], strict=True):
        at_B += before_B
        table.take(at_B, out=after_B, mode="wrap")  # which asks for no check
    return depth_TB


TASK = Task(
    name="bracket",
    what="closes what is open, the innermost first",
    mirrors="code; Dyck languages",
    signal="1.3M weights after 24.6M tokens, in part at 10.4M",
    define=define,
    sample=sample,
    forms={"bracket": "{}", "ask": ""},
    hardness="brackets that are open at the end",
    levels=range(1, 13),
    default_hardness=4,
    distractors=None,
    has_depth=False,
)
