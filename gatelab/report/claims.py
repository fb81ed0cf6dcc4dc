"""The sections that claim something: facts, what is missing, verdicts beside their plots, the table of effects."""

from collections.abc import Iterable, Sequence

from ..config.architecture import ARCHITECTURES
from ..record import Finding
from .book import Book
from .figures import forest
from .markup import NONE, Html, span, tag
from .parts import section
from .tables import badge, effects_table

_MANY = 12


def facts(book: Book) -> Html:
    """A strip of what was run, where, and when."""
    study, runs = book.measured.study, book.measured.runs
    dates = sorted({d for r in runs for d in r.dates})
    versions = _distinct(f"{n} {v}" for r in runs for n, v in sorted(r.environment.get("versions", {}).items()))
    commits = _distinct(_commit(r.environment["git"]) for r in runs if r.environment.get("git"))
    codes = _distinct(f"code {r.environment['code']}" for r in runs if r.environment.get("code"))
    pairs = [
        ("Cells", len(study["cells"])),
        ("Arms", len(study["arms"])),
        ("Seeds", f"{len(study['seeds'])} ({spans_of(study['seeds'])})"),
        ("Runs done", f"{sum(r.is_done for r in runs)} of {len(runs)}"),
        ("Predicts", _distinct(_predicts(r.config) for r in runs if r.config) or NONE),
        ("Parameters a run", span(r.entry["n_parameters"] for r in runs)),
        ("Tokens a run", span(r.entry["tokens"] for r in runs)),
        ("Device", _distinct(str(r.environment["device"]) for r in runs if "device" in r.environment) or NONE),
        ("Data from", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else NONE),
        ("Versions", ", ".join(filter(None, (versions or f"gatelab {study['version']}", commits, codes)))),
    ]
    return tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs], class_="facts")


def _predicts(config: dict) -> str:
    """What a run's losses are of, and which architecture they are of."""
    arch = config.get("model", {}).get("arch", "decoder")
    objective = config.get("objective")
    known = ARCHITECTURES.get(arch)
    kind = objective["kind"] if objective else known.objectives[0] if known else "?"
    return f"{kind} ({arch})"


def _commit(git: dict) -> str:
    return f"commit {git['commit'][:12]}{' with uncommitted changes' if git['modified'] else ''}"


def legend(book: Book) -> Html:
    """The one legend of the page: an arm and its colour, always in sight; its short name, which sentences use, behind."""
    entries = []
    for arm in book.measured.study["arms"]:
        name = arm["name"]
        known = tag("span", f" {name}", class_="quiet name") if name != book.arms.labels[name] else None
        kind = "baseline" if name == book.arms.baseline else "control" if arm["control"] else ""
        entries.append(tag("li", book.arm(name), known, tag("span", f" ({kind})", class_="quiet") if kind else None))
    return tag("div", tag("ul", entries), class_="arms", role="note", aria_label="colours of the arms")


def missing(book: Book) -> Html | None:
    """What the page lacks, said before anything else."""
    lost = [r for r in book.measured.runs if not r.is_done]
    if not lost:
        return None
    items = [tag("li", f"{r.key[0]}, {book.arms.labels[r.key[1]]}, seed {r.key[2]}: {r.fate}") for r in lost[:_MANY]]
    more = tag("li", f"and {len(lost) - _MANY} more, in the table of runs") if len(lost) > _MANY else None
    text = (
        f"{len(lost)} of {len(book.measured.runs)} runs are not done. They enter no verdict; where something was"
        " measured, it is drawn."
    )
    return tag("div", tag("p", text), tag("ul", items, more), class_="notice")


def verdicts(book: Book) -> Html:
    """One sentence a primary effect, beside the forest plot that it rests on, cell by cell."""
    lead = (
        "What was declared before looking, arm by arm. Dot: the mean difference from the baseline. Bar: its interval."
        " Ticks: single seeds. Shaded: differences that were declared to count as nothing."
    )
    out = [tag("p", lead), _few(book)]
    for cell in book.cells:
        data = cell["data"].rstrip(".")
        out += [book.heading(cell), tag("p", f"{cell['about']} Data: {data}.".strip(), class_="about")]
        for name in [n for n, metric in book.metrics.items() if metric["primary"]]:
            found = [f for f in book.findings if f.primary and (f.cell, f.metric) == (cell["name"], name)]
            out.append(_claim(book, cell["name"], name, found))
    return section("verdicts", "Verdicts", out)


def _claim(book: Book, cell: str, metric: str, findings: Sequence[Finding]) -> Html:
    from ..analysis.say_power import in_common

    about = book.metrics[metric]
    better = {"lower-is-better": ", lower is better", "higher-is-better": ", higher is better"}
    aside = tag("span", better.get(about["direction"], ""), class_="aside")
    title = tag("h4", about["label"][:1].upper(), about["label"][1:], aside)
    if not findings:
        text = "No finding: not measured in this cell, or no pair of runs has finished."
        return tag("div", title, tag("p", text, class_="about"), class_="claim")
    absent = [a for a in book.measured.arms(cell) if a != book.arms.baseline and a not in {f.arm for f in findings}]
    sentences, after = in_common(findings)
    said = [
        tag("li", tag("p", badge(f.verdict), book.arm(f.arm), class_="who"), _sentence(f, sentence))
        for f, sentence in zip(findings, sentences, strict=True)
    ]
    none = tag("span", "no pair", class_="badge hole")
    said += [tag("li", tag("p", none, book.arm(a), class_="who"), "No pair of runs has finished.") for a in absent]
    below = [tag("p", sentence, class_="about") for sentence in after]
    return tag(
        "div", title, book.charts.place(forest(findings, book.arms, absent)), tag("ul", said), below, class_="claim"
    )


def _sentence(f: Finding, sentence: str) -> Html:
    """What is said of a finding; the cell's name, which stands above it, is for those who copy or listen."""
    prefix = f"{f.cell}: "
    if not sentence.startswith(prefix):
        return tag("span", sentence)
    return tag("span", tag("span", prefix, class_="unseen"), sentence[len(prefix) :])


def _few(book: Book) -> Html | None:
    pairs = [f.n_pairs for f in book.findings if f.primary and f.verdict != "refused"]
    if not pairs or min(pairs) >= 5:
        return None
    few = f"{min(pairs)}" if min(pairs) == max(pairs) else f"{min(pairs)} to {max(pairs)}"
    text = (
        f"Few seeds: the verdicts rest on {few} pairs of runs an arm. Intervals from so few are wide, only large effects"
        " can be seen, and “unclear” says little. “Detectable” in the table of effects is the smallest true effect that"
        " had an 80% chance of being seen."
    )
    return tag("div", tag("p", text), class_="notice")


def effects(book: Book) -> Html:
    """The table of effects, and the exploratory forest plots in a fold-out."""
    figures = []
    for cell in book.cells:
        found = [f for f in book.findings if f.cell == cell["name"] and not f.primary]
        plots = []
        for metric in dict.fromkeys(f.metric for f in found):
            chart = forest([f for f in found if f.metric == metric], book.arms)
            plots.append(book.charts.place(chart, book.words.get(metric, metric)))
        if plots:
            figures += [book.heading(cell), tag("div", plots, class_="grid narrow")]
    fold = tag("details", tag("summary", "exploratory effects as plots"), figures, class_="print") if figures else None
    table = effects_table(book.findings, book.words, book.arms.labels)
    return section("effects", "Effects", table, fold)


def _distinct(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def spans_of(seeds: Sequence[int]) -> str:
    """`0, 1, 2` of few; of more than eight those that follow one another as `0 to 63`."""
    if len(seeds) <= 8:
        return ", ".join(map(str, seeds))
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)
