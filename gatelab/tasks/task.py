"""Task: what to ask, as a value; and what an item and a batch of items are.

Notable: an item is read as `tokens`, and asked at some of its positions: after reading tokens[: p + 1], what comes
next? The definition of a task makes one item in pure Python; its sampler makes many in NumPy, equal token by token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

Span = tuple[int, int]  # [start, end)
LONGEST = 1 << 20  # tokens of an item; a definition in pure Python takes seconds there


class TaskError(ValueError):
    """An item that cannot be made, or asked: one sentence that says what came, and what to do."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What an item is made from besides its number; None: the task's own default.

    length: tokens that are read, BOS, question and all but the last token of the answer included.
    depth: where the evidence stands, from 0 (the beginning) to 1 (as late as it can); None: anywhere.
    distractors: how many other pieces compete with the evidence; None may mean as many as there is room for.
    hardness: a whole number, whose meaning is the task's.
    seed, split: which stream of items; no item of one stream is made for another.
    """

    length: int = 512
    depth: float | None = None
    distractors: int | None = None
    hardness: int | None = None
    seed: int = 0
    split: Literal["eval", "train"] = "eval"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an item that is a sentence in text: the name of its form, and what the form says."""

    start: int
    end: int
    form: str
    fields: tuple[tuple[int, ...], ...]
    role: str = ""  # evidence, distractor, answer, or none of them


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One item. `tokens[asked[i] + 1]` is `answer[i]` where the item goes on with the answer, as all do but mqar's.

    rivals: wrong answers that the item itself suggests. floor: the share of exact matches of a model that answers with
    tokens of the right kind copied blindly out of the item. depth: of the evidence; None where it has no one place.
    n_together: pieces that stand side by side where a depth is stated, and are strewn where none is.
    """

    task: str
    index: int
    tokens: tuple[int, ...]
    asked: tuple[int, ...]
    answer: tuple[int, ...]
    evidence: tuple[Span, ...]
    distractors: tuple[Span, ...]
    depth: float | None
    floor: float
    rivals: tuple[tuple[int, ...], ...] = ()
    pieces: tuple[Piece, ...] = ()
    factors: dict[str, Any] = field(default_factory=dict)
    n_together: int = 1


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """B items. Spans are [start, end) pairs, (0, 0) where an item has one less; depth_B is nan where there is none."""

    tokens_BT: np.ndarray
    asked_BA: np.ndarray
    answer_BA: np.ndarray
    evidence_BE2: np.ndarray
    distractors_BE2: np.ndarray
    depth_B: np.ndarray


@dataclass(frozen=True, slots=True)
class Task:
    """What to ask.

    what: what it measures. mirrors: which benchmark asks the same. signal: at which size a model that
        is trained on it was measured to be above guessing, and what was not measured.
    define: one item of resolved knobs. sample: items first … first + n − 1 of resolved knobs.
    forms: in text, the sentence of each kind of piece. noise: the sentence of noise. join: what stands between sentences.
    hardness: what the knob means, with its `levels` and its default.
    distractors: the default of the knob; None: as many as there is room for.
    answer: `sequence` (all of it, in order), `set` (precision and recall in any order as well), `cite` (a value, then
        documents) or `each` (after each key its value).
    has_depth: whether the evidence has one place.
    loads: numbers of distractors at which it is asked too, so that load is told apart from length.
    """

    name: str
    what: str
    mirrors: str
    signal: str
    define: Callable[[Knobs, int], TaskItem]
    sample: Callable[[Knobs, int, int], TaskBatch]
    forms: dict[str, str]
    hardness: str
    levels: range
    default_hardness: int
    distractors: int | None
    answer: Literal["sequence", "set", "cite", "each"] = "sequence"
    has_depth: bool = True
    loads: tuple[int, ...] = ()
    join: str = " "
    noise: str = "{}."

    def resolved(self, knobs: Knobs) -> Knobs:
        """The knobs with the task's defaults in the place of None.

        Raises:
            TaskError: a knob that this task does not have, or whose value it does not take.
        """
        for name in ("length", "distractors", "hardness", "seed"):
            self._check_whole(name, getattr(knobs, name), is_optional=name in ("distractors", "hardness"))
        if knobs.depth is not None and not isinstance(knobs.depth, Real):
            raise TaskError(f"{self.name}: depth={knobs.depth!r}: expected a number from 0 to 1, or None")
        if knobs.split not in ("eval", "train"):
            raise TaskError(f"{self.name}: split={knobs.split!r}: expected 'eval' or 'train'")
        hardness = self.default_hardness if knobs.hardness is None else knobs.hardness
        if hardness not in self.levels:
            raise TaskError(
                f"{self.name}: hardness={hardness} ({self.hardness}): expected {self.levels[0]} to {self.levels[-1]}"
            )
        if knobs.depth is not None and not self.has_depth:
            raise TaskError(f"{self.name}: depth={knobs.depth:g}, and its evidence has no one place; leave depth out")
        if knobs.depth is not None and not 0 <= knobs.depth <= 1:
            raise TaskError(f"{self.name}: depth={knobs.depth:g}: expected 0 (the beginning) to 1 (the end)")
        distractors = self.distractors if knobs.distractors is None else knobs.distractors
        if distractors is not None and distractors < 0:
            raise TaskError(f"{self.name}: distractors={distractors}: expected 0 or more")
        if not 2 <= knobs.length <= LONGEST:
            raise TaskError(f"{self.name}: length={knobs.length}: expected 2 to {LONGEST:,} tokens")
        return replace(knobs, hardness=hardness, distractors=distractors)

    def item(self, knobs: Knobs, index: int) -> TaskItem:
        """Item `index`, from 0: the same for every model.

        Raises:
            TaskError: for the knobs, a number below 0, and where the length has no room for the item.
        """
        self._check_whole("item", index, least=0)
        return self.define(self.resolved(knobs), index)

    def batch(self, knobs: Knobs, first: int, n: int) -> TaskBatch:
        """Items first … first + n − 1, as `item` makes them.

        Raises:
            TaskError: as `item` does.
        """
        self._check_whole("first", first, least=0)
        self._check_whole("n", n, least=0)
        return self.sample(self.resolved(knobs), first, n)

    def _check_whole(self, word: str, value: Any, *, least: int | None = None, is_optional: bool = False) -> None:
        if is_optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
            bound = "" if least is None else f" from {least}"
            raise TaskError(f"{self.name}: {word}={value!r}: expected a whole number{bound}{' or None' * is_optional}")
