"""Items of our tasks as questions whose evidence is known, in words that fit a length or in ids; refused with a reason where
an item cannot be asked so.

Notable: the dummy that stands in a document's place and the noise that stands in evidence are the words between the pieces of
our tasks, which say nothing of any question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import Any

from ..record import Item, Row
from ..tasks import Knobs, Task, TaskError
from ..tasks.guesses import floor_with_evidence
from ..tasks.options import chance_of
from ..tasks.prompt import Prompt, PromptTask, Setting, fitted_prompt
from ..tasks.vocabulary import word
from .deletion import TASK_NOISE
from .harness.tokens import Tokens
from .own_lines import line
from .own_text import Progress, check_length, in_chat
from .question import Question, of_item, of_prompt


@dataclass(frozen=True)
class Posed:
    """An item as a question, and what chance and blind copying score in it; `problem`: why it was not asked."""

    index: int
    question: Question | None = None
    problem: str | None = None
    chance: float = 0.0
    floor: float | None = None


@dataclass
class Measured:
    """Rows, items and lines of a table."""

    rows: list[Row]
    items: list[Item] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where scores belong: a run, the name that was asked for, the length, and the depth."""

    run: str
    task: str
    length: int
    depth: float | None

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """Rows that say so."""
        return [replace(row, run=self.run, task=self.task, length=self.length, depth=self.depth) for row in rows]

    def line(self, metric: str, value: float | None, posed: Sequence[Posed], **beside: float | None) -> dict[str, Any]:
        """A line of the table, with how many were asked and refused; `beside` as `own_lines.line` takes it."""
        n = len(asked(posed))
        return line(
            self.task, metric, self.length, self.depth, value, items=n, refused=len(posed) - n, **beside
        )  # fmt: skip

    def counted(self, posed: Sequence[Posed]) -> list[Row]:
        """How many were asked and refused."""
        n = len(asked(posed))
        rows = [Row("", 0, "tasks", m, float(v), "items") for m, v in (("items", n), ("items_refused", len(posed) - n))]
        return self.of(rows)

    def item(self, index: int, score: float, factors: dict[str, Any], *, is_right: bool | None = None) -> Item:
        """A record of an item."""
        of = {"length": self.length, "asked_depth": self.depth}
        # JSON has no number for a model that went to infinity.
        said = {k: str(v) if isinstance(v, float) and not isfinite(v) else v for k, v in factors.items()}
        return Item(self.run, 0, self.task, index, is_right, score, "", "", of | said)

    def refused(self, posed: Sequence[Posed]) -> list[Item]:
        """Records of what was not asked, with the reason."""
        return [self.item(p.index, nan, {"refused": p.problem}) for p in posed if p.problem is not None]


def asked(posed: Sequence[Posed]) -> list[Posed]:
    """Those that were not refused."""
    return [p for p in posed if p.problem is None]


def factors_of(question: Question) -> dict[str, Any]:
    """What an item's record says of its question."""
    return {
        "tokens": len(question.ids),
        "depth": question.depth,
        "documents": [list(span) for span in question.documents],
        "gold": list(question.gold),
    }


def noise_of(tokens: Tokens) -> tuple[int, ...]:
    """Ids of words that say nothing of any question."""
    return tuple(tokens.encode(["".join(f" {word(t)}" for t in TASK_NOISE)], begins=False)[0])


def posed_in_words(
    tokens: Tokens,
    max_tokens: int | None,
    task: PromptTask,
    setting: Setting,
    n_items: int,
    *,
    chat: bool,
    progress: Progress,
) -> list[Posed]:
    """Items 0 … n_items − 1 in a tokenizer's ids, as large as fit into the length, right answer included.

    Raises:
        TaskError: a setting that no item can have.
        ValueError: a length beyond the positions.
    """
    task.check(setting)
    check_length(task.name, setting.length, max_tokens)
    if chat:
        task = in_chat(task, tokens)

    def encode(text: str) -> list[int]:
        return tokens.encode([text])[0]

    def unbudgeted(setting: Setting, index: int, size: int) -> Prompt:
        # The right answer stands there, so none is written.
        return replace(task.make(setting, index, size), n_new=None)

    made = []
    for index in range(n_items):
        try:
            prompt = fitted_prompt(replace(task, make=unbudgeted), setting, index, lambda text: len(encode(text)))
            question = of_prompt(prompt, encode, n_begins=len(tokens.begins))
            floor = floor_with_evidence(prompt.task, prompt.floor, prompt.evidence + prompt.distractors)
            made.append(Posed(index, question, _lonely(question), prompt.chance, floor))
        except (TaskError, ValueError) as error:
            made.append(Posed(index, problem=str(error)))
        progress(f"making {task.name}", len(made), n_items)
    return made


def posed_in_ids(task: Task, knobs: Knobs, n_items: int) -> list[Posed]:
    """The same of a task's own ids.

    Raises:
        TaskError: knobs that no item can have.
    """
    made = []
    for index in range(n_items):
        item = task.item(knobs, index)
        try:
            question = of_item(item)
        except ValueError as error:
            made.append(Posed(index, problem=str(error)))
            continue
        floor = floor_with_evidence(item.task, item.floor, item.evidence + item.distractors)
        made.append(Posed(index, question, _lonely(question), chance_of(item), floor))
    return made


def _lonely(question: Question) -> str | None:
    """Why a question has nothing to be told apart."""
    if len(question.documents) > len(question.gold):
        return None
    return f"{question.name}: has gold documents alone; ask for more with --distractors, or for a longer item"
