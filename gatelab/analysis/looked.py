"""What the search for anomalies has to show on a study's page: the screen, what was registered of it, and causes with rows."""

from collections.abc import Iterable
from dataclasses import dataclass

from .causes import Card
from .hunt import Hunt
from .stages import Registration, Verdict


@dataclass(frozen=True, slots=True)
class Looked:
    """`registration` is None where nothing was registered; `verdicts` are empty until all its runs have ended; `cards` are those
    in which some test has rows."""

    hunt: Hunt
    registration: Registration | None
    verdicts: list[Verdict]
    cards: list[Card]


def with_rows(cards: Iterable[Card]) -> list[Card]:
    """The cards that say anything: some test has its rows."""
    return [c for c in cards if any(d.verdict != "missing" for d in c.decisions)]
