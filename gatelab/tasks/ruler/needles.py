"""RULER's eight needle tasks: magic values of keys in a haystack, `One of the special magic numbers for KEY is: VALUE.`

Notable: a haystack is a filler line again and again, an essay of the user's, or nothing but other needles. In the layout
`original` the needles stand in one order for all items, and an essay always begins at its beginning.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from ..draws import Draws, key_of
from ..options import N_OPTIONS
from ..prompt import Prompt, PromptTask, Script, Setting
from .match import found
from .words import N_WORDS, pair

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
SHUFFLE = 42  # the seed of the benchmark's own shuffles
_DEPTHS = 40  # evenly spaced ones, of which an essay's needles take different ones
_AT_ONCE = 64  # lines of a haystack in a draw: more lines change none before them
_N_NEW = 128

Kind = Literal["numbers", "words", "uuids"]
# How many there are of each kind.
_N_OF = {"numbers": 9_000_000, "words": N_WORDS, "uuids": 2**122}


@dataclass(frozen=True, slots=True)
class Needles:
    """haystack: of what. keys, values: their kinds. n_keys: with needles; n_values: of each; n_asked: keys that are asked."""

    haystack: Literal["filler", "essay", "needles"]
    what: str
    keys: Kind = "words"
    values: Kind = "numbers"
    n_keys: int = 1
    n_values: int = 1
    n_asked: int = 1


NEEDLES = {
    "niah_single_1": Needles("filler", "finds a number in a line said again and again"),
    "niah_single_2": Needles("essay", "finds a number in an essay"),
    "niah_single_3": Needles("essay", "finds a UUID in an essay", values="uuids"),
    "niah_multikey_1": Needles("essay", "finds one of four numbers in an essay", n_keys=4),
    "niah_multikey_2": Needles("needles", "finds a number where everything else is numbers too"),
    "niah_multikey_3": Needles("needles", "finds a UUID by a UUID among others", keys="uuids", values="uuids"),
    "niah_multivalue": Needles("essay", "gathers four numbers of one key", n_values=4),
    "niah_multiquery": Needles("essay", "answers for four keys at once", n_keys=4, n_asked=4),
}


def task(name: str) -> PromptTask:
    """The task of a name."""
    kind = NEEDLES[name]

    def make(setting: Setting, index: int, size: int) -> Prompt:
        return _item(name, kind, setting, index, size)

    def sizes(setting: Setting, index: int) -> tuple[int, int]:
        return 1, len(setting.essay) if kind.haystack == "essay" else max(1, setting.length)

    is_essay = kind.haystack == "essay"
    return PromptTask(
        f"ruler/{name}", kind.what, f"RULER {name} (arXiv 2404.06654)", make, sizes, found, "found",
        needs="essay" if is_essay else "", fills=is_essay,
    )  # fmt: skip


def said(kind: Kind, draws: Draws, n: int, without: tuple[int, ...] = ()) -> list[str]:
    """`n` drawn keys or values; of words none of those of the numbers `without`."""
    if kind == "uuids":
        words = draws.words(4 * n)
        wide = [sum(w << 32 * j for j, w in enumerate(words[4 * i : 4 * i + 4])) for i in range(n)]
        return [str(uuid.UUID(int=number, version=4)) for number in wide]
    if kind == "numbers":
        return [str(1_000_000 + number) for number in draws.many(n, _N_OF["numbers"])]
    drawn = draws.many(n, N_WORDS - len(without))
    for taken in sorted(without):
        drawn = [number + (number >= taken) for number in drawn]
    return [pair(number) for number in drawn]


def _item(name: str, kind: Needles, setting: Setting, index: int, size: int) -> Prompt:
    draws = Draws(key_of(f"ruler/{name}", setting.seed), index)
    numbers = tuple(draws.distinct(kind.n_keys, N_WORDS)) if kind.keys == "words" else ()
    keys = [pair(n) for n in numbers] or said(kind.keys, draws, kind.n_keys)
    values = said(kind.values, draws, kind.n_keys * kind.n_values)
    asked = draws.order(kind.n_keys)[: kind.n_asked]
    of_key = [values[k * kind.n_values : (k + 1) * kind.n_values] for k in range(kind.n_keys)]
    needles = [(k, _needle(kind, keys[k], value)) for k in range(kind.n_keys) for value in of_key[k]]
    places = _places(kind, setting, draws, [k in asked for k, _ in needles], size)
    hay, others = _hay(name, kind, setting, index, size, numbers)

    at: dict[int, list[tuple[str, str]]] = {}
    for place, number in places:
        k, needle = needles[number]
        at.setdefault(place, []).append(("evidence" if k in asked else "distractor", needle))
    hay_role = "distractor" if kind.haystack == "needles" else ""
    pieces = [
        p for line in range(size + 1) for p in (*at.get(line, ()), *([(hay_role, hay[line])] if line < size else ()))
    ]

    one = kind.n_asked * kind.n_values == 1
    word = kind.values[:-1] if one else kind.values
    query = _listed([keys[k] for k in asked])
    script = Script()
    script.say(
        f"{'A' if one else 'Some'} special magic {word} {'is' if one else 'are'} hidden within the following text. Make sure to "
        f"memorize it. I will quiz you about the {word} afterwards.\n"
    )
    script.say_all(pieces, " " if kind.haystack == "essay" else "\n")
    script.say(
        f"\nWhat {'is' if one else 'are all'} the special magic {word} for {query} mentioned in the provided text? "
        f"The special magic {word} for {query} mentioned in the provided text {'is' if one else 'are'}"
    )
    right = [value for k in asked for value in of_key[k]]
    evidence = [place for place, number in places if needles[number][0] in asked]
    return Prompt(
        task=f"ruler/{name}",
        index=index,
        parts=(script.text,),
        answers=(f" {', '.join(right)}",),
        options=_options(kind, draws, right[0], [v for v in values if v != right[0]] + others) if one else (),
        references=tuple(right),
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=sum(evidence) / len(evidence) / size,
        chance=len(right) / _N_OF[kind.values],
        floor=len(right) / (len(values) + (size if kind.haystack == "needles" else 0)),
        factors={"n_haystack": size},
    )


def _places(kind: Needles, setting: Setting, draws: Draws, is_asked: list[bool], size: int) -> list[tuple[int, int]]:
    """(lines before it, number) of each needle, in the order of the text."""
    n = len(is_asked)
    if kind.haystack == "essay":
        places = [int(size * round(100 * d / (_DEPTHS - 1)) / 100) for d in draws.order(_DEPTHS)[:n]]
    else:
        places = [w * (size + 1) >> 32 for w in draws.words(n)]
    numbers = list(range(n))
    if setting.layout == "original":
        Random(SHUFFLE).shuffle(numbers)
        # Into lines the benchmark puts them from the last to the first.
        return list(zip(sorted(places), numbers if kind.haystack == "essay" else reversed(numbers), strict=True))
    if setting.depth is not None:
        places = [int(setting.depth * size + 0.5) if a else p for p, a in zip(places, is_asked, strict=True)]
    return sorted(zip(places, numbers, strict=True))


def _hay(
    name: str, kind: Needles, setting: Setting, index: int, size: int, taken: tuple[int, ...]
) -> tuple[list[str], list[str]]:
    """`size` lines, and the first values in them."""
    if kind.haystack == "filler":
        return [FILLER] * size, []
    draws = Draws(key_of(f"ruler/{name}/haystack", setting.seed), index)
    if kind.haystack == "essay":
        n = len(setting.essay)
        first = 0 if setting.layout == "original" else draws.below(n)
        return [setting.essay[(first + i) % n] for i in range(size)], []
    lines = list(_other_needles(kind, draws, size, taken))
    return [line for line, _ in lines], [value for _, value in lines[:N_OPTIONS]]


def _other_needles(kind: Needles, draws: Draws, n: int, taken: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    for start in range(0, n, _AT_ONCE):
        keys, values = said(kind.keys, draws, _AT_ONCE, taken), said(kind.values, draws, _AT_ONCE)
        for key, value in list(zip(keys, values, strict=True))[: n - start]:
            yield _needle(kind, key, value), value


def _needle(kind: Needles, key: str, value: str) -> str:
    return f"One of the special magic {kind.values} for {key} is: {value}."


def _options(kind: Needles, draws: Draws, right: str, others: list[str]) -> tuple[tuple[str, ...], ...]:
    """The right value, and seven wrong ones: those of the item first."""
    values = [right, *dict.fromkeys(v for v in [*others, *said(kind.values, draws, 2 * N_OPTIONS)] if v != right)]
    return tuple((f" {value}",) for value in values[:N_OPTIONS])


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"
