"""An item as text, and as the tokens of any tokenizer: where the answer and the evidence are there, or what is wrong.

Notable: a tokenizer is any function from a string to ids. Whether it splits the answer off where the question ends is
found by giving it the question alone; an item for which it does not is reported, and nothing is scored on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile

from .task import Knobs, Span, Task, TaskError, TaskItem
from .vocabulary import word

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class TextItem:
    """An item in words; spans count characters, an answer's with the space before it."""

    task: str
    index: int
    text: str
    answers: tuple[Span, ...]
    evidence: tuple[Span, ...]
    distractors: tuple[Span, ...]
    depth: float | None


@dataclass(frozen=True, slots=True)
class TokenItem:
    """An item in the ids of a tokenizer; spans count tokens, and those of `answers` are whole tokens.

    `problem` says in a sentence why the item cannot be asked; None when it can.
    """

    task: str
    index: int
    ids: tuple[int, ...]
    answers: tuple[Span, ...]
    evidence: tuple[Span, ...]
    distractors: tuple[Span, ...]
    depth: float | None
    problem: str | None


def as_text(task: Task, item: TaskItem) -> TextItem:
    """The item with sentences in the place of its tokens."""
    said: list[tuple[str, str]] = []  # role, text
    at = 1  # after BOS, which a model's own tokenizer adds
    for piece in item.pieces:
        said.append(("", _noise(task, item.tokens[at : piece.start])))
        words = [" ".join(map(word, tokens)) for tokens in piece.fields]
        sentence = " ".join(words) if piece.role == "answer" else task.forms[piece.form].format(*words)
        said.append((piece.role, sentence))
        at = piece.end
    said.append(("", _noise(task, item.tokens[at:])))
    text, spans = "", {role: [] for role in ("", "answer", "evidence", "distractor")}
    for role, sentence in said:
        if sentence:
            before = "" if not text else " " if role == "answer" else task.join
            start = len(text) if role == "answer" else len(text) + len(before)
            text += before + sentence
            spans[role].append((start, len(text)))
    return TextItem(
        task=item.task,
        index=item.index,
        text=text,
        answers=tuple(spans["answer"]),
        evidence=tuple(spans["evidence"]),
        distractors=tuple(spans["distractor"]),
        depth=item.depth,
    )


def tokenised(item: TextItem, encode: Encode, *, bos_id: int | None = None, max_tokens: int | None = None) -> TokenItem:
    """The item in a tokenizer's ids, behind `bos_id` where one is given; of more than `max_tokens` it cannot be asked."""
    ids = encode(item.text)
    first = 0 if bos_id is None else 1
    answers, problem = [], None
    for start, end in item.answers:
        before, until = encode(item.text[:start]), encode(item.text[:end])
        if until[: len(before)] != before or ids[: len(until)] != until:
            problem = problem or (
                f"the tokenizer joins the answer {item.text[start:end]!r} to what stands around it, so its tokens are not "
                f"those that a model would be asked for"
            )
        answers.append((first + len(before), first + len(until)))
    n_tokens = first + len(ids)
    if max_tokens is not None and n_tokens > max_tokens:
        problem = f"the item has {n_tokens} tokens, and the model reads {max_tokens}; make it from a smaller length"
    return TokenItem(
        task=item.task,
        index=item.index,
        ids=tuple(ids if bos_id is None else [bos_id, *ids]),
        answers=tuple(answers),
        evidence=tuple(_tokens_of(s, item.text, ids, encode, first) for s in item.evidence),
        distractors=tuple(_tokens_of(s, item.text, ids, encode, first) for s in item.distractors),
        depth=item.depth,
        problem=problem,
    )


def fitted(task: Task, knobs: Knobs, index: int, encode: Encode, n_tokens: int) -> TextItem:
    """The item of the greatest length up to `knobs.length` whose text has at most `n_tokens` tokens, the answer counted.

    Raises:
        TaskError: when the shortest item that there is has more.
    """
    best, low, high = None, 2, knobs.length
    while low <= high:
        length = (low + high) // 2
        try:
            text = as_text(task, task.item(replace(knobs, length=length), index))
        except TaskError:  # too short for its pieces
            low = length + 1
            continue
        if len(encode(text.text)) <= n_tokens:
            best, low = text, length + 1
        else:
            high = length - 1
    if best is None:
        raise TaskError(
            f"{task.name}: no item of these knobs has at most {n_tokens} tokens of this tokenizer; lower distractors or "
            f"hardness, or allow more tokens"
        )
    return best


def _noise(task: Task, tokens: tuple[int, ...]) -> str:
    return task.noise.format(" ".join(map(word, tokens))) if tokens else ""


def _tokens_of(span: Span, text: str, ids: list[int], encode: Encode, first: int) -> Span:
    """The tokens that hold any character of a span."""
    before, until = encode(text[: span[0]]), encode(text[: span[1]])
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False)))
    return first + same, first + max(len(until), same + 1)
