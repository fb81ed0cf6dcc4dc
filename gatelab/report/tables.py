"""The tables of the page, and the CSV files beside it, which hold every number in full.

On a narrow screen the table of effects turns into cards: each cell carries its column's name.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

from ..record import Finding
from .markup import NONE, Html, decimal, duration, number, places, probability, tag
from .measured import Measured, RunView
from .style import VERDICTS


def badge(verdict: str) -> Html:
    """A verdict as a sign and a word in a coloured frame."""
    sign, meaning = VERDICTS.get(verdict, ("", ""))
    return tag("span", tag("b", sign, aria_hidden="true"), verdict, class_=f"badge {verdict}", title=meaning)


def effects_table(findings: Sequence[Finding], words: dict[str, str], labels: dict[str, str]) -> Html:
    """Primary effects first, exploratory ones after and marked so. `words` names metrics, `labels` arms."""
    confidences = sorted({f"{f.confidence:.3g}" for f in findings})
    interval = f"{float(confidences[0]):.0%} interval" if len(confidences) == 1 else "interval"
    columns = ["arm", "metric", "baseline", "arm mean", "effect", interval, "p", "q", "pairs", "detectable", "verdict"]
    numeric = set(range(2, 10))
    bodies = []
    for primary, heading in ((True, "Primary"), (False, "Exploratory")):
        chosen = [f for f in findings if f.primary == primary]
        for cell in dict.fromkeys(f.cell for f in chosen):
            title = tag("tr", tag("th", f"{heading}, {cell}", colspan=len(columns), scope="rowgroup"), class_="group")
            rows = [_effect_row(f, words, labels, columns, numeric) for f in chosen if f.cell == cell]
            bodies.append(tag("tbody", title, rows))
        if not chosen:
            bodies.append(tag("tbody", tag("tr", tag("td", f"{heading}: none yet", colspan=len(columns)))))
    caption = (
        "Effect: mean over pairs of arm minus baseline. Primary effects were declared before looking and are judged"
        " together by q. Exploratory ones have p alone, not corrected for the number of tests: hints for the next study."
    )
    return scrolling(
        tag("table", tag("caption", caption), headings(columns, numeric), bodies, class_="cards effects"), "effects"
    )


def _effect_row(
    f: Finding, words: dict[str, str], labels: dict[str, str], columns: list[str], numeric: set[int]
) -> Html:
    digits = places(max((abs(x) for x in (f.effect, f.low, f.high) if isfinite(x)), default=1.0))
    unit = "" if f.unit in ("", "1") else f" [{f.unit}]"
    values = [
        labels.get(f.arm, f.arm),
        f"{words.get(f.metric, f.metric)}{unit}",
        number(f.baseline_mean),
        number(f.arm_mean),
        decimal(f.effect, digits),
        f"{decimal(f.low, digits)} to {decimal(f.high, digits)}" if isfinite(f.high - f.low) else NONE,
        probability(f.p),
        probability(f.q),
        f.n_pairs,
        number(f.detectable, 2),
        badge(f.verdict),
    ]
    return _row(values, columns, numeric, title="; ".join(f.notes) or None)


def shares_table(shares: Sequence[dict[str, Any]], metrics: dict[str, dict], labels: dict[str, str]) -> Html:
    """In how many runs of each arm a thing that is there or not was there, with exact intervals; arms side by side."""
    found = {(s["cell"], s["metric"], s["arm"]): s for s in shares}
    rows = []
    for cell, name in dict.fromkeys((s["cell"], s["metric"]) for s in shares):
        event = metrics[name]["event"] or f"{metrics[name]['label']} above {metrics[name]['threshold']:g}"
        counts = [found.get((cell, name, arm)) for arm in labels]
        said = [f"{s['k']} of {s['n']} ({s['low']:.0%} to {s['high']:.0%})" if s else NONE for s in counts]
        rows.append([f"{event}, {cell}", *said])
    return table(
        ["runs in which the model", *labels.values()], rows, numeric=set(range(1, len(labels) + 1)), name="shares"
    )


def pairing_table(pairing: Sequence[dict[str, Any]], words: dict[str, str], labels: dict[str, str]) -> Html:
    """What comparing runs of one seed bought, arms side by side: correlation, unpaired over paired variance, pairs."""
    found = {(row["metric"], row["cell"], row["arm"]): row for row in pairing}
    arms = [arm for arm in labels if any(row["arm"] == arm for row in pairing)]

    def said(row: dict[str, Any] | None) -> str:
        if row is None:
            return NONE
        gain = f"{number(row['gain'], 2)}\u00a0×" if isfinite(row["gain"]) else NONE
        return f"{decimal(row['correlation'], 2)}; {gain} (n = {row['n']})"

    rows = [
        [f"{words.get(metric, metric)}, {cell}", *(said(found.get((metric, cell, arm))) for arm in arms)]
        for metric, cell in dict.fromkeys((row["metric"], row["cell"]) for row in pairing)
    ]
    columns = ["correlation; variance ratio", *(labels[arm] for arm in arms)]
    return table(columns, rows, numeric=set(range(1, len(columns))), name="pairing")


# Runs up to which the page has a row of each.
_ROWS = 600


def shown_runs(measured: Measured) -> list[RunView]:
    """The runs that have a row on the page: all, or of many the first of each cell and arm and those that are not done."""
    if len(measured.runs) <= _ROWS:
        return measured.runs
    first = {run.key[:2]: run for run in reversed(measured.runs)}
    return [run for run in measured.runs if first[run.key[:2]] is run or run.state != "done"]


def runs_table(measured: Measured, labels: dict[str, str]) -> Html:
    """The runs that are shown, their states, and what reproduces them."""
    columns = ["cell", "arm", "seed", "run", "parameters", "remainder", "state", "step", "last loss", "time", "device"]
    numeric = {2, 4, 5, 7, 8, 9}
    body = [_run_rows(run, labels, columns, numeric) for run in shown_runs(measured)]
    return scrolling(tag("table", headings(columns, numeric), tag("tbody", body), class_="runs"), "runs")


def _run_rows(run: RunView, labels: dict[str, str], columns: list[str], numeric: set[int]) -> list[Html]:
    cell, arm, seed = run.key
    entry = run.entry
    reached = NONE if run.steps is None else f"{run.steps:,}"
    state = run.state if run.is_done else tag("span", run.state, class_="badge hole")
    values = [
        cell,
        labels.get(arm, arm),
        seed,
        tag("code", entry["fingerprint"]),
        f"{entry['n_parameters']:,}",
        f"{entry['remainder']:+,}".replace("-", "−") if entry["remainder"] else "0",
        state,
        f"{reached} of {entry['steps']:,}" if not run.is_done else reached,
        number(run.last_loss, 4),
        duration(run.seconds),
        run.environment.get("device", NONE),
    ]
    cells = [tag("td", value, class_="num" if i in numeric else None) for i, value in enumerate(values)]
    held = run.config
    config = json.dumps(held, indent=1, ensure_ascii=False) if held else "not written yet, or not readable"
    details = tag(
        "details",
        tag("summary", f"reproduce {cell}/{arm}/{seed}"),
        tag(
            "div", tag("code", entry["command"]), tag("button", "copy", type="button", data_copy=True), class_="command"
        ),
        tag("pre", config),
    )
    return [tag("tr", cells, class_="entry"), tag("tr", tag("td", details, colspan=len(columns)), class_="more")]


def table(columns: list[str], rows: Iterable[list[Any]], *, numeric: set[int], name: str) -> Html:
    """A table whose first column heads its rows; `numeric` columns are set to the right."""
    body = [_row(row, columns, numeric) for row in rows]
    return scrolling(tag("table", headings(columns, numeric), tag("tbody", body), class_="cards"), name)


def headings(columns: Sequence[str | Html], numeric: set[int]) -> Html:
    """The names above columns."""
    cells = [tag("th", c, scope="col", class_="num" if i in numeric else None) for i, c in enumerate(columns)]
    return tag("thead", tag("tr", cells))


def _row(values: list[Any], columns: list[str], numeric: set[int], title: str | None = None) -> Html:
    """A row; each cell knows its column's name, which a narrow screen shows beside it."""
    cells = [
        tag("td", value, class_="num" if i in numeric else None, data_label=column)
        for i, (value, column) in enumerate(zip(values, columns, strict=True))
        if i
    ]
    return tag("tr", tag("th", values[0], scope="row"), cells, title=title)


def scrolling(inner: Html, name: str) -> Html:
    """`inner` in a container that scrolls by itself, with the keyboard too."""
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label=f"table of {name}")


def effects_csv(findings: Iterable[Finding]) -> str:
    """Every field of every finding; lists are joined by semicolons."""
    rows = [asdict(f) for f in findings]
    flat = [{k: ";".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return csv_text([f.name for f in fields(Finding)], flat)


def runs_csv(measured: Measured) -> str:
    """Every planned run: its plan entry, state, last step and loss, seconds, device."""
    rows = [
        {
            **run.entry,
            "state": run.state,
            "last_step": run.steps,
            "last_loss": run.last_loss,
            "seconds": run.seconds,
            "device": run.environment.get("device"),
        }
        for run in measured.runs
    ]
    return csv_text(list(dict.fromkeys(key for row in rows for key in row)), rows)


def curves_csv(measured: Measured) -> str:
    """Every point of every curve, nothing thinned."""
    lines = ["cell,arm,seed,metric,step,value"]
    # Numbers as csv.writer writes them, which has no quick way to write one place before each of many.
    lines += [
        place + f"\n{place}".join([f",{step},{value!r}" for step, value in points])
        for key, points in measured.curves.items()
        for place in [csv_line(key)]
        if points
    ]
    return "\n".join(lines) + "\n"


def csv_line(values: Sequence[Any]) -> str:
    """One record of a CSV file, without its end."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(values)
    return out.getvalue()


def csv_text(names: list[str], rows: Iterable[dict[str, Any]]) -> str:
    """Records under their names; what a record does not have is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
