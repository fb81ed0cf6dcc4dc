"""The page: one HTML file that asks nothing of the network, and three CSV files beside it.

Notable: the chart library is inlined once and every chart is a specification beside it; a content security policy names
the page's own scripts by their hashes and forbids everything else, so that neither a study's name nor a browser's
extension point can make it run or fetch anything. Expressions are interpreted, not compiled, which is why no
`unsafe-eval` is needed.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..record import Finding
from ..store import RunFolder, StudyFolder, write_text
from . import claims, sections
from .book import Book
from .charts import Arms
from .markup import Html, join, tag
from .measured import measure, state_of
from .script import DRAW, WATCH
from .style import THEME, VERDICTS, arm_colours
from .stylesheet import CSS
from .tables import badge, curves_csv, effects_csv, pairing_table, runs_csv, runs_table, shares_table

# A plain dot: a page without an icon of its own makes browsers ask for one.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='6' fill='%230072b2'/%3E%3C/svg%3E"
)

_WORDS = {
    "Pair": "Two runs of one seed, arm and baseline: same data in the same order, same initial values of shared weights.",
    "Effect": "The mean over pairs of arm minus baseline, in the metric's unit.",
    "Interval": "Student's t over the pairs: in 95 of 100 such studies a 95% interval holds the true effect.",
    "p, q": "p: how often chance alone gives an effect this large. q: the share of false discoveries among the primary"
    " effects whose q is as small. For a thing that is there or not, p is of an exact test on the seeds that changed.",
    "Detectable": "The smallest true effect that had an 80% chance of being seen, with this many pairs and this noise.",
    "Counts as nothing": "A difference inside the shaded band of a plot; its width was declared before looking.",
    "Remainder": "Arms are matched in parameters by the width of the feed-forward layer, to the nearest unit; this is"
    " what is left over, in parameters.",
    "First-token mass": "Share of attention on the first token, mean over the queries after it. Uniform: what"
    " attention spread evenly over all visible tokens would give. Attention, gates and activations are of the decoder's"
    " self-attention where a model has an encoder too, never of cross-attention.",
    "Sink rate": "Share of heads whose first token gets more than a threshold of the attention of the queries that see it.",
    "Value drain": "Norm of the first token's value over the median of the others'; well below 1 is a drain.",
    "Massive activation": "Largest |entry| of the residual stream; its ratio is to the median |entry|.",
    "Gate score": "What the gate multiplies by: 0 is shut, 1 is open.",
}


def write_report(
    folder: StudyFolder,
    findings: Sequence[Finding],
    *,
    shares: Sequence[dict[str, Any]],
    pairing: Sequence[dict[str, Any]],
    note: str = "",
    state: Callable[[RunFolder], str] = state_of,
) -> Path:
    """Write report.html, effects.csv, runs.csv and curves.csv into the study's folder; returns the page's path.

    Same folder and findings in, same bytes out. Runs that are missing, unfinished or diverged are named with their
    state. Each file is replaced at once or not at all.

    Args:
        shares: of bimodal metrics; each with cell, arm, metric, k, n, low, high.
        pairing: what pairing bought; each with cell, arm, metric, n, correlation, gain (unpaired over paired variance).
        note: a paragraph of the reporter's own, above the verdicts.
        state: a run folder's state in a word; 'done' is the one that counts as finished.

    Raises:
        StoreError: when the folder is not a study of this version.
    """
    measured = measure(folder, state)
    study = measured.study
    labels = _labels(study["arms"])
    arms = Arms(labels, arm_colours(list(labels), study["baseline"]), study["baseline"])
    book = Book(measured, list(findings), arms, {m["name"]: m for m in study["metrics"]})
    body = _body(book, shares, pairing, note)
    page = folder.path / "report.html"
    write_text(folder.path / "effects.csv", effects_csv(findings))
    write_text(folder.path / "runs.csv", runs_csv(measured))
    write_text(folder.path / "curves.csv", curves_csv(measured))
    write_text(page, _document(study["name"], body, book.charts))
    return page


def _body(book: Book, shares: Sequence[dict], pairing: Sequence[dict], note: str) -> Html:
    study = book.measured.study
    parts = {
        "Verdicts": claims.verdicts(book),
        "Loss": sections.losses(book),
        "First-token mass": sections.masses(book),
        "Maps": sections.maps(book),
        "Gates": sections.gates(book),
        "Massive activations": sections.massive(book),
        "Effects": claims.effects(book),
        "Shares": _shares(book, shares),
        "Pairing": _pairing(book, pairing),
        "Runs": _runs(book),
        "How to read this page": _how(),
    }
    anchors = ("verdicts", "loss", "mass", "maps", "gates", "massive", "effects", "shares", "pairing", "runs", "how")
    header = tag(
        "header",
        tag("h1", study["name"]),
        tag("p", study["question"], class_="question"),
        claims.facts(book),
        claims.missing(book),
        tag("p", note) if note else None,
        tag(
            "nav", [tag("a", name, href=f"#{a}") for name, a in zip(parts, anchors, strict=True)], aria_label="sections"
        ),
    )
    footer = tag(
        "footer",
        f"Gatelab {study['version']}. Beside this page, every number of it: effects.csv, runs.csv, curves.csv.",
    )
    return join([header, claims.legend(book), tag("main", *parts.values()), footer])


def _shares(book: Book, shares: Sequence[dict]) -> Html:
    lead = (
        "Some things are there in a run or not, and a mean over seeds would describe no run. So they are counted, with"
        " exact (Clopper–Pearson) intervals of the true share."
    )
    table = (
        shares_table(shares, book.metrics, book.arms.labels) if shares else tag("p", "None to report.", class_="about")
    )
    return tag("section", tag("h2", "Shares of runs"), tag("p", lead), table, id="shares")


def _pairing(book: Book, pairing: Sequence[dict]) -> Html:
    lead = (
        "Runs of one seed see the same batches and start from the same shared weights. Where that makes them alike,"
        " their difference varies less than that of two unrelated runs. The variance ratio says how much less: above 1,"
        " pairing helped. With three pairs the correlation is a hint, not a measurement."
    )
    table = (
        pairing_table(pairing, book.words, book.arms.labels) if pairing else tag("p", "None to report.", class_="about")
    )
    return tag("section", tag("h2", "Does pairing work?"), tag("p", lead), table, id="pairing")


def _runs(book: Book) -> Html:
    lead = "Every planned run. Its name is the fingerprint of its configuration and data; the command repeats it."
    return tag("section", tag("h2", "Runs"), tag("p", lead), runs_table(book.measured, book.arms.labels), id="runs")


def _how() -> Html:
    words = [(badge(verdict), meaning[:1].upper() + meaning[1:] + ".") for verdict, (_, meaning) in VERDICTS.items()]
    entries = [(tag("dt", word), tag("dd", meaning)) for word, meaning in [*words, *_WORDS.items()]]
    more = "docs/metrics.md of the project defines every metric in full."
    return tag(
        "section", tag("h2", "How to read this page"), tag("dl", entries, class_="words"), tag("p", more), id="how"
    )


def _labels(arms: Sequence[dict]) -> dict[str, str]:
    """{arm: its words}; two arms that are worded alike are called by their names."""
    worded = [arm["label"] for arm in arms]
    return {arm["name"]: arm["label"] if worded.count(arm["label"]) == 1 else arm["name"] for arm in arms}


def _document(title: str, body: Html, charts: list[dict]) -> str:
    scripts = [WATCH, _library(), DRAW]
    hashes = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    # In a script element only `<` can end it.
    data = json.dumps({"theme": THEME, "charts": charts}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("link", rel="icon", href=_ICON),
        tag("style", Html(CSS)),
        _script(scripts[0]),
    )
    plain = "The charts need JavaScript. The verdicts, the tables and the CSV files do not."
    end = [
        tag("script", Html(data.replace("<", "\\u003c")), type="application/json", id="charts"),
        _script(scripts[1]),
        _script(scripts[2]),
    ]
    page = tag("html", head, tag("body", tag("noscript", tag("p", plain, class_="notice")), body, end), lang="en")
    return f"<!doctype html>\n{page}\n"


def _script(text: str) -> Html:
    return tag("script", Html(text))


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script (0.9 MB)."""
    from vl_convert import javascript_bundle

    library = javascript_bundle()
    assert "</script" not in library.lower(), "the chart library cannot be inlined as it is"
    return library
