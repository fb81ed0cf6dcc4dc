"""RULER's two question tasks (qa_1, qa_2) over a file of the user's: paragraphs that answer among others, which the benchmark
does not look through for the answer.

Notable: in the layout `original` the documents are shuffled the same way in every item, so the answer of qa_1 stands at one
place for each number of documents, as far back or forth as that number happens to say.
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from ..draws import Draws, key_of
from ..prompt import Prompt, PromptTask, Script, Setting, Source, place_of
from ..task import TaskError
from .match import found_any
from .needles import SHUFFLE

_N_NEW = 32
_ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."


@dataclass(frozen=True, slots=True)
class Question:
    """`own`: its paragraphs, of which `gold` hold the answer; `near`: others of its article. Numbers are of the paragraphs."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bank:
    """Questions, and all different paragraphs of the file in alphabetical order."""

    questions: tuple[Question, ...]
    paragraphs: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.questions)


def squad() -> PromptTask:
    """qa_1: rows as of SQuAD, a paragraph and a question each."""
    source = Source(("ruler/qa_1", "squad_v11_1k/validation_1k"), ("question", "answers", "context"))
    return _task("qa_1", "answers from one paragraph among others", source, _read_squad)


def hotpot() -> PromptTask:
    """qa_2: rows as of HotpotQA, a question with ten paragraphs."""
    source = Source(("ruler/qa_2",), ("question", "answer", "context"))
    return _task("qa_2", "answers from paragraphs that belong together", source, _read_hotpot)


def _task(name: str, what: str, source: Source, read: Any) -> PromptTask:
    def make(setting: Setting, index: int, size: int) -> Prompt:
        return _item(name, setting, index, size)

    return PromptTask(
        f"ruler/{name}", what, f"RULER {name} (arXiv 2404.06654)", make, _sizes, found_any, "found",
        needs="rows", sources=(source,), read=read,
    )  # fmt: skip


def _read_squad(rows: list[dict[str, Any]]) -> Bank:
    """Questions without an answer are left out, as the benchmark does."""
    paragraphs = tuple(sorted({str(row["context"]) for row in rows}))
    number = {text: i for i, text in enumerate(paragraphs)}
    of_article: dict[str, dict[int, None]] = {}
    for row in rows:
        of_article.setdefault(str(row.get("title", row["context"])), {})[number[str(row["context"])]] = None
    questions = []
    for row in rows:
        answers = row["answers"]["text"] if isinstance(row["answers"], dict) else row["answers"]
        if isinstance(answers, str):
            # Its letters would be answers that stand everywhere.
            raise TaskError(f"answers={answers!r}: expected a list of texts")
        here = number[str(row["context"])]
        near = tuple(i for i in of_article[str(row.get("title", row["context"]))] if i != here)
        if answers:
            questions.append(Question(str(row["question"]), tuple(map(str, answers)), (here,), (here,), near))
    if rows and not questions:
        raise TaskError(f"no question can be asked: {len(rows)} of {len(rows)} have no answer")
    return Bank(tuple(questions), paragraphs)


def _read_hotpot(rows: list[dict[str, Any]]) -> Bank:
    """Where a row does not say which paragraphs support its answer, all of its own are evidence."""
    own = [_titled(row["context"]) for row in rows]
    paragraphs = tuple(sorted({text for of_row in own for _, text in of_row}))
    number = {text: i for i, text in enumerate(paragraphs)}
    questions = []
    for row, of_row in zip(rows, own, strict=True):
        facts = row.get("supporting_facts") or ()
        titles = set(facts["title"]) if isinstance(facts, dict) else {fact[0] for fact in facts}
        here = tuple(dict.fromkeys(number[text] for _, text in of_row))
        gold = tuple(dict.fromkeys(number[text] for title, text in of_row if title in titles)) or here
        questions.append(Question(str(row["question"]), (str(row["answer"]),), here, gold, ()))
    return Bank(tuple(questions), paragraphs)


def _titled(context: Any) -> list[tuple[str, str]]:
    """(title, title and text) of each paragraph, of pairs [title, sentences] or of two columns."""
    pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
    return [(title, f"{title}\n{''.join(sentences)}") for title, sentences in pairs]


def _sizes(setting: Setting, index: int) -> tuple[int, int]:
    bank: Bank = setting.held
    if index >= len(bank):
        raise TaskError(f"item {index}: the file has {len(bank)} questions with answers; take a lower --limit")
    return len(bank.questions[index].own), len(bank.paragraphs)


@lru_cache(maxsize=4)
def _drawn(name: str, seed: int, index: int, n_near: int, n: int) -> tuple[list[int], list[int], list[int]]:
    """Orders of the paragraphs near and of all, and a number for each place."""
    draws = Draws(key_of(f"ruler/{name}", seed), index)
    return draws.order(n_near), draws.order(n), draws.words(n)


def _item(name: str, setting: Setting, index: int, size: int) -> Prompt:
    bank: Bank = setting.held
    asked = bank.questions[index]
    of_near, of_all, words = _drawn(name, setting.seed, index, len(asked.near), len(bank.paragraphs))
    taken = {*asked.own, *asked.near}
    chosen = [*asked.own, *(asked.near[i] for i in of_near), *(i for i in of_all if i not in taken)][:size]
    if setting.layout == "original":
        Random(SHUFFLE).shuffle(chosen)
    else:
        chosen = [i for _, i in sorted(zip(words, chosen, strict=False))]
        if setting.depth is not None:
            others = [i for i in chosen if i not in asked.gold]
            at = int(setting.depth * len(others) + 0.5)
            chosen = [*others[:at], *asked.gold, *others[at:]]
    script = Script()
    script.say(f"{_ASK}\n\nThe following are given documents.\n\n")
    for place, i in enumerate(chosen):
        script.say(f"{'' if not place else chr(10) * 2}Document {place + 1}:\n")
        script.say(bank.paragraphs[i], "evidence" if i in asked.gold else "distractor")
    script.say(f"\n\n{_ASK}\n\nQuestion: {asked.text} Answer:")
    places = [place for place, i in enumerate(chosen) if i in asked.gold]
    return Prompt(
        task=f"ruler/{name}",
        index=index,
        parts=(script.text,),
        answers=(f" {asked.answers[0]}",),
        options=(),
        references=asked.answers,
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=place_of(places, len(chosen)),
        chance=0.0,
        floor=None,
        factors={"n_documents": len(chosen)},
    )
