"""Citations in generated text, `… is 7 [3][5].`, against the documents that are known to hold the answer. Pure Python.

The scores are those of L-CiteEval (arXiv 2410.02115) where it has gold ids (its needle and counting tasks): precision, recall
and F1 of the cited ids, no judge model. Notable: its rules, `most` citations and the first line alone, are arguments, and a
number that is no document counts as cited wrongly; the answer is judged without its markers, apart from them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..record import Row
from .metrics import Share, answer_by_citation, overlap

# [3], [3, 5] and [3; 5]; no other text between the brackets, and no number of more digits than a document's may have.
_MARKER = re.compile(r"\[\s*(\d{1,18}(?:\s*[,;]\s*\d{1,18})*)\s*\]")


def citations_of(text: str, *, most: int | None = None, is_first_line: bool = False) -> tuple[int, ...]:
    """The numbers of `[n]` markers, each once, in the order of their first appearance.

    Args:
        most: only the first so many of them count; None: all.
        is_first_line: what follows the first line that says something is not read.

    Raises:
        ValueError: `most` below 1.
    """
    if most is not None and most < 1:
        raise ValueError(f"most={most}: expected a number of citations from 1, or None for all")
    lines = [line for line in text.splitlines() if line.strip()]
    groups = _MARKER.findall("\n".join(lines[:1] if is_first_line else lines))
    numbers = dict.fromkeys(int(n) for group in groups for n in re.findall(r"\d+", group))
    return tuple(numbers)[:most]


def without_citations(text: str) -> str:
    """The text without its markers and the blanks before them."""
    return re.sub(rf"[ \t]*{_MARKER.pattern}", "", text).strip()


@dataclass(frozen=True, slots=True)
class CitedText:
    """One scored text. `answer`: without markers; `citations`: what it cites; `share`: that against the gold documents;
    `n_unknown`: how many of them are no documents."""

    answer: str
    citations: tuple[int, ...]
    share: Share
    is_answer_right: bool
    n_unknown: int

    @property
    def is_citation_right(self) -> bool:
        """Every gold document is cited, and nothing else."""
        return self.share.precision == self.share.recall == 1


def cited_text(
    text: str,
    gold: Sequence[int],
    documents: Sequence[int],
    is_right: Callable[[str], bool],
    *,
    most: int | None = None,
    is_first_line: bool = False,
) -> CitedText:
    """Score a generated text.

    Args:
        gold: the numbers of the documents that hold the answer, one at least.
        documents: the numbers of all documents.
        is_right: judges the answer without its markers.
        most, is_first_line: as `citations_of` takes them; L-CiteEval's needle task has 3 and the first line.

    Raises:
        ValueError: no gold document, or one that is not among the documents.
    """
    if not gold or not set(gold) <= set(documents):
        raise ValueError(f"gold documents {list(gold)}: expected one at least, each among {list(documents)}")
    citations = citations_of(text, most=most, is_first_line=is_first_line)
    answer = without_citations(text)
    n_unknown = sum(c not in set(documents) for c in citations)
    return CitedText(answer, citations, overlap(citations, sorted(set(gold))), is_right(answer), n_unknown)


def table(texts: Sequence[CitedText]) -> dict[tuple[bool, bool], float]:
    """Shares of the texts whose (answer, citation) is right or wrong.

    Raises:
        ValueError: without texts.
    """
    return answer_by_citation([(t.is_answer_right, t.is_citation_right) for t in texts])


def rows_of(texts: Sequence[CitedText], *, task: str, run: str, step: int, length: int | None = None) -> list[Row]:
    """Rows of source `citations`; docs/metrics.md defines them.

    Raises:
        ValueError: without texts.
    """
    word = {True: "right", False: "wrong"}

    def row(metric: str, value: float, **at: str) -> Row:
        return Row(run, step, "citations", metric, value, "share", task=task, length=length, **at)

    cells = [
        row("answer_by_citation", share, domain=f"answer {word[answer]}, citation {word[citation]}")
        for (answer, citation), share in table(texts).items()
    ]
    return [
        row("answer_exact", fmean(t.is_answer_right for t in texts)),
        *(
            row(f"citation_{name}", fmean(getattr(t.share, name) for t in texts))
            for name in ("precision", "recall", "f1")
        ),
        row("citation_none", fmean(not t.citations for t in texts)),
        row("citation_unknown", fmean(t.n_unknown > 0 for t in texts)),
        *cells,
    ]
