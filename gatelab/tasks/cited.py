"""Answers with citations, `… 2281 [3]`: prompts over numbered documents of which the gold ones are known.

Notable: L-CiteEval's form (arXiv 2410.02115), numbered chunks, one worked example, markers behind the answer; its needle task
has one gold chunk, its counting tasks several; `qa` asks Lost in the Middle's files, and `qasper` papers whose gold paragraphs are
known. Its scores where gold ids are known are `gatelab.tasks.citations`; the first three citations of the first line count, as in
its needle task, or as many as there are gold ones, where those are more.
"""

from functools import lru_cache

from .citations import CitedText, cited_text
from .draws import Draws, key_of
from .guesses import Guess
from .middle import RETRIEVED, best_subspan, document_sizes, documents_of, questions_of
from .options import N_OPTIONS
from .papers import PAPERS, QUESTIONS, YES_NO, PaperQuestion, paper_sizes, questions_of_papers
from .prompt import Prompt, PromptTask, Script, Setting, place_of
from .vocabulary import KEYS, N_KEYS, N_VALUES, VALUES, word

_N_NEW = 40
_MOST = 3
_OF_EXAMPLE = 4  # the first keys, which no item has
_DOCUMENTS = (N_KEYS - _OF_EXAMPLE) // 2  # at most: two facts each, and no key twice
_RULE = (
    "Answer the question from the numbered documents alone, and name behind the answer every document that says it, as in "
    "[2] or [2][5].\n\n"
)


def judged(prompt: Prompt, text: str) -> CitedText:
    """What was written, answer and citations apart."""
    line = next((line for line in text.splitlines() if line.strip()), "")

    def is_right(answer: str) -> bool:
        if prompt.task == "citations/qa":
            return best_subspan(prompt, (answer,)) == 1
        blind = prompt.task == "citations/qasper"  # to case
        said, references = (
            (answer.lower(), [r.lower() for r in prompt.references]) if blind else (answer, prompt.references)
        )
        return any(said.startswith(r) and not said[len(r) : len(r) + 1].isalnum() for r in references)

    gold, n = prompt.factors["gold"], prompt.factors["n_documents"]
    return cited_text(line, gold, range(1, n + 1), is_right, most=max(_MOST, len(gold)))


def _f1(prompt: Prompt, written: tuple[str, ...]) -> float:
    return judged(prompt, written[0]).share.f1


def _fact(number: int, facts: list[tuple[int, int]]) -> str:
    said = "; ".join(f"the code of {word(key)} is {word(value)}" for key, value in facts)
    return f"Document [{number}]: {said.capitalize()}."


def _example(n_gold: int) -> str:
    keys, values = range(KEYS, KEYS + _OF_EXAMPLE), range(VALUES, VALUES + _OF_EXAMPLE)
    first, second, third, fourth = zip(keys, values, strict=True)
    documents = [[first, second], [third, fourth] if n_gold == 1 else [third, second]]
    answer = "[1]" if n_gold == 1 else "[1][2]"
    said = "\n".join(_fact(i, facts) for i, facts in enumerate(documents, 1))
    return f"{said}\n\nQuestion: What is the code of {word(second[0])}?\nAnswer: {word(second[1])} {answer}\n\n"


def _places(name: str, setting: Setting, index: int, size: int, n_gold: int) -> list[int]:
    """Of the gold documents among all: side by side at a depth, strewn without one."""
    if setting.depth is not None:
        first = int(setting.depth * (size - n_gold) + 0.5)
        return list(range(first, first + n_gold))
    draws = Draws(key_of(f"{name}/place", setting.seed), index)
    return sorted(draws.order(size)[:n_gold])


@lru_cache(maxsize=4)
def _drawn(name: str, seed: int, index: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Keys, values, which of two facts is asked, and an order of documents: as many as there may be, so that more documents
    change nothing of the first."""
    draws = Draws(key_of(name, seed), index)
    keys = [KEYS + _OF_EXAMPLE + k for k in draws.order(2 * _DOCUMENTS)]
    values = [VALUES + v for v in draws.many(2 * _DOCUMENTS, N_VALUES)]
    return keys, values, draws.many(_DOCUMENTS, 2), draws.order(_DOCUMENTS)


def _facts(name: str, setting: Setting, index: int, size: int, n_gold: int) -> Prompt:
    keys, values, is_second, order = _drawn(name, setting.seed, index)
    places = _places(name, setting, index, size, n_gold)
    asked, value = keys[0], values[0]
    script, others = Script(), iter(range(2 + n_gold, 2 + n_gold + 2 * size))
    script.say(_RULE + _example(n_gold), "kept")
    documents = []
    for at in range(size):
        if at in places:
            g = places.index(at)
            facts = [(asked, value), (keys[1 + g], values[1 + g])]
            facts = facts[::-1] if is_second[g] else facts
        else:
            facts = [(keys[i], values[i]) for i in (next(others), next(others))]
        documents.append(("evidence" if at in places else "distractor", _fact(at + 1, facts)))
    script.say_all(documents, "\n")
    script.say(f"\n\nQuestion: What is the code of {word(asked)}?\nAnswer:", "kept")
    wrong = [p for p in order if p < size and p not in places][: N_OPTIONS - 1]
    cited = [[p + 1 for p in places], *(sorted([p + 1 for p in places[:-1]] + [w + 1]) for w in wrong)]
    said = [f" {word(value)} " + "".join(f"[{n}]" for n in numbers) for numbers in cited]
    blind = {"answer_exact": (1 / N_VALUES, 1 / (2 * size - n_gold + 1))}  # of the facts that are said, each once
    return _prompt(
        name, index, script, said, (word(value),), cited[0], size, None if n_gold > 1 else places[0] / (size - 1), blind
    )


def _documents(name: str, setting: Setting, index: int, size: int) -> Prompt:
    asked = setting.held[index]
    at, documents = documents_of("middle/qa", setting, index, size, "Document [{}]: {}. {}")
    script = Script()
    script.say(_RULE + _example(1), "kept")
    script.say_all(documents, "\n")
    script.say(f"\n\nQuestion: {asked.text}\nAnswer:", "kept")
    said = [f" {asked.answers[0]} [{at + 1}]"]
    return _prompt(name, index, script, said, asked.answers, [at + 1], size, at / (size - 1))


def _paragraphs(setting: Setting, index: int, size: int) -> Prompt:
    asked: PaperQuestion = setting.held[index]
    chosen = asked.chosen("citations/qasper", setting, index, size)
    is_choice = asked.answer in YES_NO
    script = Script()
    script.say(f"{_RULE}{_example(1)}", "kept")
    script.say_all(
        [
            ("evidence" if i in asked.gold else "distractor", f"Document [{n}]: {asked.paragraphs[i]}")
            for n, i in enumerate(chosen, 1)
        ],
        "\n",
    )
    ask = f"{asked.text}{' Answer Yes or No.' if is_choice else ''}"
    script.say(f"\n\nQuestion: {ask}\nAnswer:", "kept")
    places = [place for place, i in enumerate(chosen) if i in asked.gold]
    cited = "".join(f"[{place + 1}]" for place in places)
    wrong = [word for word in YES_NO if is_choice and word != asked.answer]
    return _prompt(
        "citations/qasper", index, script, [f" {word} {cited}" for word in (asked.answer, *wrong)], (asked.answer,),
        [place + 1 for place in places], size, place_of(places, size),
    )  # fmt: skip


def _prompt(
    name: str,
    index: int,
    script: Script,
    said: list[str],
    references: tuple[str, ...],
    gold: list[int],
    size: int,
    depth: float | None,
    guesses: dict[str, Guess] | None = None,
) -> Prompt:
    def blind(n: int) -> float:
        """Mean F1 of who cites n documents blindly: of those right, 2 × how many / (cited + gold)."""
        return n * len(gold) / size * 2 / (n + len(gold))

    most = min(max(_MOST, len(gold)), size)
    return Prompt(
        task=name,
        index=index,
        parts=(script.text,),
        answers=(said[0],),
        options=tuple((s,) for s in said) if len(said) > 1 else (),
        references=references,
        n_new=_N_NEW,
        evidence=tuple(script.spans["evidence"]),
        distractors=tuple(script.spans["distractor"]),
        depth=depth,
        chance=blind(1),
        floor=blind(most),
        factors={"n_documents": size, "gold": gold},
        kept=tuple(script.spans["kept"]),
        guesses={
            "citation_precision": (len(gold) / size, len(gold) / size),
            "citation_recall": (1 / size, most / size),
            "citation_f1": (blind(1), blind(most)),
            **(guesses or {}),
        },
    )


def _of_facts(name: str, what: str, mirrors: str, n_gold: int) -> PromptTask:
    return PromptTask(
        name, what, mirrors,
        lambda setting, index, size: _facts(name, setting, index, size, n_gold),
        lambda setting, index: (n_gold + 1, max(n_gold + 1, min(setting.length, _DOCUMENTS - n_gold))),
        _f1, "citation_f1", stops=("\n",),
    )  # fmt: skip


CITATIONS: dict[str, PromptTask] = {
    made.name: made
    for made in (
        _of_facts("citations/one", "answers and cites the one document that says it", "L-CiteEval, needle", 1),
        _of_facts("citations/three", "the same of three documents that say it", "L-CiteEval, counting", 3),
        PromptTask(
            "citations/qa", "answers a question and cites its document", "L-CiteEval, question answering, with gold ids",
            lambda setting, index, size: _documents("citations/qa", setting, index, size),
            lambda setting, index: document_sizes("middle/qa", setting, index),
            _f1, "citation_f1", stops=("\n",), needs="rows", sources=(RETRIEVED,), read=questions_of,
        ),
        PromptTask(
            "citations/qasper", "answers a question on a paper and cites its paragraphs",
            "Qasper (arXiv 2105.03011), with gold ids",
            _paragraphs, lambda setting, index: paper_sizes("citations/qasper", setting, index),
            _f1, "citation_f1", stops=("\n",), has_depth=False, needs="rows", sources=(QUESTIONS, PAPERS),
            read=questions_of_papers,
        ),
    )
}  # fmt: skip
