"""What guessing scores by each measure of an answer: tokens of the right kind at random, or copied blindly out of the item.

Notable: an answer of a value and a document is all right by chance far less often than its document is, so a measure of a part
stands beside guesses of that part. Copied tokens are all different, as one says them who knows that no answer repeats itself.
"""

from collections import Counter
from collections.abc import Sequence
from math import comb

from .task import Span, Task, TaskItem
from .vocabulary import kind_of

Guess = tuple[float, float]  # what chance scores, and what copying does
# Half of their items have no evidence, and who says of all what is right of those, NONE or what was learned, is right in half.
HALF = ("absent", "conflict")


def floor_with_evidence(task: str, floor: float | None, pieces: Sequence[Span]) -> float | None:
    """The copying floor of an item among those alone that have evidence, where saying what is right of the others is never
    right; `pieces` are its evidence and its distractors."""
    return 1 / len(pieces) if task in HALF else floor


def copies(task: str, floor: float | None) -> bool:
    """Whether an item's floor is that of copying, and not of saying one thing always."""
    return task not in HALF or floor != 1 / 2


def guesses_of(task: Task, item: TaskItem) -> dict[str, Guess]:
    """{metric: (chance, copying)} of what an item is scored by beside being all right; docs/metrics.md says how."""
    right = item.answer
    match task.answer:
        case "set":
            return dict.fromkeys(_shares("answer"), _of_tokens(item, right))
        case "cite":
            cited = dict.fromkeys(_shares("citation"), _of_tokens(item, right[1:]))
            return {"answer_exact": _of_tokens(item, right[:1])} | cited
        case "each":
            # After each key one token is said, which another key's may be too.
            guesses = [_of_tokens(item, (token,)) for token in right]
            chances, floors = zip(*guesses, strict=True)
            return {"query_accuracy": (sum(chances) / len(right), sum(floors) / len(right))}
    return {}


def _shares(what: str) -> list[str]:
    """Of as many tokens as are asked, precision, recall and F1 are the same number."""
    return [f"{what}_{name}" for name in ("precision", "recall", "f1")]


def _of_tokens(item: TaskItem, right: Sequence[int]) -> Guess:
    """The share of `right`, tokens of one kind, among as many that are guessed."""
    first, n_kind = kind_of(right[0])
    n = len(right)
    chance = sum(_at_least(k, n, 1 / n_kind) for m in Counter(right).values() for k in range(1, m + 1)) / n
    there = {t for t in item.tokens[: item.asked[0] + 1] if first <= t < first + n_kind}
    copied = len(there & set(right)) * min(1.0, n / len(there)) / n if there else 0.0
    return chance, copied


def _at_least(k: int, n: int, p: float) -> float:
    """P(k or more of n draws hit), each with probability p."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
