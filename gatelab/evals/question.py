"""Question: a text that asks, in the ids of a model, with its documents and which of them hold the answer.

Notable: an item of `gatelab.tasks` becomes one, as ids or in the tokens of any tokenizer, and so may any text whose documents'
spans are known. What asks about attention (`evals.middle`) and what takes evidence away (`evals.deletion`) read the same value.
"""

from dataclasses import dataclass, replace

from ..tasks import Task, TaskItem
from ..tasks.prompt import Prompt
from ..tasks.task import Span
from ..tasks.text import Encode, TextItem, as_text, tokenised
from .next_token import NextToken


@dataclass(frozen=True, slots=True)
class Question:
    """After reading ids[: asked[i] + 1], `answer[i]` is right.

    documents: spans [start, end) of ids, in order and apart from one another. gold: the places in `documents` of those that
    hold the answer. kept: spans that are no part of the text that is asked about (the beginning, the question itself).

    Raises:
        ValueError: documents that overlap, are empty or stand outside of the ids; no gold document, or one that is not there;
            an answer of another length than `asked`.
    """

    ids: tuple[int, ...]
    asked: tuple[int, ...]
    answer: tuple[int, ...]
    documents: tuple[Span, ...]
    gold: tuple[int, ...]
    kept: tuple[Span, ...] = ()
    task: str = ""
    index: int = 0
    depth: float | None = None

    def __post_init__(self) -> None:
        end = 0
        for start, stop in self.documents:
            if not end <= start < stop <= len(self.ids):
                raise ValueError(
                    f"{self.name}: document {start} to {stop} of {len(self.ids)} tokens after one that ends at {end}; give "
                    "spans [start, end) in order, none empty, none over another"
                )
            end = stop
        if not self.gold or len(set(self.gold)) < len(self.gold):
            raise ValueError(
                f"{self.name}: gold={self.gold}: name each document that holds the answer once, one at least"
            )
        if not all(0 <= g < len(self.documents) for g in self.gold):
            raise ValueError(f"{self.name}: gold={self.gold}: there are documents 0 to {len(self.documents) - 1}")
        if not self.asked or len(self.asked) != len(self.answer) or not 0 <= max(self.asked) < len(self.ids):
            raise ValueError(
                f"{self.name}: {len(self.answer)} tokens of an answer, asked at {self.asked} of {len(self.ids)} tokens; give "
                "each token the place after which it is right"
            )

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.task or 'question'} {self.index}"

    @property
    def prompt(self) -> tuple[int, ...]:
        """What is read before the answer's first token, which the last token of it predicts."""
        return self.ids[: self.asked[0] + 1]

    @property
    def evidence(self) -> tuple[Span, ...]:
        """The spans of the gold documents."""
        return tuple(self.documents[g] for g in self.gold)

    def check(self, language: NextToken) -> None:
        """Refuse a model that cannot read it.

        Raises:
            ValueError: more tokens than positions, an id that the model does not have.
        """
        language.check(len(self.ids), self.name)
        language.check_ids((*self.ids, *self.answer), self.name)


def filled(ids: tuple[int, ...], spans: tuple[Span, ...], filling: tuple[int, ...]) -> tuple[int, ...]:
    """The ids with other tokens in the place of some spans, from the filling's first on and over again in each."""
    out = list(ids)
    for start, end in spans:
        out[start:end] = [filling[i % len(filling)] for i in range(end - start)]
    return tuple(out)


def of_item(item: TaskItem) -> Question:
    """An item of a task as ids. Its documents are its evidence, which is gold, and its distractors.

    Raises:
        ValueError: an item without evidence, as half of those of `absent` are.
    """
    own = tuple((p.start, p.end) for p in item.pieces if not p.role)
    return _question(item, item.tokens, item.asked, item.answer, ((0, 1), *own))


def of_text(
    task: Task, item: TaskItem, encode: Encode, *, bos_id: int | None = None, max_tokens: int | None = None
) -> Question:
    """An item of a task in a tokenizer's ids, as `gatelab.tasks.text.tokenised` makes it.

    Raises:
        ValueError: an item that cannot be asked in these tokens, with the reason; one without evidence.
    """
    text = as_text(task, item)
    tokens = tokenised(text, encode, bos_id=bos_id, max_tokens=max_tokens)
    if tokens.problem is not None:
        raise ValueError(f"{task.name} {item.index}: {tokens.problem}")
    # The pieces without a role, such as the question, found by letting them be the evidence of the same text.
    roles = {"": "evidence", "answer": "answer"}
    pieces = tuple(replace(p, role=roles.get(p.role, "")) for p in item.pieces)
    own = tokenised(as_text(task, replace(item, pieces=pieces)), encode, bos_id=bos_id).evidence
    asked = tuple(p - 1 for start, end in tokens.answers for p in range(start, end))
    beginning = () if bos_id is None else ((0, 1),)
    return _question(tokens, tokens.ids, asked, tuple(tokens.ids[p + 1] for p in asked), (*beginning, *own))


def of_prompt(prompt: Prompt, encode: Encode, *, n_begins: int = 0) -> Question:
    """A prompt in the ids that `encode` gives a text, the first `n_begins` of them the tokenizer's own.

    Raises:
        ValueError: an answer that the tokenizer joins to what stands around it; no evidence.
    """
    whole, answers, at = prompt.whole, [], 0
    for part, answer in zip(prompt.parts, prompt.answers, strict=True):
        at += len(part) + len(answer)
        answers.append((at - len(answer), at))
    text = TextItem(prompt.task, prompt.index, whole, tuple(answers), prompt.evidence, prompt.distractors, prompt.depth)
    tokens = tokenised(text, encode)
    if tokens.problem is not None:
        raise ValueError(f"{prompt.task} {prompt.index}: {tokens.problem}")
    own = tokenised(replace(text, evidence=prompt.kept), encode).evidence
    asked = tuple(p - 1 for start, end in tokens.answers for p in range(start, end))
    beginning = ((0, n_begins),) if n_begins else ()
    return _question(tokens, tokens.ids, asked, tuple(tokens.ids[p + 1] for p in asked), (*beginning, *own))


def _question(
    item: object, ids: tuple[int, ...], asked: tuple[int, ...], answer: tuple[int, ...], kept: tuple[Span, ...]
) -> Question:
    if not item.evidence:
        raise ValueError(f"{item.task} {item.index} has no evidence, so no document is gold; ask another item")
    documents, end = [], 0
    for start, stop in sorted({*item.evidence, *item.distractors}):
        # A token may hold the end of one and the beginning of the next: it is the former's.
        documents.append((max(start, end), stop))
        end = stop
    ends = {stop for _, stop in item.evidence}
    gold = sorted(i for i, (_, stop) in enumerate(documents) if stop in ends)
    return Question(ids, asked, answer, tuple(documents), tuple(gold), kept, item.task, item.index, item.depth)
