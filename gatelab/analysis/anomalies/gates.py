"""Rules about the gate itself: shut or open everywhere, and heads whose gate is dead."""

from collections.abc import Iterator

from ..shares import p_more_often
from .alarm import Alarm, Place
from .evidence import Evidence
from .sinks import TOLERATED

EVERYWHERE = 0.95  # of a layer's scores
DEAD = 0.25  # of the heads


def gate_collapse(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """Runs in which nearly all scores of some layer are shut, or open."""
    words = {"gate_shut": "shut", "gate_open": "open"}
    place = Place("gate-collapse", cell, arm, evidence.baseline)
    for reading, state in words.items():
        yield from _event(evidence, place, reading, EVERYWHERE, f"a layer whose gate is {state} nearly everywhere")


def dead_heads(evidence: Evidence, cell: str, arm: str) -> Iterator[Alarm]:
    """Runs in which more than a quarter of the heads have a gate that is shut and stays so."""
    place = Place("dead-heads", cell, arm, evidence.baseline)
    yield from _event(evidence, place, "gate_dead", DEAD, f"more than {DEAD:.0%} of their heads dead")


def _event(evidence: Evidence, place: Place, reading: str, level: float, words: str) -> Iterator[Alarm]:
    runs = evidence.runs(reading, place.cell, place.arm)
    if len(runs) >= 3:
        n, k = len(runs), sum(value > level for value in runs.values())
        text = f"{k} of {n} runs with {place.arm} have {words}"
        yield place.share(reading, list(runs), k, p_more_often(k, n, TOLERATED), text)
