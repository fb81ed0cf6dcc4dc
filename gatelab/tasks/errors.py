"""What kind of error an answer is, of the tasks whose wrong answers say why: conflict, multikey, bracket, select. Pure Python.

Notable: tokens or words alike, so a model that reads ids and one that reads text are told the same. A score that an item does not
have (the first error of an answer without one) is left out of its mean.
"""

from collections.abc import Collection, Sequence
from typing import Any

# Metric -> unit; `docs/metrics.md` defines them.
UNITS = {
    "context_answers": "share", "memory_answers": "share", "memorization_ratio": "share", "error_neighbour": "share",
    "error_other_value": "share", "error_elsewhere": "share", "first_error": "tokens", "sentence_recall": "share",
}  # fmt: skip
Key = tuple[str, int | None]  # metric, and the number of a sentence


def errors_of(
    task: str,
    given: Sequence[Any],
    right: Sequence[Any],
    *,
    factors: dict[str, Any],
    others: Collection[Any] = (),
    n_pieces: int = 0,
) -> dict[Key, float]:
    """{(metric, bin): value} of one item; nothing of another task.

    Args:
        given, right: tokens or words that were said and asked; of what was given as many as were asked count.
        factors: the item's own, in the same tokens or words: of conflict `says` and `memory`, of multikey `neighbours`.
        others: values of multikey's other pairs.
        n_pieces: sentences of select.
    """
    given, right = tuple(given)[: len(right)], tuple(right)
    match task:
        case "conflict" if factors["says"]:
            return _of_conflict(given, right, factors["memory"])
        case "multikey":
            return _of_pairs(given, right, factors["neighbours"], others)
        case "bracket" if given != right:
            return {("first_error", None): float(next(i for i, r in enumerate(right) if given[i : i + 1] != (r,)))}
        case "select" if n_pieces:
            return _of_sentences(given, right, n_pieces)
    return {}


def _of_conflict(given: tuple[Any, ...], right: tuple[Any, ...], memory: Any) -> dict[Key, float]:
    """Where the text contradicts what was learned: is it the text's value that is said, or the learned one?"""
    from_text, from_memory = given == right, given == (memory,)
    found: dict[Key, float] = {("context_answers", None): from_text, ("memory_answers", None): from_memory}
    if from_text or from_memory:
        found["memorization_ratio", None] = from_memory
    return {key: float(value) for key, value in found.items()}


def _of_pairs(
    given: tuple[Any, ...], right: tuple[Any, ...], neighbours: Collection[Any], others: Collection[Any]
) -> dict[Key, float]:
    said = given[0] if given else None
    if given == right:
        kind = None
    elif said in neighbours:
        kind = "error_neighbour"
    else:
        kind = "error_other_value" if said in others else "error_elsewhere"
    return {(name, None): float(name == kind) for name in ("error_neighbour", "error_other_value", "error_elsewhere")}


def _of_sentences(given: tuple[Any, ...], right: tuple[Any, ...], n: int) -> dict[Key, float]:
    """Of each sentence, in the text's order, whether all of it is said somewhere, in one stretch."""
    width = len(right) // n
    said = {given[i : i + width] for i in range(len(given) - width + 1)}
    return {("sentence_recall", i): float(right[i * width : (i + 1) * width] in said) for i in range(n)}


def means(items: Sequence[dict[Key, float]]) -> dict[Key, float]:
    """Of each score, the mean over the items that have it."""
    of: dict[Key, list[float]] = {}
    for item in items:
        for key, value in item.items():
            of.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in of.items()}
