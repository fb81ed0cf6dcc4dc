"""The choice that an item gives: its answer beside wrong ones of the same shape, so that chance is known and the same
for all tasks."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from math import prod

from .draws import Draws, key_of
from .task import TaskItem
from .vocabulary import kind_of

N_OPTIONS = 8


def options_of(item: TaskItem) -> list[tuple[int, ...]]:
    """The answer, and then wrong ones, all different: what the item itself suggests, then answers with one token changed, or
    with more where those are too few.

    Eight, or as many as there are (one bracket has but four). A choice among them by chance is right one time in as many.
    """
    draws = Draws(key_of(f"options/{item.task}", 0), item.index)
    n = min(N_OPTIONS, prod(kind_of(t)[1] for t in item.answer))
    out = [item.answer, *item.rivals[: n - 1]]
    # Two brackets have but six answers with one changed.
    is_few = 1 + sum(kind_of(t)[1] - 1 for t in item.answer) < n
    while len(out) < n:
        base = out[draws.below(len(out))] if is_few else item.answer
        at = draws.below(len(base))
        first, n_kind = kind_of(base[at])
        option = (*base[:at], first + draws.below(n_kind), *base[at + 1 :])
        if option not in out:
            out.append(option)
    return out


def chance_of(item: TaskItem) -> float:
    """The share of exact matches of tokens drawn at random, each from those of its kind."""
    return prod(1 / kind_of(t)[1] for t in item.answer)


def copied_choice(options: Sequence[Sequence[object]], said: AbstractSet[object]) -> float:
    """What blind copying scores in a choice whose first option is right: those are equally likely that are made of what the
    item says; all are where none is."""
    stands = [all(word in said for word in option) for option in options]
    return stands[0] / sum(stands) if any(stands) else 1 / len(options)
