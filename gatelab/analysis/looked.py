"""What the search for anomalies has to show on a study's page: the screen, what was registered and confirmed of it, and causes."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .anomalies.evidence import Evidence
from .causes import Card
from .confirmed import Anomaly
from .hunt import Hunt
from .registration import Registration, Verdict


@dataclass(frozen=True, slots=True)
class Looked:
    """`registration` is None where nothing was registered; `verdicts` are empty until all its runs have ended, and `fresh` is the
    evidence that they rest on; `cards` are those in which some test has rows. `confirmed` is what a page shows a card of, and
    `unread` a sentence for each study that was made for its causes and cannot be read."""

    hunt: Hunt
    registration: Registration | None
    verdicts: list[Verdict]
    cards: list[Card]
    fresh: Evidence | None = None
    confirmed: list[Anomaly] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def with_rows(cards: Iterable[Card]) -> list[Card]:
    """The cards that say anything: some test has its rows."""
    return [c for c in cards if any(d.verdict != "not run" for d in c.decisions)]
