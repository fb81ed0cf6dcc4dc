"""The sections that claim something: facts, what is missing, verdicts beside their plots, the table of effects."""

from collections.abc import Iterable, Sequence

from ..record import Finding
from .book import Book
from .figures import forest
from .markup import Html, span, tag
from .tables import badge, effects_table


def facts(book: Book) -> Html:
    """A strip of what was run, where, and when."""
    study, runs = book.measured.study, book.measured.runs
    done = sum(r.is_done for r in runs)
    dates = sorted({d for r in runs for d in r.dates})
    versions = _distinct(
        f"{name} {version}" for r in runs for name, version in sorted(r.environment.get("versions", {}).items())
    )
    pairs = [
        ("Cells", len(study["cells"])),
        ("Arms", len(study["arms"])),
        ("Seeds", f"{len(study['seeds'])} ({', '.join(map(str, study['seeds']))})"),
        ("Runs done", f"{done} of {len(runs)}"),
        ("Parameters a run", span(r.entry["n_parameters"] for r in runs) if runs else "–"),
        ("Tokens a run", span(r.entry["tokens"] for r in runs) if runs else "–"),
        ("Device", _distinct(str(r.environment["device"]) for r in runs if "device" in r.environment) or "–"),
        ("Data from", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "–"),
        ("Versions", versions or f"gatelab {study['version']}"),
    ]
    return tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs], class_="facts")


def legend(book: Book) -> Html:
    """The one legend of the page: an arm and its colour, always in sight."""
    entries = []
    for arm in book.measured.study["arms"]:
        kind = " (baseline)" if arm["name"] == book.arms.baseline else " (control)" if arm["control"] else ""
        entries.append(tag("li", book.swatch(arm["name"]), book.arms.labels[arm["name"]], kind))
    return tag("div", tag("ul", entries), class_="arms", role="note", aria_label="colours of the arms")


def missing(book: Book) -> Html | None:
    """What the page lacks, said before anything else."""
    lost = [r for r in book.measured.runs if not r.is_done]
    if not lost:
        return None
    items = [tag("li", f"{r.key[0]}, {book.arms.labels[r.key[1]]}, seed {r.key[2]}: {r.fate}") for r in lost[:12]]
    more = tag("li", f"and {len(lost) - 12} more, in the table of runs") if len(lost) > 12 else None
    text = f"{len(lost)} of {len(book.measured.runs)} runs are not done. They enter no verdict; where something was measured, it is drawn."
    return tag("div", tag("p", text), tag("ul", items, more), class_="notice")


def verdicts(book: Book) -> Html:
    """One sentence a primary effect, beside the forest plot that it rests on, cell by cell."""
    out = [_few(book)]
    primary = [f for f in book.findings if f.primary]
    for cell in book.cells:
        mine = [f for f in primary if f.cell == cell["name"]]
        out += [book.heading(cell), tag("p", cell["about"], " ", tag("span", f"Data: {cell['data']}."), class_="about")]
        for name in [n for n, m in book.metrics.items() if m["primary"]]:
            out.append(_claim(book, cell["name"], name, [f for f in mine if f.metric == name]))
    return tag("section", tag("h2", "Verdicts"), out, id="verdicts")


def _claim(book: Book, cell: str, metric: str, findings: Sequence[Finding]) -> Html:
    about = book.metrics[metric]
    better = {"lower-is-better": "; lower is better", "higher-is-better": "; higher is better"}.get(
        about["direction"], ""
    )
    title = tag("h4", _capital(about["label"]), tag("span", better, class_="quiet small"))
    absent = [a for a in book.measured.arms(cell) if a != book.arms.baseline and a not in {f.arm for f in findings}]
    if not findings:
        return tag(
            "div",
            title,
            tag("p", "No finding: not measured in this cell, or no pair has finished.", class_="about"),
            class_="claim",
        )
    figure = book.place(forest(findings, book.arms, absent), f"difference in {about['label']}")
    said = [tag("li", badge(f.verdict), tag("span", _sentence(f))) for f in findings]
    said += [
        tag(
            "li", tag("span", "no pair", class_="badge hole"), f"{book.arms.labels[arm]}: no pair of runs has finished."
        )
        for arm in absent
    ]
    return tag("div", title, figure, tag("ul", said), class_="claim")


def _sentence(f: Finding) -> Html:
    """The sentence whole; the cell's name, which stands above it, is for those who copy or listen."""
    prefix = f"{f.cell}: "
    if not f.sentence.startswith(prefix):
        return tag("span", f.sentence)
    rest = f.sentence[len(prefix) :]
    return tag("span", tag("span", prefix, class_="unseen"), _capital(rest) if rest[:3] == "no " else rest)


def _few(book: Book) -> Html | None:
    pairs = [f.n_pairs for f in book.findings if f.primary]
    if not pairs or min(pairs) >= 5:
        return None
    few = f"{min(pairs)}" if min(pairs) == max(pairs) else f"{min(pairs)} to {max(pairs)}"
    text = (
        f"Few seeds: these verdicts rest on {few} pairs of runs an arm. Intervals from so few are wide, only large effects can be"
        " seen, and “unclear” says little. “Detectable” in the table below is the smallest true effect that had an"
        " 80% chance of being seen. Small effects need more seeds: five at least, ten to be sure."
    )
    return tag("div", tag("p", text), class_="notice")


def effects(book: Book) -> Html:
    """The table of effects, and the exploratory forest plots in a fold-out."""
    figures = []
    for cell in book.cells:
        found = [f for f in book.findings if f.cell == cell["name"] and not f.primary]
        plots = []
        for metric in dict.fromkeys(f.metric for f in found):
            label = book.words.get(metric, metric)
            plots.append(
                book.place(forest([f for f in found if f.metric == metric], book.arms), f"difference in {label}")
            )
        if plots:
            figures += [book.heading(cell), tag("div", plots, class_="small-multiples")]
    fold = tag("details", tag("summary", "exploratory effects as plots"), figures, class_="print") if figures else None
    return tag(
        "section", tag("h2", "Effects"), effects_table(book.findings, book.words, book.arms.labels), fold, id="effects"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _distinct(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
