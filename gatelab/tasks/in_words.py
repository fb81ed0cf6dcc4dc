"""Tasks of Gatelab's vocabulary as tasks of prompts."""

from collections.abc import Callable
from dataclasses import replace

from .guesses import guesses_of
from .options import chance_of, options_of
from .prompt import Prompt, PromptTask, Setting, begins
from .task import LONGEST, Knobs, Task, TaskError, TaskItem
from .text import as_text
from .vocabulary import word


def words_of(task: Task, knobs: Knobs, *, length: int, depth: float | None) -> PromptTask:
    """A task of Gatelab's vocabulary as one of prompts; a size is the length of its token form."""

    def at(size: int) -> Knobs:
        return Knobs(size, depth, knobs.distractors, knobs.hardness, knobs.seed, knobs.split)

    def make(setting: Setting, index: int, size: int) -> Prompt:
        item = task.item(at(size), index)
        return _in_words(task, item)

    def sizes(setting: Setting, index: int) -> tuple[int, int]:
        return _shortest(task, at, length), min(2 * length, LONGEST)

    return PromptTask(task.name, task.what, task.mirrors, make, sizes, begins, "exact_match", has_depth=task.has_depth)


def _shortest(task: Task, at: Callable[[int], Knobs], most: int) -> int:
    """The least length that has room for the pieces."""
    low, high = 1, 2
    while True:
        try:
            task.item(at(high), 0)
            break
        except TaskError:
            if high >= most:
                raise
            low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            task.item(at(middle), 0)
            high = middle
        except TaskError:
            low = middle
    return high


def _in_words(task: Task, item: TaskItem) -> Prompt:
    text = as_text(task, item)
    answers = tuple(text.text[start:end] for start, end in text.answers)
    starts = (0, *(end for _, end in text.answers[:-1]))
    pieces = [p for p in item.pieces if p.role == "answer"]
    # What has no role is what is asked; the same text, with it as the evidence, says where.
    roles = {"": "evidence", "answer": "answer"}
    own = replace(item, pieces=tuple(replace(p, role=roles.get(p.role, "")) for p in item.pieces))
    options = []
    for option in options_of(item):
        said, tokens = [], iter(option)
        for piece in pieces:
            said.append("".join(f" {word(next(tokens))}" for _ in piece.fields))
        options.append(tuple(said))
    return Prompt(
        task=item.task,
        index=item.index,
        parts=tuple(text.text[start:end] for start, (end, _) in zip(starts, text.answers, strict=True)),
        answers=answers,
        options=tuple(options),
        references=(),
        n_new=None,
        evidence=text.evidence,
        distractors=text.distractors,
        depth=text.depth,
        chance=chance_of(item),
        floor=item.floor,
        factors=dict(item.factors),
        kept=as_text(task, own).evidence,
        guesses=guesses_of(task, item),
    )
