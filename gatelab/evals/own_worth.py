"""What answers in words are worth beside being right: as sets, by edits, copied from the start, and which errors they are.

Notable: of what was written as many words count as were asked; an output that was tied for the best, or no number, counts as
nothing said.
"""

from collections.abc import Sequence
from typing import Any

from ..tasks import TASKS, open_task
from ..tasks.errors import Key, errors_of
from ..tasks.metrics import cited, copied_from_start, edit_similarity, overlap
from ..tasks.prompt import Prompt, words_in
from ..tasks.vocabulary import word

_SHOWN = 3  # words of an output in which a copied beginning shows


def worth_of(prompt: Prompt, written: Sequence[str], *, is_sure: bool) -> dict[Key, float]:
    """{(metric, number of a sentence): score} of one item; docs/metrics.md defines them.

    Args:
        is_sure: nothing that was written was tied, or no number.
    """
    written = tuple(written) if is_sure else ("",) * len(prompt.answers)
    start = ["", *words_in(prompt.parts[0])[:_SHOWN]]
    if prompt.task not in TASKS:
        return {("copied_from_start", None): float(copied_from_start(words_in(written[0])[:_SHOWN], start))}
    answers = [words_in(answer) for answer in prompt.answers]
    said = [words_in(text)[: len(answer)] for text, answer in zip(written, answers, strict=True)]
    given, right = [w for words in said for w in words], [w for words in answers for w in words]
    out: dict[Key, float] = {
        ("edit_similarity", None): edit_similarity(given, right),
        ("copied_from_start", None): float(copied_from_start(given, start)),
    }
    task = open_task(prompt.task)
    shares = {}
    match task.answer:
        case "set":
            shares["answer"] = overlap(given, right)
        case "cite":
            is_right, shares["citation"] = cited(given, right)
            out["answer_exact", None] = float(is_right)
        case "each":
            hits = [own == answer for own, answer in zip(said, answers, strict=True)]
            out["query_accuracy", None] = sum(hits) / len(hits)
    for what, share in shares.items():
        out |= {(f"{what}_{name}", None): getattr(share, name) for name in ("precision", "recall", "f1")}
    if not is_sure:
        return out  # which error it is, is not known
    values = {w for w in words_in(prompt.parts[0]) if w.isdigit()} - set(right)
    return out | errors_of(
        prompt.task, given, right, factors=_in_words(prompt.factors), others=values, n_pieces=len(prompt.evidence)
    )


def _in_words(factors: dict[str, Any]) -> dict[str, Any]:
    """Factors with the words of their tokens."""
    named = {"memory": lambda token: word(token), "neighbours": lambda tokens: [word(t) for t in tokens]}
    return {key: named[key](value) if key in named else value for key, value in factors.items()}
