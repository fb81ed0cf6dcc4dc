"""The atlas on how effects vary over sizes, architectures and tasks: each study's factors and spreads, and what none tells."""

from typing import TYPE_CHECKING

from .atlas_book import book_of, linked
from .document import Charts
from .markup import Html, tag
from .parts import section
from .varied import TITLE, headline, lead, tables

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas


def varies(atlas: "Atlas", charts: Charts) -> Html:
    """Study by study, folded; nothing is pooled over studies."""
    from ..analysis.varied import ASKED

    found = [(s, s.views.varied) for s in atlas.sheets if s.views is not None and s.views.varied is not None]
    if not found:
        none = tag("p", "No study here has a gate beside an ungated baseline in cells that can be compared.")
        return section("varies", TITLE, none)
    rows = []
    for s, of in found:
        name = f"{s.letter} {s.name}"
        summary = tag("summary", tag("b", name), f": {headline(of)}")
        there = tag("p", "On its own page: ", linked(s, section="varies"), class_="about")
        told = tables(of, book_of(s, charts).arm, name, behind=f" ({name})")
        rows.append(tag("details", summary, there, told, class_="print"))
    untold = [word for word in ASKED if all(word in of.fixed for _, of in found)]
    words = f"In no study here do the cells differ in {' or '.join(untold)} so that it could be told." if untold else ""
    each = "A study each, for its cells share seeds; nothing is pooled over studies."
    return section("varies", TITLE, tag("p", lead()), tag("p", f"{each} {words}".strip()), rows)
