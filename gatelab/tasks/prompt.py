"""A prompt: an item in words whose answer a model writes. And a task of prompts, whose haystack grows until it fits a tokenizer.

Notable: what an item says is drawn from its number alone, and its size only adds to that, so item i is the same for every
model up to the length that fits. Lengths are counted by the caller, in the model's own tokens, the answer's among them.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import floor
from typing import Any, Literal

from ..config import one_of
from .guesses import Guess, copies
from .options import copied_choice
from .task import Span, TaskError

Layout = Literal["spread", "original"]
LAYOUTS: tuple[Layout, ...] = ("spread", "original")
_WORDS = re.compile(r"[\w-]+|[^\w\s]")
ROOM = 2  # tokens behind an answer that is compared as a whole: whether the word goes on shows there


@dataclass(frozen=True, slots=True)
class Setting:
    """What prompts are made from besides their number.

    length: tokens of prompt and answer together.
    depth: where the evidence stands, from 0 to 1; None: anywhere.
    layout: `spread` draws the places of each item; `original` has those faults of the benchmark's own generator that fix them.
    essay: sentences of a haystack. held: what the task's `read` made of a file.
    """

    length: int = 4096
    depth: float | None = None
    seed: int = 0
    layout: Layout = "spread"
    essay: tuple[str, ...] = ()
    held: Any = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """An item in words. Spans count characters of `whole`.

    parts: what is read before each answer. answers: what would be right to write there, with the blank before it; the text goes
        on with it. options: answers in the same places, the right ones first; none where an item has no choice.
    references: strings that a right answer holds, for scores that look for them.
    n_new: tokens that an answer may have; None: those of `answers`, and ROOM.
    chance: what tokens of the right kind, drawn at random, score. floor: what blind copying of such out of the item scores;
        None where no kind can be told.
    kept: spans that say what is asked, such as the question; not of every task.
    guesses: chance and copying of what it is scored by beside, by metric; of those alone for which they are known.
    """

    task: str
    index: int
    parts: tuple[str, ...]
    answers: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    references: tuple[str, ...]
    n_new: int | None
    evidence: tuple[Span, ...]
    distractors: tuple[Span, ...]
    depth: float | None
    chance: float
    floor: float | None
    factors: dict[str, Any] = field(default_factory=dict)
    kept: tuple[Span, ...] = ()
    guesses: dict[str, Guess] = field(default_factory=dict)

    def read(self, number: int = -1, answers: tuple[str, ...] | None = None) -> str:
        """What is read before an answer, the answers before it (the right ones unless given) included."""
        last = number % len(self.parts)
        said = self.answers if answers is None else answers
        return "".join(p + a for p, a in zip(self.parts[:last], said, strict=False)) + self.parts[last]

    @property
    def whole(self) -> str:
        """The prompt with its right answers."""
        return self.read() + self.answers[-1]

    @property
    def choice_floor(self) -> float:
        """What blind copying scores in the choice: words that stand before the first answer; of `absent` and `conflict`
        what one answer always does."""
        if not copies(self.task, self.floor):
            return self.floor
        said = set(words_in(self.parts[0]))
        return copied_choice([words_in(" ".join(option)) for option in self.options], said)


@dataclass(frozen=True, slots=True)
class Source:
    """A file of rows in a user's folder: the `names` that it may have, without .jsonl, of which the first that is there is read,
    and the `fields` that every row has to have."""

    names: tuple[str, ...]
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptTask:
    """What to ask in words.

    make: item `index` at a size, in units of the haystack. sizes: the least and the greatest size of an item.
    metric: the name of the score, in rows. judge: it, from 0 to 1, of what was written in the place of each answer.
    stops: strings that end an answer. needs: what a user has to give, `essay` or `rows` of files, the `sources`, of which
        `read` makes what a Setting holds, one entry an item; a task with sources that needs none draws its items without
        them. package: what the score takes and may not be installed.
    fills: whether an item whose haystack comes to its end before the length is refused.
    guesses: chance and floor of an item, where they take its text and not its kind alone.
    """

    name: str
    what: str
    mirrors: str
    make: Callable[[Setting, int, int], Prompt]
    sizes: Callable[[Setting, int], tuple[int, int]]
    judge: Callable[[Prompt, tuple[str, ...]], float]
    metric: str
    stops: tuple[str, ...] = ()
    has_depth: bool = True
    needs: Literal["", "essay", "rows"] = ""
    sources: tuple[Source, ...] = ()
    read: Callable[..., Any] = tuple
    package: str = ""
    fills: bool = False
    guesses: Callable[[Setting, Prompt], tuple[float, float]] | None = None

    def check(self, setting: Setting) -> None:
        """Refuse what no item can have.

        Raises:
            TaskError: a layout that is not known, a depth where there is none, an essay or a file that is lacking.
        """
        if setting.layout not in LAYOUTS:
            raise TaskError(f"layout={setting.layout}: {one_of(setting.layout, LAYOUTS)}")
        if setting.depth is not None:
            if not self.has_depth:
                raise TaskError(
                    f"{self.name}: depth={setting.depth:g}, and its evidence has no one place; leave depth out"
                )
            if not 0 <= setting.depth <= 1:
                raise TaskError(f"{self.name}: depth={setting.depth:g}: expected 0 (the beginning) to 1 (the end)")
            if setting.layout == "original":
                raise TaskError(
                    f"{self.name}: depth={setting.depth:g}, and layout=original places evidence itself; leave one out"
                )
        if self.needs == "essay" and not setting.essay:
            raise TaskError(
                f"{self.name}: its haystack is an essay, and there is none; give plain text with --haystack FILE or FOLDER"
            )
        if self.needs == "rows" and not setting.held:
            raise TaskError(
                f"{self.name}: needs a file of JSON lines with {', '.join(self.sources[0].fields)}; give one with --data-dir"
            )


def words_in(text: str) -> list[str]:
    """The words of a text, each mark that is no letter or digit one too."""
    return _WORDS.findall(text)


def fitted_prompt(task: PromptTask, setting: Setting, index: int, count: Callable[[str], int]) -> Prompt:
    """The item of the greatest haystack whose prompt and answer have at most `setting.length` tokens; `count` counts them.

    Raises:
        TaskError: the smallest item has more; or the haystack comes to its end before, in a task that `fills` its length.
    """

    def n_tokens(prompt: Prompt) -> int:
        options = [count("".join(option)) for option in prompt.options]
        if prompt.n_new is not None:
            return count(prompt.read()) + max([prompt.n_new, *options])
        return count(prompt.whole) + max([ROOM, *(n - options[0] for n in options)])

    least, most = task.sizes(setting, index)
    best = task.make(setting, index, least)
    low, n_low, high, n_high = least, n_tokens(best), most + 1, 0
    n_least = n_low
    if n_least > setting.length:
        raise TaskError(
            f"{task.name} {index}: its shortest item has {n_least} tokens, answer included; ask for at least as many"
        )
    for step in range(1_000):
        if high - low <= 1:
            break
        # Tokens are nearly linear in the size, so a straight line lands beside the answer; halving ends it in any case.
        if step % 8 == 7 and n_high:
            size = (low + high) // 2
        elif n_high:
            size = low + floor((setting.length - n_low) * (high - low) / (n_high - n_low))
        elif low > least:
            size = low + floor((setting.length - n_low) * (low - least) / max(1, n_low - n_least)) + 1
        else:
            size = 2 * low + 8
        size = min(max(size, low + 1), high - 1)
        made = task.make(setting, index, size)
        n = n_tokens(made)
        if n <= setting.length:
            best, low, n_low = made, size, n
        else:
            high, n_high = size, n
    if task.fills and low == most:
        raise TaskError(
            f"{task.name} {index}: the whole haystack, {most} sentences, makes an item of {n_low} tokens, and {setting.length} are "
            "asked; give a longer text, or ask for fewer"
        )
    return best


def place_of(places: Iterable[int], n: int) -> float | None:
    """The depth of the pieces at these places of n: from 0 where they are the first, to 1 where they are the last; None where
    there are no others."""
    own = list(places)
    e = len(own)
    return None if not e or n <= e else (sum(own) - e * (e - 1) / 2) / (e * (n - e))


class Script:
    """A text being written, and where in it evidence and distractors stand."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self.length = 0
        self.spans: dict[str, list[Span]] = {"evidence": [], "distractor": [], "kept": []}

    def say(self, text: str, role: str = "") -> None:
        """Go on with a text; `role` is evidence, distractor, kept or nothing."""
        if role and text:
            self.spans[role].append((self.length, self.length + len(text)))
        self._said.append(text)
        self.length += len(text)

    def say_all(self, pieces: Iterable[tuple[str, str]], between: str) -> None:
        """Pieces of (role, text) with a text between them, which is nobody's."""
        for number, (role, text) in enumerate(pieces):
            if number:
                self.say(between)
            self.say(text, role)

    @property
    def text(self) -> str:
        return "".join(self._said)


def begins(prompt: Prompt, written: tuple[str, ...]) -> float:
    """1 where each text, blanks squeezed, begins with its answer, and no letter or digit goes on with it."""
    for text, answer in zip(written, prompt.answers, strict=True):
        said, right = " ".join(text.split()), " ".join(answer.split())
        if not said.startswith(right) or said[len(right) : len(right) + 1].isalnum():
            return 0.0
    return 1.0


def in_turn(prompt: Prompt, write: Callable[[str], str]) -> Prompt:
    """The prompt as a turn of the user, and its answers as the beginning of the assistant's, without the blank before the first.

    Args:
        write: puts a text into a chat template, up to where the assistant's turn begins.

    Raises:
        TaskError: the template does not say the text as it is.
    """
    asked = prompt.parts[0]
    said = write(asked)
    at = said.find(asked)
    if at < 0:
        raise TaskError(f"{prompt.task} {prompt.index}: the chat template changes the text; leave --chat out")
    blanks = len(prompt.answers[0]) - len(prompt.answers[0].lstrip())

    def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        later = len(said) - len(asked) - blanks
        return tuple(tuple(p + (at if end <= len(asked) else later) for p in (start, end)) for start, end in spans)

    return replace(
        prompt,
        parts=(said, *prompt.parts[1:]),
        answers=(prompt.answers[0].lstrip(), *prompt.answers[1:]),
        options=tuple((option[0].lstrip(), *option[1:]) for option in prompt.options),
        evidence=moved(prompt.evidence),
        distractors=moved(prompt.distractors),
        kept=moved(prompt.kept),
    )
