"""What both ways of asking our own tasks, in words and as ids, make of what they found."""

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from ..record import Row
from .found import Found
from .own_across import ByItem
from .own_asking import PREFIX, OwnAsking, Prepared


def by_item(scores: Iterable[tuple[int, dict[str, float]]]) -> dict[str, ByItem]:
    """{metric: {item: score}}"""
    out: dict[str, ByItem] = {}
    for index, of in scores:
        for metric, value in of.items():
            out.setdefault(metric, {})[index] = value
    return out


def add(found: Found, more: tuple[list[Row], list[dict[str, Any]]]) -> None:
    """Rows and records of several lengths or depths."""
    found.rows += more[0]
    found.records += more[1]


def note_refused(found: Found) -> None:
    """A sentence a task of which items were refused, with the first reason."""
    reasons: dict[str, list[str]] = {}
    for item in found.items:
        if "refused" in item.factors:
            reasons.setdefault(item.task, []).append(item.factors["refused"])
    for name, said in reasons.items():
        n = f"{len(said)} items" if len(said) > 1 else "1 item"
        found.notes.append(f"{PREFIX}{name}: {n} refused, as in: {said[0]}")


def finished(found: Found, title: str, asking: OwnAsking, prepared: Prepared, new_tokens: int | None) -> Found:
    """With what it was asked."""
    stated = {"distractors": asking.distractors, "hardness": asking.hardness}
    if any(value is not None for value in stated.values()):
        found.notes.append(
            "our tasks with " + ", ".join(f"{knob}={value}" for knob, value in stated.items() if value is not None)
        )
    found.about = {
        "model": title,
        "notes": found.notes,
        "packages": {package: version(package) for package in ("gatelab", "torch")},
        "gatelab": {
            "tasks": list(prepared),
            "lengths": sorted({row.length for row in found.rows if row.length is not None}),
            "depths": list(asking.depths),
            "limit": asking.limit,
            **stated,
            "layout": asking.layout,
            "haystack": None if asking.haystack is None else str(asking.haystack),
            "new_tokens": new_tokens,
            "chat": asking.chat,
            "text": asking.text,
            "window": asking.window,
            "keys": None if asking.keys is None else str(asking.keys),
            "untrained": asking.untrained,
        },
    }
    return found
