"""Lost in the Middle (arXiv 2307.03172): a value among keys of one JSON object, and an answer among documents.

Notable: where the gold one stands is the knob `depth`. Words of the prompts, scores and 100 tokens for an answer are the
paper's. Its own documents were retrieved; `qa_random` takes those of other questions, its variant, from a file of gold ones;
`…_aware` asks before the context too, which the paper calls query-aware contextualization; `qa_closed_book` asks without any
document, and `qa_oracle` with the gold one alone: its baselines, below and above. Pairs are drawn, and fill the length, unless a
file of the paper's is there: then an item is the file's, with all of its pairs.
"""

import re
import string
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .draws import Draws, key_of
from .options import N_OPTIONS
from .prompt import Prompt, PromptTask, Script, Setting, Source
from .task import TaskError

_N_NEW = 100
_AT_ONCE = 64  # pairs in a draw: more pairs change none before them
_ASKED_FOR = (
    "Write a high-quality answer for the given question using only the provided search results (some of which might be "
    "irrelevant).\n\n"
)
# The paper's query-aware contextualization: what is asked stands before the context too.
_ASKED_BEFORE = ("middle/kv_aware", "middle/qa_aware", "middle/qa_random_aware")
_FIELDS = ("question", "answers", "ctxs")
RETRIEVED = Source(("middle/qa",), _FIELDS)
# The paper's own file of gold documents will do.
_ORACLE = Source(("middle/qa_random", "lost_in_the_middle/nq-open-oracle"), _FIELDS)
_KEYS_OF_FILES = (75, 140, 300)  # in the order in which the paper's own files of pairs are looked for
PAIRS = Source(
    ("middle/kv", *(f"lost_in_the_middle/kv-retrieval-{n}_keys" for n in _KEYS_OF_FILES)),
    ("ordered_kv_records", "key", "value"),
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answers, the document that holds one (and it normalised), and others in their order; a document is a title
    and a text."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[str, str]
    plain: str
    others: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The (key, value) that is asked for, where it stands in the file, and the others in their order."""

    gold: tuple[str, str]
    at: int
    others: tuple[tuple[str, str], ...]


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and more than one blank, as SQuAD's evaluation has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def best_subspan(prompt: Prompt, written: tuple[str, ...]) -> float:
    """1 where a normalised answer stands in the first line that was written, normalised."""
    said = normalised(written[0].partition("\n")[0])
    # What normalises to nothing, such as "The", would stand in every text.
    return float(any(wanted in said for reference in prompt.references if (wanted := normalised(reference))))


def value_found(prompt: Prompt, written: tuple[str, ...]) -> float:
    """1 where the value stands anywhere in what was written, blind to case."""
    return float(prompt.references[0].lower() in written[0].lower())


def _pairs(seed: int, index: int, n: int) -> list[tuple[str, str]]:
    """(key, value) of the gold pair and of n − 1 others; the first ones are the same for any n."""
    draws = Draws(key_of("middle/kv", seed), index)
    out: list[tuple[str, str]] = []
    while len(out) < n:
        words = draws.words(8 * _AT_ONCE)
        wide = [sum(w << 32 * j for j, w in enumerate(words[i : i + 4])) for i in range(0, len(words), 4)]
        ids = [str(uuid.UUID(int=number, version=4)) for number in wide]
        out += zip(ids[::2], ids[1::2], strict=True)
    return out[:n]


def _place(setting: Setting, name: str, index: int, n: int, stated: int | None = None) -> int:
    """Which of n the gold one is: where no depth is asked for, as a file states it, else drawn."""
    if setting.depth is not None:
        return int(setting.depth * (n - 1) + 0.5)
    return Draws(key_of(f"{name}/place", setting.seed), index).below(n) if stated is None else stated


def _kv(name: str, setting: Setting, index: int, size: int) -> Prompt:
    asked: Pairs | None = setting.held[index] if setting.held else None
    if asked is None:
        (key, value), *others = _pairs(setting.seed, index, size)
        wrong = [v for _, v in _pairs(setting.seed, index, max(size, N_OPTIONS))[1:N_OPTIONS]]
    else:
        (key, value), others = asked.gold, asked.others
        wrong = [v for _, v in others[: N_OPTIONS - 1]]
    at = _place(setting, "middle/kv", index, size, None if asked is None else asked.at)
    records = [("distractor", k, v) for k, v in others]
    records.insert(at, ("evidence", key, value))
    script, question = Script(), f'Key: "{key}"\n'
    script.say("Extract the value corresponding to the specified key in the JSON object below.\n\n", "kept")
    script.say(f"{question}\n" if name in _ASKED_BEFORE else "", "kept")
    script.say("JSON data:\n{", "kept")
    script.say_all([(role, f'"{k}": "{v}"') for role, k, v in records], ",\n ")
    script.say(f"}}\n\n{question}Corresponding value:", "kept")
    return Prompt(
        task=name,
        index=index,
        parts=(script.text,),
        answers=(f' "{value}"',),
        options=tuple((f' "{v}"',) for v in (value, *wrong)),
        references=(value,),
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=at / (size - 1),
        chance=2.0**-122,
        floor=1 / size,
        factors={"n_pairs": size},
        kept=tuple(script.spans["kept"]),
    )


def documents_of(
    name: str, setting: Setting, index: int, size: int, say: str = "Document [{}](Title: {}) {}"
) -> tuple[int, list[tuple[str, str]]]:
    """Which of the `size` documents of a question is gold, and their (role, text) in order."""
    at = _place(setting, name, index, size)
    given = list(_others(name, setting, index)[: size - 1])
    given.insert(at, setting.held[index].gold)
    role = {True: "evidence", False: "distractor"}
    return at, [(role[i == at], say.format(i + 1, title, text)) for i, (title, text) in enumerate(given)]


def _documents(name: str, setting: Setting, index: int, size: int) -> Prompt:
    asked: Question = setting.held[index]
    # Asked before, too, an item is the same but for that.
    at, documents = documents_of(name.removesuffix("_aware"), setting, index, size)
    script, question = Script(), f"Question: {asked.text}\n"
    script.say(_ASKED_FOR, "kept")
    script.say(f"{question}\n" if name in _ASKED_BEFORE else "", "kept")
    script.say_all(documents, "\n")
    script.say(f"\n\n{question}Answer:", "kept")
    return _prompt(name, index, asked, script, size, at / (size - 1))


def _baseline(name: str, setting: Setting, index: int, size: int) -> Prompt:
    """Without documents (size 0), or with the gold one alone (1)."""
    asked: Question = setting.held[index]
    script = Script()
    if size:
        script.say(_ASKED_FOR, "kept")
        script.say("Document [1](Title: {}) {}".format(*asked.gold), "evidence")
        script.say("\n\n")
    script.say(f"Question: {asked.text}\nAnswer:", "kept")
    return _prompt(name, index, asked, script, size, None)


def _prompt(name: str, index: int, asked: Question, script: Script, size: int, depth: float | None) -> Prompt:
    return Prompt(
        task=name,
        index=index,
        parts=(script.text,),
        answers=(f" {asked.answers[0]}",),
        options=(),
        references=asked.answers,
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=depth,
        chance=0.0,
        floor=None,
        factors={"n_documents": size},
        kept=tuple(script.spans["kept"]),
    )


def _others(name: str, setting: Setting, index: int) -> Sequence[tuple[str, str]]:
    """The documents that may stand beside the gold one, those that come first first."""
    return _strangers(setting, index) if name.startswith("middle/qa_random") else setting.held[index].others


def _strangers(setting: Setting, index: int) -> list[tuple[str, str]]:
    """Gold documents of other questions in a drawn order, those left out that hold an answer of this one."""
    asked: Question = setting.held[index]
    answers = [wanted for a in asked.answers if (wanted := normalised(a))]
    order = Draws(key_of("middle/qa_random", setting.seed), index).order(len(setting.held))
    others = [setting.held[i] for i in order if i != index]
    return list(dict.fromkeys(q.gold for q in others if not any(a in q.plain for a in answers)))


def pairs_of(rows: list[dict[str, Any]]) -> tuple[Pairs, ...]:
    """Raises TaskError: a row whose pairs are no two or more of different UUIDs, or whose key or value is not of one of them."""
    items = []
    for number, row in enumerate(rows, 1):
        records = row["ordered_kv_records"]
        is_list = isinstance(records, list) and len(records) > 1
        if not is_list or not all(isinstance(pair, list) and len(pair) == 2 for pair in records):
            raise TaskError(f"row {number}: its ordered_kv_records are no list of two pairs or more, [key, value] each")
        if other := next((text for pair in records for text in pair if not _UUID.fullmatch(str(text))), None):
            raise TaskError(f"row {number}: {other!r} in its ordered_kv_records: expected UUIDs, as the paper has them")
        pairs, gold = [tuple(pair) for pair in records], (row["key"], row["value"])
        if gold not in pairs or len({key for key, _ in pairs}) < len(pairs) or len({v for _, v in pairs}) < len(pairs):
            raise TaskError(
                f"row {number}: its key and value are no pair of its ordered_kv_records, or these name something twice"
            )
        at = pairs.index(gold)
        items.append(Pairs(gold, at, tuple(pairs[:at] + pairs[at + 1 :])))
    return tuple(items)


def _pair_sizes(name: str, setting: Setting, index: int) -> tuple[int, int]:
    """The fewest and the most pairs: of a file as many as it has, so that its items are the paper's or none."""
    if not setting.held:
        return 2, max(2, setting.length)
    _check_number(name, setting, index)
    n = 1 + len(setting.held[index].others)
    return n, n


def questions_of(rows: list[dict[str, Any]]) -> tuple[Question, ...]:
    """Raises TaskError: a row without a gold document, or whose answers are no list of texts."""
    questions = []
    for number, row in enumerate(rows, 1):
        answers = row["answers"]
        # The letters of one text would be answers that stand everywhere.
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise TaskError(f"row {number}: answers={answers!r}: expected a list of texts, none empty")
        gold = next((c for c in row["ctxs"] if c.get("isgold")), None)
        if gold is None:
            raise TaskError(
                f"row {number}: none of its ctxs has isgold, so no document is known to answer; expected one"
            )
        others = tuple((c["title"], c["text"]) for c in row["ctxs"] if not c.get("isgold"))
        best = gold["title"], gold["text"]
        questions.append(Question(row["question"], tuple(answers), best, normalised(" ".join(best)), others))
    return tuple(questions)


def document_sizes(name: str, setting: Setting, index: int) -> tuple[int, int]:
    """The fewest and the most documents of a question.

    Raises:
        TaskError: no such question, or no documents beside its gold one.
    """
    _check_number(name, setting, index)
    n = 1 + len(_others(name, setting, index))
    if n < 2:
        raise TaskError(
            f"{name} {index}: has its gold document alone; give 10, 20 or 30 a question, or ask middle/qa_random"
        )
    return 2, n


def _check_number(name: str, setting: Setting, index: int) -> None:
    if index >= len(setting.held):
        raise TaskError(f"{name} {index}: the file has {len(setting.held)} questions; take a lower --limit")


def _of_documents(name: str, what: str, source: Source) -> PromptTask:
    return PromptTask(
        name, what, "Lost in the Middle, multi-document QA (arXiv 2307.03172)",
        lambda setting, index, size: _documents(name, setting, index, size),
        lambda setting, index: document_sizes(name, setting, index),
        best_subspan, "best_subspan_em", stops=("\n",), needs="rows", sources=(source,), read=questions_of,
    )  # fmt: skip


def _of_baseline(name: str, what: str, n_documents: int) -> PromptTask:
    def sizes(setting: Setting, index: int) -> tuple[int, int]:
        _check_number(name, setting, index)
        return n_documents, n_documents

    source = Source((*RETRIEVED.names, *_ORACLE.names), _FIELDS)
    return PromptTask(
        name, what, "Lost in the Middle, multi-document QA (arXiv 2307.03172)",
        lambda setting, index, size: _baseline(name, setting, index, size), sizes,
        best_subspan, "best_subspan_em", stops=("\n",), has_depth=False, needs="rows", sources=(source,), read=questions_of,
    )  # fmt: skip


def _of_pairs(name: str, what: str) -> PromptTask:
    return PromptTask(
        name, what, "Lost in the Middle, key-value retrieval (arXiv 2307.03172)",
        lambda setting, index, size: _kv(name, setting, index, size),
        lambda setting, index: _pair_sizes(name, setting, index), value_found, "best_subspan_em",
        sources=(PAIRS,), read=pairs_of,
    )  # fmt: skip


MIDDLE: dict[str, PromptTask] = {
    made.name: made
    for made in (
        _of_pairs("middle/kv", "finds a UUID by its key among pairs"),
        _of_pairs("middle/kv_aware", "the same, the key being asked before the pairs too"),
        _of_documents("middle/qa", "answers from one document among retrieved ones", RETRIEVED),
        _of_documents("middle/qa_aware", "the same, the question being asked before the documents too", RETRIEVED),
        _of_documents("middle/qa_random", "answers from one document among those of other questions", _ORACLE),
        _of_documents("middle/qa_random_aware", "the same, asked before the documents too", _ORACLE),
        _of_baseline("middle/qa_closed_book", "answers the questions of qa without a document, from memory", 0),
        _of_baseline("middle/qa_oracle", "answers the questions of qa from the gold document alone", 1),
    )
}
