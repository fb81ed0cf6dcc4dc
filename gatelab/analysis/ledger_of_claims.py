"""The ledger of claims: what has been said of gates and sinks, and what the results of this project say to it.

A new claim is one entry of the table: its words, its source, how it is tested and against what, the page whose files have the
rows, and the region in which the number should lie. No number of a result stands here; docs/results/claims.md is written from
the files by `gatelab find docs/results --claims`. What gates are said to be good for (tasks, rates, sizes, costs) is in
`claims_of_use.py`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .claim_tests import (
    Claim,
    Measured,
    Region,
    between,
    difference,
    effect,
    elsewhere,
    gap,
    share_with_sink,
)
from .claims_of_use import ACCURACY, ELEMENTWISE, GATES, HALF, HEADWISE, MOST, NOTHING, PAPER, SINK_LOGIT, SUMMARY
from .claims_of_use import CLAIMS as OF_USE
from .room import LOSS, Room, accurate, solved
from .stated_tests import excess, quotient, stated

TOY, NO_OP = "arXiv 2410.13835", "arXiv 2306.12929, 2410.10781"


@dataclass(frozen=True, slots=True)
class Entry:
    """A claim with its numbers: supported, refuted or undecided at this scale. `is_run`: whether the page has rows."""

    claim: str
    source: str
    page: str
    asks: str
    measured: str
    control: str
    verdict: str
    is_run: bool = True


def _first(edit: str, arm: str | None = None, dose: str = "1") -> dict[str, str]:
    return {"intervention": edit, "dose": dose} | ({} if arm is None else {"arm": arm})


def _surgery(beside: str) -> dict[str, str]:
    return {"arm": "surgery, all sinks, distilled", "beside": beside, "text": "self"}


_REMOVES, _LOSS, _MASSIVE = (
    "a gate after attention removes the first-token sink from most models that have one",
    f"a gate after attention lowers the held-out loss by more than {NOTHING} nats",
    "a gate after attention halves massive activations",
)
_HALVES = "a gate after attention halves the attention on the first token"
_LENGTH = f"gated models reach further beyond the length of their training, by more than {ACCURACY} of the items"
_FURTHER = (
    "accuracy at {times} that length{how}, where both arms solve the task at it, arm minus no gate: above "
    + f"{ACCURACY}"
)
_AT_8 = (solved("task_accuracy@1x"), accurate("task_accuracy@8x"))
_STEADY = "gates steady the training: fewer runs diverge or have loss spikes"
_SPIKES = (
    "share of runs that diverge or have loss spikes, in cells where some of either arm do, arm minus no gate: below 0"
)
_SILENT = f"a sink's value does nothing: without it the loss changes by less than {NOTHING} nats"
_DOCUMENTS, _SEQUENCES = "documents of one model", "sequences of one model"
_UNSTEADY = Room("unstable", 0.0, words="with runs that diverge or spike")
_LOWER = f"held-out loss, arm minus no gate: below −{NOTHING}"
_ZERO = f"loss when the first value is zeroed in finished runs: changes by less than {NOTHING}"
_SMALL = Region(-NOTHING, NOTHING)
_BEARS = "gated models bear larger learning rates: 0.008 in the place of 0.002 costs them less"
_DEARER = "held-out loss at a rate of 0.008 less that at 0.002, arm minus no gate: below 0"
_RATES = tuple(
    (f"{k}-lr0.008", f"{k}-lr0.002") for k in ("1-layer-bos", "1-layer-plain", "2-layer-bos", "2-layer-plain")
)
_FIRST = tuple((f"{n}-layer-bos-lr0.002", f"{n}-layer-plain-lr0.002") for n in (1, 2))
_LOST = "of the seeds with an ungated sink, those without one: more than half"
_KEPT = "of the seeds with an ungated sink, those with one: more than half"
_POINT = "1-layer-bos-lr0.002"
_SHORT, _BEGUN = "text-start-masked", ("prose normal",)
_SINK_LOGIT = (
    "sink logit (of backcopy-causes)",
    elsewhere("backcopy-causes", difference("val_loss", "sink-logit", "none", "nats", cell=_POINT)),
)

CLAIMS: tuple[Claim, ...] = (
    Claim("a small model on Bigram-Backcopy forms a sink on the first token", TOY, "sinkless-seeds",
          "share of ungated seeds with a sink: more than half", share_with_sink("none"), MOST,
          ("headwise gate", share_with_sink(HEADWISE))),
    Claim(f"{_REMOVES} (headwise)", PAPER, "sinkless-seeds", "of the seeds with an ungated sink, those without one: more than half",
          share_with_sink(HEADWISE, among="none", lost=True), MOST, ("no gate, all seeds", share_with_sink("none", lost=True))),
    Claim(f"{_REMOVES} (elementwise)", PAPER, "sinkless-seeds",
          "of the seeds with an ungated sink, those without one: more than half",
          share_with_sink(ELEMENTWISE, among="none", lost=True), MOST, ("no gate, all seeds", share_with_sink("none", lost=True))),
    Claim(f"{_HALVES} (elementwise)", PAPER, "gates-on-text", "first-token mass over that without a gate: below a half",
          effect("first_token_mass", "g1-elementwise", as_ratio=True), HALF,
          ("sink logit", effect("first_token_mass", "sink-logit", as_ratio=True))),
    Claim("the elementwise gate leaves less attention on the first token than the headwise", PAPER, "sinkless-seeds",
          "first-token mass, elementwise minus headwise: below 0", difference("first_token_mass", ELEMENTWISE, HEADWISE),
          Region(high=0.0), ("headwise minus none", difference("first_token_mass", HEADWISE, "none"))),
    Claim("a gate that does not read the token leaves the sink", PAPER, "gates-on-text",
          "first-token mass over that without a gate: above a half", effect("first_token_mass", "g1-static", as_ratio=True), MOST,
          ("elementwise gate", effect("first_token_mass", "g1-elementwise", as_ratio=True))),
    Claim(f"{_MASSIVE} (elementwise)", PAPER, "gates-on-text", "largest activation over that without a gate: below a half",
          effect("massive_max", "g1-elementwise", as_ratio=True), HALF,
          ("sink logit", effect("massive_max", "sink-logit", as_ratio=True))),
    Claim("with the sink its value drain lessens, by more than 0.05 (headwise)", TOY, "sinkless-seeds",
          "first key's value norm over the median, arm minus no gate: above 0.05", difference("value_drain", HEADWISE, "none"),
          Region(low=0.05), ("seeds that keep the sink", difference("value_drain", HEADWISE, "none", keeping=True))),
    Claim(f"{_LOSS} (headwise)", PAPER, "sinkless-seeds", _LOWER, difference("val_loss", HEADWISE, "none", "nats"),
          Region(high=-NOTHING), _SINK_LOGIT),
    Claim(f"{_LOSS} (elementwise)", PAPER, "sinkless-seeds", _LOWER, difference("val_loss", ELEMENTWISE, "none", "nats"),
          Region(high=-NOTHING), _SINK_LOGIT),
    Claim(f"{_LOSS} (elementwise)", PAPER, "gates-on-text", _LOWER, effect("val_loss", "g1-elementwise", "nats"),
          Region(high=-NOTHING), ("sink logit", effect("val_loss", "sink-logit", "nats"))),
    Claim(f"{_LOSS} (headwise, text, in a short run)", PAPER, _SHORT, _LOWER,
          effect("val_loss", "g1-headwise", "nats", cells=_BEGUN), Region(high=-NOTHING),
          ("both begun at a quarter, documents not kept apart (of text-start)",
           elsewhere("text-start", effect("val_loss", "g1-headwise", "nats")))),
    Claim("a gate after attention lowers massive activations (headwise, text, in a short run)", PAPER, _SHORT,
          "largest activation, mean over layers, arm minus no gate: below 0",
          effect("massive_max", "g1-headwise", cells=_BEGUN), Region(high=0.0),
          ("both begun at a quarter, documents not kept apart (of text-start)",
           elsewhere("text-start", effect("massive_max", "g1-headwise")))),
    *(
        Claim(f"{_LOSS} ({gate})", PAPER, "gates-on-tasks", _LOWER, effect("val_loss", arm, "nats", where=[LOSS]),
              Region(high=-NOTHING), ("sink logit", effect("val_loss", SINK_LOGIT, "nats", where=[LOSS])))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"{_LENGTH} ({gate})", PAPER, page, _FURTHER.format(times="eight times", how=""),
              effect("task_accuracy@8x", arm, where=_AT_8), Region(low=ACCURACY),
              ("sink logit", effect("task_accuracy@8x", SINK_LOGIT, where=_AT_8)))
        for page in ("tasks-by-architecture", "gates-on-tasks") for gate, arm in GATES.items()
    ),
    *(
        Claim(f"{_LENGTH}, with YaRN ({gate})", PAPER, "gates-on-tasks", _FURTHER.format(times=times, how=" with YaRN"),
              gap(number, arm, "none", where=[solved("accuracy@1x"), accurate(number)]), Region(low=ACCURACY),
              ("sink logit", gap(number, SINK_LOGIT, "none", where=[solved("accuracy@1x"), accurate(number)])))
        for times, number in (("twice", "accuracy@2x, YaRN"), ("eight times", "accuracy@8x, YaRN"))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"{_STEADY} ({gate})", f"{PAPER}; {SUMMARY}", page, _SPIKES,
              gap("unstable", arms[gate], "none", where=[_UNSTEADY]), Region(high=0.0),
              ("sink logit", gap("unstable", "sink-logit", "none", where=[_UNSTEADY])))
        for page, arms in (
            ("tasks-by-architecture", GATES), ("gates-on-text", {"headwise": "g1-headwise", "elementwise": "g1-elementwise"}),
        )
        for gate in GATES
    ),
    Claim(f"{_STEADY} (on text, at large rates)", f"{PAPER}; {SUMMARY}", "text-rates", _SPIKES, None, Region(high=0.0),
          planned="`gatelab run text-rates` to its end would decide; of what was run a loss every ten steps is kept, and two gated"
                  " rates were cut short"),
    Claim(f"{_REMOVES} (headwise, from one half)", PAPER, "backcopy-phases", _LOST,
          share_with_sink("headwise-half", among="none", lost=True, cell=_POINT), MOST,
          ("from 0.95", share_with_sink("headwise-open", among="none", lost=True, cell=_POINT))),
    Claim(f"{_REMOVES} (elementwise, from one half)", PAPER, "backcopy-phases", _LOST,
          share_with_sink("elementwise-half", among="none", lost=True, cell=_POINT), MOST,
          ("from 0.95", share_with_sink("elementwise-open", among="none", lost=True, cell=_POINT))),
    Claim(f"{_BEARS} (headwise)", PAPER, "backcopy-phases", _DEARER,
          between("val_loss", "headwise-half", "none", _RATES, "nats"), Region(high=0.0),
          ("from 0.95", between("val_loss", "headwise-open", "none", _RATES, "nats"))),
    Claim(f"{_BEARS} (elementwise)", PAPER, "backcopy-phases", _DEARER,
          between("val_loss", "elementwise-half", "none", _RATES, "nats"), Region(high=0.0),
          ("from 0.95", between("val_loss", "elementwise-open", "none", _RATES, "nats"))),
    Claim("a gate gains more where the ungated model has a first-token sink", PAPER, "backcopy-phases",
          "effect on held-out loss with a token that always comes first minus without (headwise): below 0",
          between("val_loss", "headwise-half", "none", _FIRST, "nats"), Region(high=0.0),
          ("elementwise", between("val_loss", "elementwise-half", "none", _FIRST, "nats"))),
    Claim("a gate that does not read the token leaves the sink", PAPER, "backcopy-causes", _KEPT,
          share_with_sink("static", among="none", cell=_POINT), MOST,
          ("elementwise gate", share_with_sink("elementwise", among="none", cell=_POINT))),
    Claim("a gate that never shuts leaves the sink", PAPER, "backcopy-causes", _KEPT,
          share_with_sink("ns-sigmoid", among="none", cell=_POINT), MOST,
          ("elementwise gate", share_with_sink("elementwise", among="none", cell=_POINT))),
    Claim("a learned sink logit takes the sink's place", "arXiv 2309.17453", "backcopy-causes", _LOST,
          share_with_sink("sink-logit", among="none", lost=True, cell=_POINT), MOST,
          ("headwise gate", share_with_sink("headwise", among="none", lost=True, cell=_POINT))),
    Claim(_SILENT, NO_OP, "sink-as-a-gate", f"{_ZERO} (the heads with drained sinks)",
          stated("effects.csv", {"heads": "drained", "what": "zero-value", "dose": "1"}, _DOCUMENTS), _SMALL,
          ("another key's value",
           stated("effects.csv", {"heads": "drained", "what": "zero-value of another key", "dose": "1"}, _DOCUMENTS))),
    Claim(_SILENT, NO_OP, "smollm2", f"{_ZERO} (all heads)",
          stated("interventions.csv", _first("zero-value@first"), _DOCUMENTS), _SMALL,
          ("another key's value", stated("interventions.csv", _first("control of zero-value@first: zero-value@other-first"),
                                         _DOCUMENTS))),
    Claim(_SILENT, NO_OP, "gated-pair", f"{_ZERO} (no gate)",
          stated("interventions.csv", _first("zero-value@first", "none"), _SEQUENCES), _SMALL,
          ("another key's value", stated("interventions.csv", _first("control of zero-value@first", "none"), _SEQUENCES))),
    Claim(f"which token a gate's scores belong to matters, by more than {NOTHING} nats", PAPER, "gated-pair",
          f"loss when scores are shuffled, beyond a random change of the same size: above {NOTHING}",
          excess("interventions.csv", _first("gate-shuffle", "g1-elementwise"), _first("control of gate-shuffle", "g1-elementwise"),
                 _SEQUENCES), Region(low=NOTHING),
          ("the random change", stated("interventions.csv", _first("control of gate-shuffle", "g1-elementwise"), _SEQUENCES))),
    Claim("a sink can be cut out of a trained model and a gate put in its place, for at most 0.02 nats", "ours",
          "sink-to-gate-surgery",
          "loss beside an ungated control tuned on as many tokens: at most 0.02 more",
          stated("changes.csv", _surgery("control"), _SEQUENCES), Region(high=0.02),
          ("gate that starts as the identity",
           stated("changes.csv", {"arm": "identity, headwise", "beside": "control", "text": "self"}, _SEQUENCES))),
    Claim("… and for at most 0.02 nats beside the model as it was", "ours", "sink-to-gate-surgery",
          "loss beside the original: at most 0.02 more",
          stated("changes.csv", _surgery("original"), _SEQUENCES), Region(high=0.02),
          ("ungated control",
           stated("changes.csv", {"arm": "control", "beside": "original", "text": "self"}, _SEQUENCES))),
    Claim("a gate that starts as the identity halves the sink of a trained model", "ours", "sink-to-gate-surgery",
          "first-token mass over the ungated control's: below a half",
          quotient("arms.csv", {"arm": "identity, headwise", "text": "self", "metric": "first_token_mass"},
                   {"arm": "control", "text": "self", "metric": "first_token_mass"}), HALF,
          ("surgery on all sinks", quotient("arms.csv", {"arm": "surgery, all sinks", "text": "self", "metric": "first_token_mass"},
                                            {"arm": "control", "text": "self", "metric": "first_token_mass"}))),
    *OF_USE,
)  # fmt: skip


def judged(results: Path, claims: Sequence[Claim] = CLAIMS) -> list[Entry]:
    """Every claim with its numbers, from the folder of results.

    Raises:
        StoreError: a file, a column or a row that is not there.
    """
    return [_entry(c, results / c.page) for c in claims]


def _entry(c: Claim, folder: Path) -> Entry:
    if c.test is None or (c.planned and not folder.is_dir()):
        return Entry(c.claim, c.source, c.page, c.asks, f"not run: {c.planned}", "", "undecided", is_run=False)
    found: Measured = c.test(folder)
    control = "" if c.beside is None else f"{c.beside[0]}: {c.beside[1](folder)}"
    return Entry(c.claim, c.source, c.page, c.asks, str(found), control, c.region.verdict(found))


_HEAD = """\
Written by `gatelab find docs/results --claims > docs/results/claims.md` from the files beside each page: no number is typed. A
claim is a line of `gatelab/analysis/ledger_of_claims.py` or `claims_of_use.py`, with the region in which its number should lie.
**Supported**: the whole 95% interval lies in it; **refuted**: it lies outside; **undecided**: neither, or no interval: of one run,
or of seeds that are all alike, or no room; *not run* names what would decide. All of it at the scale of the page, between a toy and
135 million weights, and nothing is corrected for the number of lines. A bound that decides stands in the claim. **Room**: losses,
accuracies, citations and places that are compared over cells count a cell only where some arm of the comparison lies above the
floor and some below the ceiling (items right: 0.05 and 0.95; losses: above 0.01 nats), in the mean over its seeds: arms that lie at
one of them together differ by next to nothing whatever a gate does. That two gates do alike is asked only where one changes the
loss by more than 0.01 nats, and stability only where runs diverge or spike. Intervals are Clopper and Pearson's for shares of
seeds, Student's t for means over seeds (over cells or the seeds that they share, the wider), and those of the page's files over
documents or sequences, which say nothing of other models. Where each arm has its own best rate, the interval does not know that the
rate was chosen among those run. That two arms are alike is asked with intervals of 90%: one inside of the
bounds is what two one-sided tests at 5% ask.

`effects.csv`, `runs.csv` and `seeds.csv` of studies are `gatelab report`'s; what stands in none (gate scores, positions, citations,
ladders) is read from the runs in a page's pack (`folder.parquet`), at their last look, by the definitions of
[metrics](../metrics.md). The stored `seeds.csv` are older than that command's: those of `backcopy-phases` and `backcopy-causes` are
the last looks of the runs in the pack beside them (a test compares them, to the pack's five digits), that of `sinkless-seeds`
those of the runs of `gatelab run sinkless-seeds`, whose folder is not kept. Lines of `tasks-by-architecture` are of its screen,
seeds 0 to 4 of all cells; what eight fresh seeds of eight cells say, `conflict` among them, is on that page. Other files are of the
commands that their pages name.
""".splitlines()
_VERDICTS = ("supported", "refuted", "undecided")
_SUMMARY = (
    "Counts of lines by claim, without its arm, setting and bound, those with a decided line first. Lines of one claim can share",
    "runs: they are no votes. Each line stands below with its bound, number and interval.",
    "",
    "| claim | source | supported | refuted | undecided |",
    "|---|---|---|---|---|",
)
# What a claim's words end at: its arm or cell in brackets, a bound, a condition.
_ARM, _BOUND = re.compile(r" \([^()]*\)$"), re.compile(r"[,:] | by more than | where each arm ")
_COLUMNS = (
    "| claim | source | the number, and where it should lie | measured | control | at this scale |",
    "|---|---|---|---|---|---|",
)


def page(entries: Sequence[Entry]) -> Iterator[str]:
    """The ledger as Markdown, a line each, what is decided first."""
    counts = ", ".join(f"{sum(e.verdict == v for e in entries)} {v}" for v in _VERDICTS)
    not_run = sum(not e.is_run for e in entries)
    yield "# Claims, and what the results here say to them"
    yield ""
    yield from _summary(entries)
    yield ""
    yield from _HEAD
    yield ""
    yield f"{len(entries)} lines: {counts}{f', {not_run} of these not run' if not_run else ''}."
    for title, decided in (("Decided", True), ("Undecided", False)):
        yield from ("", f"## {title}", "", *_COLUMNS)
        yield from (_row(e) for e in entries if (e.verdict != "undecided") is decided)


def _summary(entries: Sequence[Entry]) -> Iterator[str]:
    groups: dict[str, list[Entry]] = {}
    name = ""
    for e in entries:
        # "… and" goes on with the claim above it.
        name = name if e.claim.startswith("…") else _BOUND.split(_ARM.sub("", e.claim))[0]
        groups.setdefault(name, []).append(e)
    yield from _SUMMARY
    for name, lines in sorted(groups.items(), key=lambda g: all(e.verdict == "undecided" for e in g[1])):
        sources = "; ".join(dict.fromkeys(e.source for e in lines))
        numbers = [sum(e.verdict == v for e in lines) for v in _VERDICTS]
        yield f"| {name} | {sources} | {' | '.join(str(n) if n else '' for n in numbers)} |"


def _row(e: Entry) -> str:
    where = f"[{e.page}]({e.page}.md)" if e.is_run else e.page
    return f"| {e.claim} | {e.source} | {e.asks} ({where}) | {e.measured} | {e.control} | **{e.verdict}** |"
