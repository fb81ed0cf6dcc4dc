"""The atlas: one offline page over several studies, which begins with what a reader with ten minutes should know.

Notable: maps and phase diagrams are tables, coloured by the effect in half-widths of its own interval, and the chooser of a map's
metric is a row of radio buttons, so that neither needs a script. Curves are charts as on a study's page; without one the page has
no chart library.
"""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..config.architecture import ARCHITECTURES
from ..store import write_text
from .arithmetic import times
from .atlas_book import anchors, linked
from .atlas_cards import anomalies
from .atlas_effects import confirmed_effects
from .atlas_flags import flags
from .atlas_guide import guide
from .atlas_map import MAP_CSS, coverage, maps
from .atlas_phases import phases_of, rates_of
from .atlas_training import emergence, lengths
from .atlas_varied import varies
from .atlas_words import Words
from .claims import spans_of
from .document import Charts, document
from .markup import NONE, Html, join, span, tag
from .parts import contents, footer, section
from .recommend import Names, recommendations, silent
from .tables import csv_text
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas

_PLAIN = "The curves need JavaScript. The maps, the cards, the tables and the CSV file do not."


def write_atlas(page: Path, atlas: "Atlas") -> Path:
    """Write the page, and every comparison as CSV beside it; returns the page's path. Same studies in, same bytes out."""
    charts = Charts()
    body = _body(atlas, charts, page.with_suffix(".csv").name)
    plain = _PLAIN if charts.placed else "This page needs no JavaScript."
    write_text(page.with_suffix(".csv"), atlas_csv(atlas))
    write_text(page, document("Atlas of gates", body, charts, plain=plain, css=MAP_CSS))
    return page


def _body(atlas: "Atlas", charts: Charts, csv_name: str) -> Html:
    words = Words(atlas)
    parts = {
        "guide": ("In ten minutes", guide(atlas)),
        "which": ("Which for what", _which(atlas, words)),
        "confirmed": ("Confirmed effects", confirmed_effects(atlas, words)),
        "map": ("Map of effects", maps(atlas)),
        "varies": ("Where it varies", varies(atlas, charts)),
        "phases": ("Phases", phases_of(atlas, charts, anchors(atlas))),
        "rates": ("Learning rates", rates_of(atlas, charts)),
        "training": ("Over training", emergence(atlas, charts)),
        "lengths": ("Beyond the length", lengths(atlas, charts)),
        "anomalies": ("Anomalies", anomalies(atlas, charts)),
        **({} if atlas.claims is None else {"claims": ("Claims", _claims(atlas))}),
        "studies": ("Studies", _studies(atlas)),
        "flags": ("Refused and flagged", flags(atlas)),
    }
    header = tag(
        "header",
        tag("h1", "Atlas of gates"),
        tag(
            "p",
            "What gates on attention do, over every study here: which for which use, where, and how sure.",
            class_="question",
        ),
        _facts(atlas),
        contents({name: word for name, (word, _) in parts.items()}),
    )
    return join([header, tag("main", [part for _, part in parts.values()]), footer(__version__, csv_name)])


def _facts(atlas: "Atlas") -> Html:
    sheets = atlas.sheets
    pairs = [
        ("Studies", str(len(sheets))),
        ("Settings", str(sum(len(s.places) for s in sheets))),
        ("Arms beside the baseline", str(len(atlas.arms))),
        ("Runs done", f"{sum(s.n_done for s in sheets):,} of {sum(s.n_runs for s in sheets):,}"),
        ("Parameters", span(atlas.sizes)),
        ("Versions of the code", ", ".join(sorted({v for s in sheets for v in (s.versions or {"not recorded"})}))),
    ]
    return tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs], class_="facts")


def _which(atlas: "Atlas", words: Words) -> Html:
    every = (
        "a cell of a study, or its cells that differ in the learning rate alone, in which each arm stands at its own best rate; the"
        " letter behind it is the study's"
    )
    told = [t for s in atlas.sheets for t in s.told]
    named = f"Controls, put beside the gates by their studies: {', '.join(map(words.arm, atlas.controls))}."
    note = tag("p", named, class_="about") if atlas.controls else None
    table = recommendations(atlas.answers, Names(words.gate, words.where), [u.name for u in silent(told)], every=every)
    return section("which", "Which arm for which use", table, note, _arithmetic(atlas, words))


def _arithmetic(atlas: "Atlas", words: Words) -> Html | None:
    """What each arm takes beside its baseline, folded."""
    rows = [[words.arm(name), times(of)] for name in atlas.arms if (of := atlas.arithmetic.get(name)) is not None]
    if not rows:
        return None
    about = (
        "Arms have about their baseline's weights, and not its arithmetic: operations of a token in training, forward and"
        " backward, by the plans, over the baseline's; of experts those that are chosen. The least and the most of all cells."
    )
    made = tabulated(["arm", "arithmetic beside the baseline"], rows, numeric={1}, name="arithmetic")
    return tag("details", tag("summary", "what they take"), tag("p", about), made, class_="print")


def _claims(atlas: "Atlas") -> Html:
    order = {"supported": 0, "refuted": 1, "undecided": 2}
    entries = sorted(atlas.claims or (), key=lambda e: (not e.is_run, order.get(e.verdict, 3)))
    rows = [
        [e.claim, e.source, e.asks, e.measured, e.control or NONE, tag("b", e.verdict if e.is_run else "not run")]
        for e in entries
    ]
    lead = (
        "What has been said of gates and sinks, and what the results here say to it, at their scale. Supported: the whole interval"
        " lies where the claim says; refuted: it lies outside; undecided: neither, or no interval; not run: it waits for what it"
        " names. Nothing is corrected for the number of lines."
    )
    columns = ["claim", "source", "the number, and where it should lie", "measured", "control", "verdict"]
    return section("claims", "Ledger of claims", tag("p", lead), tabulated(columns, rows, numeric=set(), name="claims"))


def _studies(atlas: "Atlas") -> Html:
    rows = [
        [tag("b", s.letter), linked(s, with_letter=False), s.question, len(s.places), len(s.arms), spans_of(s.seeds),
         f"{s.n_done:,} of {s.n_runs:,}", ", ".join(sorted(s.versions)) or "not recorded"]
        for s in atlas.sheets
    ]  # fmt: skip
    columns = ["", "study", "question", "settings", "arms", "seeds", "runs done", "code"]
    never = [name for name in ARCHITECTURES if all(p.architecture.partition(",")[0] != name for p in atlas.places)]
    experts = [] if any("experts" in p.architecture for p in atlas.places) else ["mixture of experts"]
    unseen = f"Never run here: {', '.join([*never, *experts])}." if never or experts else ""
    table = tabulated(columns, rows, numeric={3, 4}, name="studies")
    return section(
        "studies", "What was run", table, tag("h3", "Where"), coverage(atlas), tag("p", unseen) if unseen else None
    )


def atlas_csv(atlas: "Atlas") -> str:
    """Every comparison: a use, setting and arm a line, with its place."""
    rows = []
    for s in atlas.sheets:
        for t in s.told:
            p, f = s.place(t.setting), t.finding
            low, high = s.arithmetic.get(t.arm, (None, None))
            rows.append({
                "study": s.name, "setting": t.setting, "architecture": p.architecture, "data": p.data,
                "n_parameters": p.n_parameters, "arm": t.arm, "use": t.use.name, "metric": f.metric, "unit": f.unit,
                "pairs": f.n_pairs, "effect": f.effect, "low": f.low, "high": f.high, "p": f.p, "q": f.q, "verdict": f.verdict,
                "side": t.side, "word": t.word, "excluded": _finite(t.excluded),
                "arithmetic_low": low, "arithmetic_high": high,
            })  # fmt: skip
    names = (
        "study", "setting", "architecture", "data", "n_parameters", "arm", "use", "metric", "unit", "pairs", "effect", "low",
        "high", "p", "q", "verdict", "side", "word", "excluded", "arithmetic_low", "arithmetic_high",
    )  # fmt: skip
    return csv_text(list(names), rows)


def _finite(x: float) -> float | None:
    return x if isfinite(x) else None
