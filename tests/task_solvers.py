"""A solver of each task that reads the tokens alone, as a model does: written from what docs/tasks.md says, by other means
than the generators. Each gives the token after every position that is asked."""

from collections import Counter
from collections.abc import Callable

from gatelab.tasks import TaskItem
from gatelab.tasks.vocabulary import (
    ASK,
    CLOSE,
    DEF,
    DOC,
    FACT,
    KEYS,
    MARK,
    N_KEYS,
    N_VALUES,
    NONE,
    OPEN,
    SET,
    VALUES,
)  # fmt: skip

Answer = list[int]


def split(item: TaskItem, mark: int) -> tuple[list[int], list[int]]:
    """What stands before the last `mark`, and the question behind it, without the answer."""
    at = len(item.tokens) - 1 - item.tokens[::-1].index(mark)
    return list(item.tokens[1:at]), list(item.tokens[at + 1 : item.asked[0] + 1])


def following(body: list[int], mark: int, n: int) -> list[list[int]]:
    """The `n` tokens after each mark."""
    return [body[i + 1 : i + 1 + n] for i, t in enumerate(body) if t == mark]


def is_key(token: int) -> bool:
    return KEYS <= token < KEYS + N_KEYS


def is_value(token: int) -> bool:
    return VALUES <= token < VALUES + N_VALUES


def facts(item: TaskItem, n_key: int, n_value: int) -> tuple[dict[tuple, list[Answer]], tuple]:
    body, asked = split(item, ASK)
    said: dict[tuple, list[Answer]] = {}
    for f in following(body, FACT, n_key + n_value):
        said.setdefault(tuple(f[:n_key]), []).append(f[n_key:])
    return said, tuple(asked)


def needle(item: TaskItem) -> Answer:
    said, key = facts(item, 1, len(item.answer))
    return said[key][0]


def multikey(item: TaskItem) -> Answer:
    body, key = split(item, ASK)
    n = len(key)
    (value,) = [body[i + n] for i in range(len(body) - n) if body[i : i + n] == key and is_value(body[i + n])]
    return [value]


def multivalue(item: TaskItem) -> Answer:
    said, key = facts(item, 1, 1)
    return [v for (v,) in said[key]]


def multiquery(item: TaskItem) -> Answer:
    said = {f[0]: f[1] for f in following(list(item.tokens), FACT, 2)}
    return [said[item.tokens[p]] for p in item.asked]


def mqar(item: TaskItem) -> Answer:
    said = {k: v for k, v in zip(item.tokens, item.tokens[1:], strict=False) if is_key(k) and is_value(v)}
    return [said[item.tokens[p]] for p in item.asked]


def track(item: TaskItem) -> Answer:
    body, (name,) = split(item, ASK)
    said = dict(following(body, SET, 2))
    while is_key(name):
        name = said[name]
    return [name]


def aggregate(item: TaskItem) -> Answer:
    body, _ = split(item, ASK)
    return [word for word, _ in Counter(t for t in body if is_key(t)).most_common(len(item.answer))]


def cite(item: TaskItem) -> Answer:
    body, (key,) = split(item, ASK)
    where, value = [], None
    for number, _, k, v, _, k2, v2 in following(body, DOC, 7):
        if key in (k, k2):
            where.append(number)
            value = {k: v, k2: v2}[key]
    return [value, *where]


def select(item: TaskItem) -> Answer:
    body, _ = split(item, ASK)
    return [t for sentence in following(body, MARK, 4) for t in sentence]


def bracket(item: TaskItem) -> Answer:
    body, _ = split(item, ASK)
    text = [t for t in body if OPEN <= t < CLOSE + 4]
    while pairs := [i for i in range(len(text) - 1) if text[i] < CLOSE and text[i + 1] == text[i] + CLOSE - OPEN]:
        del text[pairs[0] : pairs[0] + 2]
    assert all(t < CLOSE for t in text)
    return [t + CLOSE - OPEN for t in reversed(text)]


def identifier(item: TaskItem) -> Answer:
    body, (value,) = split(item, ASK)
    return [dict(following(body, DEF, 2))[value]]  # the last one wins


def find(item: TaskItem) -> Answer:
    body, words = split(item, ASK)
    (name,) = [f[0] for f in following(body, DEF, 1 + len(words)) if f[1:] == words[::-1]]
    return [name]


class Conflict:
    """Knows the facts by having read items that say nothing else, as a model learns them."""

    def __init__(self, items: list[TaskItem]):
        self.memory = {item.tokens[-1]: item.answer[0] for item in items if not item.evidence}

    def __call__(self, item: TaskItem) -> Answer:
        said, key = facts(item, 1, 1)
        return said[key][0] if key in said else [self.memory[key[0]]]


def absent(item: TaskItem) -> Answer:
    _, asked = split(item, ASK)
    said, key = facts(item, len(asked), 1)
    return said.get(key, [[NONE]])[0]


class Associate:
    """Knows the names by having read other items, whose answers say which key was meant."""

    def __init__(self, items: list[TaskItem]):
        self.meant = {}
        for item in items:
            said, (name,) = facts(item, 1, 1)
            self.meant[name] = next(key for key, values in said.items() if tuple(values[0]) == item.answer)

    def __call__(self, item: TaskItem) -> Answer:
        said, (name,) = facts(item, 1, 1)
        return said[self.meant[name]][0]


SOLVERS: dict[str, Callable[[TaskItem], Answer]] = {
    f.__name__: f
    for f in (
        needle, multikey, multivalue, multiquery, mqar, track, aggregate, cite, select, bracket, identifier, find, absent,
    )
}  # fmt: skip
LEARNERS = {"conflict": Conflict, "associate": Associate}
