"""Has a comparison room? Where all arms stand at a floor, or all at a ceiling, they differ by next to nothing whatever a gate does.

Such cells make an interval narrow and say nothing, so a claim leaves them out; where none is left it is undecided. Room is asked of
all arms that are compared, alike: of the baseline alone it would choose cells in which the baseline had luck.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, nextafter

from ..study.metrics import SOLVED
from .causes import NOTHING

FLOOR = 0.05  # of the items right: what is drawn at random has 0.004 at most in any task here
CEILING = 0.95


@dataclass(frozen=True, slots=True)
class Room:
    """What a cell needs: of the arms' means over seeds of `number` some are above `low` and some below `high` (`of_every`: all
    are); `words` say what cells have that have it."""

    number: str
    low: float = -inf
    high: float = inf
    of_every: bool = False
    words: str = "with room"


def has_room(means: Iterable[float], room: Room) -> bool:
    """Whether the arms with these means can be told apart."""
    found = list(means)
    holds = all if room.of_every else any
    return holds(m > room.low for m in found) and holds(m < room.high for m in found)


def accurate(number: str) -> Room:
    """Room of a share of items that are right: not all arms below the floor, nor all at the ceiling."""
    return Room(number, FLOOR, CEILING)


def solved(number: str) -> Room:
    """That every arm has the task."""
    return Room(number, nextafter(SOLVED, 0), of_every=True, words="that both solve")


# A loss has its floor at zero: of a solved task nothing is left to gain.
LOSS = Room("val_loss", NOTHING)
# Of the sizes of two gates' effects: where neither gate does anything they are alike as two idle arms are.
MOVED = Room("the effect", NOTHING)
