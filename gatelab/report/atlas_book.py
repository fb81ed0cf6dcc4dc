"""A study as the charts of other pages take it: its arms in the colours of its own page, and the ways to that page.

Notable: the charts of all studies are one list, for the page has one script that draws them.
"""

from typing import TYPE_CHECKING

from .book import Book
from .document import Charts
from .markup import Html, tag
from .measured import Measured
from .page import arms_of

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas, Sheet


def book_of(s: "Sheet", charts: Charts) -> Book:
    """Of a study with views; without a run, for what is drawn of them is in the views."""
    study = s.views.study
    return Book(
        Measured(study, [], {}, {}, {}, {}), [], arms_of(study), {m["name"]: m for m in study["metrics"]}, charts
    )


def linked(s: "Sheet", *, with_letter: bool = True, section: str = "") -> Html:
    """A study by name, with ways to its own page, there to `section` if it has it, and to its text, where they lie beside the
    atlas."""
    words = f"{s.letter} {s.name}" if with_letter else s.name
    there = s.pages.get(f"#{section}", s.pages.get("page"))
    named = tag("a", words, href=there) if there else tag("span", words)
    return tag("span", named, [" (", tag("a", "text", href=s.pages["text"]), ")"] if "text" in s.pages else None)


def way(s: "Sheet", section: str, words: str) -> Html | None:
    """A link to a section of the study's own page; None where there is none."""
    there = s.pages.get(f"#{section}")
    return tag("a", words, href=there) if there else None


def colours(book: Book) -> Html:
    """The arms of a study with their colours, as a line."""
    return tag("p", [[book.arm(name), " "] for name in book.arms.labels], class_="about colours")


def anchors(atlas: "Atlas") -> dict[tuple[str, str, str], str]:
    """{(study's letter, cell, arm as the study names it): the card's anchor}."""
    return {
        (s.letter, a.cell, a.arm): f"anomaly-{s.letter}{i}"
        for s in atlas.sheets
        if s.views is not None
        for i, a in enumerate(s.views.anomalies, start=1)
    }
