"""Where gates do harm, as fresh seeds confirmed it: a line a kind of harm, each place with its number and the way to its card."""

from math import isfinite
from typing import TYPE_CHECKING, Any

from .atlas_book import anchors
from .atlas_effects import effects_of
from .atlas_words import RULES, Words
from .card_sights import unit_of
from .markup import Html, decimal, places, tag

if TYPE_CHECKING:
    from ..analysis.anomalies import Alarm
    from ..analysis.atlas import Atlas

# Rules whose anomaly is itself a loss of something; of the others it is how a gate behaves.
_HARMS = ("worse-than-none", "removed-but-worse", "worse-at-length", "instability", "gain-vanishes")


def harms(atlas: "Atlas", words: Words) -> Html | None:
    """Anomalies that are harms, then effects for the worse; None where none was read on fresh seeds."""
    by_kind: dict[str, dict[str, list[list[Any]]]] = {}
    for what, arm, place, to, number in _found(atlas):
        said = [tag("a", words.where(place), href=f"#{to}"), f" {number}".rstrip()]
        by_kind.setdefault(what, {}).setdefault(arm, []).append(said)
    title = tag("b", "What gates do harm")
    if not by_kind:
        is_read = atlas.counted(effects=False).read
        return tag("span", title, ": no registered harm was confirmed on fresh seeds.") if is_read else None
    lines = []
    for what, arms in by_kind.items():
        each = [[words.gate(arm), " in ", _joined(told)] for arm, told in arms.items()]
        lines.append(
            tag("li", tag("b", what), ": ", [x for i, part in enumerate(each) for x in ["; "] * (i > 0) + part])
        )
    return tag("span", title, ", confirmed on fresh seeds, how much with its 95% interval:", tag("ul", lines))


def _found(atlas: "Atlas") -> list[tuple[str, str, str, str, str]]:
    """(what, arm, place, anchor, number), by rule."""
    from ..analysis.confirmed import once

    names, out = anchors(atlas), []
    for rule in _HARMS:
        for s in (s for s in atlas.sheets if s.views is not None):
            for a in s.views.anomalies:
                # A claim that is the test of another is told with that one.
                claims = [v.claim for v in once(h.verdict for h in a.held)]
                for h in (h for h in a.held if h.claim.rule == rule and h.claim in claims):
                    to = names[s.letter, a.cell, a.arm]
                    out.append((RULES[rule], s.arms.get(a.arm, a.arm), f"{s.letter} {a.cell}", to, sized(h.fresh)))
    worse = [e for e in effects_of(atlas) if e.is_better is False]
    return [*out, *((e.what, e.arm, e.setting, e.anchor, sized(e.held.fresh)) for e in worse)]


def sized(a: "Alarm | None") -> str:
    """A number with its unit and interval; empty where its test has none."""
    if a is None or not isfinite(a.estimate):
        return ""
    digits = places(max(abs(x) for x in (a.estimate, a.low, a.high) if isfinite(x)), 2)
    interval = f" ({decimal(a.low, digits)} to {decimal(a.high, digits)})" if isfinite(a.high - a.low) else ""
    return f"{decimal(a.estimate, digits)}{unit_of(a.unit)}{interval}"


def _joined(parts: list[list[Any]]) -> list[Any]:
    return [x for i, part in enumerate(parts) for x in [", "] * (i > 0) + part]
