"""An item to be opened and read: its text in words, evidence marked, and what every run said to it."""

from typing import TYPE_CHECKING

from ..book import Book
from ..markup import NONE, Html, number, tag
from ..tables import table
from .strips import strip_figure

if TYPE_CHECKING:
    from ...analysis.task_items import Worst
    from ...tasks.text import TextItem


def worst_item(book: Book, worst: "Worst") -> Html:
    """One item, folded away behind its name and score."""
    from ...tasks import open_task
    from ...tasks.text import as_text

    asked, n_runs = worst.asked, len(worst.said)
    text = as_text(open_task(asked.task), asked.item())
    right = named(asked.answer)
    seeds = sorted({seed for _, seed in worst.said})
    rows = [
        [book.arm(arm), *(_said(worst, arm, seed, right) for seed in seeds)]
        for arm in book.arms.labels
        if any(a == arm for a, _ in worst.said)
    ]
    where = "" if text.depth is None else f", evidence at {text.depth:.0%}"
    name = f"{asked.task}, item {asked.index} at {asked.length:,} tokens"
    summary = f"{name}{where}: wrong in {worst.n_wrong} of {n_runs} runs, mean margin {number(worst.margin, 2)}"
    answers = table(["what was said", *(f"seed {s}" for s in seeds)], rows, numeric=set(), name=f"answers to {name}")
    strips = [strip for arm in book.arms.labels if (strip := _strip(book, worst, arm)) is not None]
    return tag("details", tag("summary", summary), tag("p", marked(text), class_="item"), answers, strips)


def _strip(book: Book, worst: "Worst", arm: str) -> Html | None:
    """Of the first seed of an arm that kept some."""
    kept = [(seed, a.strips) for (own, seed), a in sorted(worst.said.items()) if own == arm and a.strips]
    if not kept:
        return None
    seed, strips = kept[0]
    return strip_figure(tag("span", book.arm(arm), f", seed {seed}"), strips, worst.asked.item())


def _said(worst: "Worst", arm: str, seed: int, right: str) -> Html | str:
    answer = worst.said.get((arm, seed))
    if answer is None:
        return NONE
    said = named(answer.given)
    # That it is right is told in words too, not by the type alone.
    return tag("b", f"{said} (right)") if answer.is_right else said if said != right else f"{said} (tied)"


def marked(text: "TextItem") -> list[Html | str]:
    """The text with its evidence marked and its answers in bold type."""
    spans = sorted([(*span, "mark") for span in text.evidence] + [(*span, "b") for span in text.answers])
    out: list[Html | str] = []
    at = 0
    for start, end, kind in spans:
        if start >= at:  # of two that overlap the first is shown
            out += [text.text[at:start], tag(kind, text.text[start:end])]
            at = end
    return [*out, text.text[at:]]


def named(tokens: tuple[int, ...]) -> str:
    """Tokens by their words; a mark, which has none, by its number."""
    from ...tasks.vocabulary import word

    def of(token: int) -> str:
        try:
            return word(token)
        except ValueError:
            return f"⟨{token}⟩"

    return " ".join(map(of, tokens))
