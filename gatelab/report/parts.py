"""The parts that pages are built from: sections and the way to them, what stands at the end, colours and their words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .markup import Html, tag


def section(name: str, title: str, *children: Any) -> Html:
    """A section under its heading."""
    return tag("section", tag("h2", title), children, id=name)


def contents(words: Mapping[str, str]) -> Html:
    """{name of a section: its word} as links."""
    return tag("nav", [tag("a", word, href=f"#{name}") for name, word in words.items()], aria_label="sections")


def glossary(words: Iterable[tuple[str | Html, str]]) -> Html:
    """The last section: words and what they mean."""
    entries = [(tag("dt", word), tag("dd", meaning)) for word, meaning in words]
    more = "docs/metrics.md of the project defines every metric in full."
    return section("how", "How to read this page", tag("dl", entries, class_="words"), tag("p", more))


def footer(version: str, files: str) -> Html:
    """What made the page, and where all of its numbers are."""
    return tag("footer", f"Gatelab {version}. Beside this page, every number of it: {files}.")


def absent(text: str, title: Html | None = None) -> Html:
    """An empty frame in the place of a figure."""
    return tag("figure", tag("p", title, class_="title") if title else None, tag("div", text, class_="absent"))


def ramp(colours: Sequence[str], low: str, high: str, words: str) -> Html:
    """A colour scale between its ends, and what it is of."""
    bar = tag(
        "i", style=f"background:linear-gradient(90deg,{','.join(colours)})", role="img", aria_label="colour scale"
    )
    return tag("div", low, bar, high, tag("span", words, class_="quiet"), class_="ramp")


def swatch(colour: str, dash: Sequence[int]) -> Html:
    """A short line in a colour, dashed as the line it stands for: as in SVG, pixels drawn and left out in turn."""
    drawn, left = dash
    end = f"{drawn + left}px"
    paint = f"repeating-linear-gradient(90deg,{colour} 0 {drawn}px,transparent {drawn}px {end})" if left else colour
    return tag("span", class_="swatch", style=f"background:{paint}", aria_hidden="true")
