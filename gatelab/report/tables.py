"""The tables of the page, and the CSV files beside it, which hold every number in full.

On a narrow screen the table of effects turns into cards: each cell carries its column's name.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
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
    columns = [
        "arm",
        "metric",
        "baseline",
        "arm mean",
        "effect",
        "interval",
        "p",
        "q",
        "pairs",
        "detectable",
        "verdict",
    ]
    numeric = set(columns[2:10])
    head = tag("tr", [tag("th", c, scope="col", class_="num" if c in numeric else None) for c in columns])
    bodies = []
    for primary, heading in (
        (True, "Primary: declared before looking, judged together by q"),
        (False, "Exploratory: p alone, not corrected for the number of tests; a hint for the next study"),
    ):
        chosen = [f for f in findings if f.primary == primary]
        cells = list(dict.fromkeys(f.cell for f in chosen))
        for cell in cells:
            title = f"{heading.split(':')[0]}, {cell}"
            rows = [_effect_row(f, words, labels, columns[1:]) for f in chosen if f.cell == cell]
            group = tag("tr", tag("th", title, colspan=len(columns), scope="rowgroup"), class_="group")
            bodies.append(tag("tbody", group, rows))
        if not chosen:
            bodies.append(
                tag("tbody", tag("tr", tag("td", f"{heading.split(':')[0]}: none yet", colspan=len(columns))))
            )
    caption = (
        "Effect: mean over seeds of arm minus baseline. Interval: Student t over paired seeds, at the confidence it names."
        " Primary effects were declared before looking and are judged together by q; exploratory ones have p alone,"
        " not corrected for the number of tests."
    )
    return scrolling(tag("table", tag("caption", caption), tag("thead", head), bodies, class_="cards"))


def _effect_row(f: Finding, words: dict[str, str], labels: dict[str, str], columns: list[str]) -> Html:
    digits = places(max((abs(x) for x in (f.effect, f.low, f.high) if x == x and abs(x) != float("inf")), default=1.0))
    unit = "" if f.unit in ("", "1") else f" [{f.unit}]"
    values = [
        f"{words.get(f.metric, f.metric)}{unit}",
        number(f.baseline_mean),
        number(f.arm_mean),
        decimal(f.effect, digits),
        f"{decimal(f.low, digits)} to {decimal(f.high, digits)} ({f.confidence:.0%})" if f.low == f.low else NONE,
        probability(f.p),
        probability(f.q),
        f.n_pairs,
        number(f.detectable, 2),
        badge(f.verdict),
    ]
    cells = [
        tag("td", value, data_label=column, class_="num" if column not in ("metric", "verdict") else None)
        for column, value in zip(columns, values, strict=True)
    ]
    return tag("tr", tag("th", labels.get(f.arm, f.arm), scope="row"), cells, title="; ".join(f.notes) or None)


def shares_table(shares: Iterable[dict[str, Any]], metrics: dict[str, dict], labels: dict[str, str]) -> Html:
    """In how many runs a thing that is there or not there was there, with exact intervals."""

    def row(s: dict[str, Any]) -> list[Any]:
        metric = metrics.get(s["metric"], {})
        event = metric.get("event") or f"{metric.get('label', s['metric'])} above {metric.get('threshold')}"
        arm = labels.get(s["arm"], s["arm"])
        return [s["cell"], event, arm, f"{s['k']} of {s['n']}", f"{s['low']:.0%} to {s['high']:.0%}"]

    return table(["cell", "what", "arm", "runs", "exact interval"], [row(s) for s in shares], numeric={3, 4})


def pairing_table(pairing: Iterable[dict[str, Any]], words: dict[str, str], labels: dict[str, str]) -> Html:
    """What comparing runs of one seed bought: the correlation, and the variance of the difference without and with it."""
    rows = [
        [
            row["cell"],
            labels.get(row["arm"], row["arm"]),
            words.get(row["metric"], row["metric"]),
            row["n"],
            decimal(row["correlation"], 2),
            f"{number(row['gain'], 2)} ×" if row["gain"] == row["gain"] else NONE,
        ]
        for row in pairing
    ]
    return table(["cell", "arm", "metric", "pairs", "correlation", "variance removed"], rows, numeric={3, 4, 5})


def runs_table(measured: Measured, labels: dict[str, str]) -> Html:
    """Every planned run, its state, and what reproduces it."""
    columns = ["cell", "arm", "seed", "run", "parameters", "remainder", "state", "step", "last loss", "time", "device"]
    numeric = {2, 4, 5, 7, 8, 9}
    head = tag("tr", [tag("th", c, scope="col", class_="num" if i in numeric else None) for i, c in enumerate(columns)])
    body = [_run_rows(run, labels, columns, numeric) for run in measured.runs]
    return scrolling(tag("table", tag("thead", head), tag("tbody", body)))


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
    config = json.dumps(run.config, indent=1, ensure_ascii=False) if run.config else "not written yet, or not readable"
    details = tag(
        "details",
        tag("summary", f"reproduce {cell}/{arm}/{seed}"),
        tag(
            "div", tag("code", entry["command"]), tag("button", "copy", type="button", data_copy=True), class_="command"
        ),
        tag("pre", config),
    )
    return [tag("tr", cells, class_="of-more"), tag("tr", tag("td", details, colspan=len(columns)), class_="more")]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numeric: set[int]) -> Html:
    """A plain table in a container of its own that scrolls sideways; `numeric` columns are set to the right."""
    kinds = ["num" if i in numeric else None for i in range(len(columns))]
    head = tag("tr", [tag("th", c, scope="col", class_=k) for c, k in zip(columns, kinds, strict=True)])
    body = [tag("tr", [tag("td", v, class_=k) for v, k in zip(row, kinds, strict=True)]) for row in rows]
    return scrolling(tag("table", tag("thead", head), tag("tbody", body)))


def scrolling(inner: Html) -> Html:
    """`inner` in a container that scrolls by itself, with the keyboard too."""
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label="table")


def effects_csv(findings: Iterable[Finding]) -> str:
    """Every field of every finding; lists are joined by semicolons."""
    rows = [asdict(f) for f in findings]
    flat = [{k: ";".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return _csv([f.name for f in fields(Finding)], flat)


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
    return _csv(list(dict.fromkeys(key for row in rows for key in row)), rows)


def curves_csv(measured: Measured) -> str:
    """Every point of every curve, nothing thinned."""
    names = ["cell", "arm", "seed", "metric", "step", "value"]
    rows = [
        dict(zip(names, (*key, step, value), strict=True))
        for key, points in measured.curves.items()
        for step, value in points
    ]
    return _csv(names, rows)


def _csv(names: list[str], rows: Iterable[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
