"""The atlas' anomalies: a folded card for every cell and arm of which fresh seeds confirmed something, study by study."""

from typing import TYPE_CHECKING

from .anomaly_cards import short_card
from .atlas_book import anchors, book_of, colours, linked, way
from .atlas_guide import registered
from .atlas_sights import scale, sights_of
from .document import Charts
from .markup import Html, tag
from .parts import section

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas, Sheet


def anomalies(atlas: "Atlas", charts: Charts) -> Html:
    """What a gate should not do and did, in the order of its surety within a study."""
    names = anchors(atlas)
    shown = [
        part
        for s in atlas.sheets
        if s.views is not None and s.views.anomalies
        for part in _study(atlas, s, charts, names)
    ]
    if not shown:
        none = tag("p", "No anomaly was confirmed on fresh seeds in any of these studies.")
        return section("anomalies", "Confirmed anomalies", none)
    lead = (
        "What a gate should not do and did: named by a screen, registered, and held on fresh seeds, by Holm at 5% over all claims"
        f" of its study. {registered(atlas)}; a card has those of one cell and arm, the surest first, with curves over"
        " training, gate scores and maps where a study here has rows of such runs, its neighbours, the causes that were tested and"
        " the command that runs it again."
    )
    return section("anomalies", "Confirmed anomalies", tag("p", lead), shown)


def _study(atlas: "Atlas", s: "Sheet", charts: Charts, names: dict[tuple[str, str, str], str]) -> list[Html]:
    book, top = book_of(s, charts), scale(atlas)
    there = way(s, "anomalies", "Every number by seed, on the study's page.")
    cards = [
        short_card(book, a, names[s.letter, a.cell, a.arm], sights_of(atlas, s, a, book, top), there)
        for a in s.views.anomalies
    ]
    return [tag("h3", linked(s, section="anomalies")), colours(book), *cards]
