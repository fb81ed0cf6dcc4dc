"""The section of phases: for each arm a grid of the share of seeds with a sink, one of the loss that the arm costs, and a table.

Notable: all grids of one kind share a colour scale, and what is missing is blank. That of the loss grows with the square root
of the difference, so that a small cost is seen beside a large one.
"""

from math import isfinite
from typing import TYPE_CHECKING, Any

from .best_rates import best_rates
from .book import Book
from .charts import Figure, channel, short, stepped
from .markup import NONE, Html, decimal, number, places, tag
from .parts import ramp, section
from .style import DIVERGING, RAMP
from .tables import badge, csv_text
from .tables import table as tabulated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..analysis.phases import Axis, Phases, Point

_WIDE, _HIGH = 78, 40  # pixels of a field


def found_phases(book: Book, shares: "Sequence[dict[str, Any]]") -> "Phases | None":
    """The phases of the page's study; None where its cells are no grid of two axes or more."""
    from ..analysis.optimum import seed_losses
    from ..analysis.paired import Outcome
    from ..analysis.phases import LOSS, phases

    read = book.measured
    outcomes = [
        Outcome(*run.key, LOSS, read.curves[*run.key, LOSS][-1][1], run.state)
        for run in read.runs
        if read.curves.get((*run.key, LOSS))
    ]
    states = {run.key: run.state for run in read.runs}
    return phases(read.study, book.findings, shares, states, seed_losses(outcomes, book.findings))


def phases_section(book: Book, found: "Phases") -> Html:
    """Where the sink ends, and what that costs."""
    metric, control = book.metrics["first_token_mass"], book.arms.labels[book.arms.baseline]
    n_lost = sum(len(seeds) for p in found.points for seeds in p.lost.values())
    names = ", ".join(axis_words(a) for a in (found.across, *found.down))
    lead = (
        f"The cells are points of {names}; each of these is a key in which some cells differ and in nothing else. A run has a sink"
        f" where its first-token mass is above {metric['threshold']:g}. Intervals of shares are exact (Clopper–Pearson); those of"
        " the loss are Student's t over pairs of one seed. In the tables the sign beside a share is McNemar's exact test of the"
        f" seeds that have a sink with one of gate and {control} and not with the other; there is none where all runs of both have"
        " a sink, or none has. The sign beside a loss is of the mean difference."
    )
    lost = (
        f" {n_lost} runs are not done: neither they nor their pairs are in a number, and the tables name each."
        if n_lost
        else ""
    )
    arms = [arm for arm in book.arms.labels if found.of(arm)]
    sinks = [
        _placed(book, found, arm, "runs with a first-token sink", _sink, list(RAMP), (0.0, 1.0), "linear")
        for arm in arms
    ]
    far = max((abs(p.loss.effect) for p in found.points if p.loss and isfinite(p.loss.effect)), default=0.0) or 1.0
    costs = [
        _placed(
            book, found, arm, f"held-out loss minus that of {control}", _cost, list(DIVERGING), (-far, 0.0, far), "pow"
        )
        for arm in arms
        if arm != book.arms.baseline
    ]
    end = number(far, 2)
    return section(
        "phases", "Phases", tag("p", lead, lost),
        tag("h3", "Where the sink is"), ramp(RAMP, "0", "1", "share of finished runs with a sink; blank: no such cell"),
        tag("div", sinks, class_="row"),
        tag("h3", f"What the gate costs against {control}"),
        ramp(DIVERGING, f"−{end}", end, "held-out loss, nats a token; in brackets where its 95% interval includes zero"),
        tag("div", costs, class_="row"),
        best_rates(book, found, axis_words(found.across)),
        tag("h3", "The numbers"), _tables(book, found, arms),
    )  # fmt: skip


def axis_words(axis: "Axis") -> str:
    """An axis by its key's last part, or by how many keys differ alike."""
    more = f" (and {len(axis.keys) - 1} keys that go with it)" if len(axis.keys) > 1 else ""
    return axis.keys[0].rpartition(".")[2] + more


def place_words(axes: "Sequence[Axis]", at: "Sequence[Any]") -> str:
    """A place: the levels of the axes."""
    return ", ".join(f"{a.keys[0].rpartition('.')[2]} {_said(x)}" for a, x in zip(axes, at, strict=True))


def _said(level: Any) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)


def _sink(p: "Point") -> tuple[str, float | None, str]:
    """What a field says, the number of its colour, and its interval."""
    return (f"{p.k} of {p.n}", p.k / p.n, f"{p.low:.0%} to {p.high:.0%}") if p.n else (NONE, None, NONE)


def _cost(p: "Point") -> tuple[str, float | None, str]:
    f = p.loss
    if f is None or not isfinite(f.effect):
        return NONE, None, NONE
    text = number(f.effect, 2)
    sure = isfinite(f.high - f.low) and not f.low <= 0 <= f.high
    return text if sure else f"({text})", short(f.effect), f"{number(f.low)} to {number(f.high)}"


def _placed(
    book: Book,
    found: "Phases",
    arm: str,
    what: str,
    field: "Callable[[Point], tuple[str, float | None, str]]",
    colours: list[str],
    domain: tuple[float, ...],
    scale: str,
) -> Html:
    fields = [(p, *field(p)) for p in found.of(arm)]
    said = "; ".join(f"{p.cell} {text}{f', {p.said}' if p.lost else ''}" for p, text, _, _ in fields)
    figure = _grid(found, fields, colours, domain, scale, f"{book.arms.labels[arm]}, {what}: {said}")
    return book.charts.place(figure, book.arm(arm))


def _grid(
    found: "Phases", fields: "Sequence[tuple]", colours: list[str], domain: tuple[float, ...], scale: str, alt_text: str
) -> Figure:
    """One arm's fields: the axis across, the others down, a number in each and below it how many runs are not done."""
    columns = [_said(x) for x in found.across.levels]
    order = sorted(
        {p.at[1:] for p in found.points},
        key=lambda at: [a.levels.index(x) for a, x in zip(found.down, at, strict=True)],
    )
    rows = [place_words(found.down, at) for at in order]
    values = [
        {"x": _said(p.at[0]), "y": place_words(found.down, p.at[1:]), "cell": p.cell, "said": text, "interval": interval,
         "below": _below(p), "lost": p.said, "v": None if v is None else short(v)}
        for p, text, v, interval in fields
    ]  # fmt: skip
    axis = {"ticks": False, "domain": False, "labelLimit": 220, "labelAngle": 0}
    place = {
        name: channel(f"{name}:N") | {"title": title, "scale": {"domain": names}, "sort": names, "axis": axis}
        for name, title, names in (("x", axis_words(found.across), columns), ("y", None, rows))
    }
    power = {"exponent": 0.5} if scale == "pow" else {}
    paint = {"type": scale, "domain": list(domain), "range": colours, "clamp": True, "interpolate": "rgb", **power}
    # A ramp is dark at its lower end, the diverging scale at both.
    is_dark = f"abs(datum.v) > {0.4 * domain[-1]}" if scale == "pow" else f"datum.v < {0.62 * domain[-1]}"
    ink = {"value": "#000", "condition": {"test": f"isValid(datum.v) && {is_dark}", "value": "#fff"}}
    tips = [channel(f"{name}:N") for name in ("cell", "said", "interval", "lost")]
    layers = [
        {"mark": "rect", "encoding": place | {"color": channel("v:Q") | {"scale": paint, "legend": None}, "tooltip": tips}},
        {"mark": {"type": "rect", "color": "#c9ced3"}, "encoding": place, "transform": [{"filter": "!isValid(datum.v)"}]},
        {"mark": {"type": "text", "fontSize": 11}, "encoding": place | {"text": channel("said:N"), "color": ink}},
        {"mark": {"type": "text", "fontSize": 8, "dy": 13}, "encoding": place | {"text": channel("below:N"), "color": ink}},
    ]  # fmt: skip
    return stepped(values, layers, alt_text, _WIDE, _HIGH)


def _below(p: "Point") -> str:
    """How many runs are not done, by state."""
    return ", ".join(f"{len(seeds)} {state}" for state, seeds in p.lost.items())


def _tables(book: Book, found: "Phases", arms: "Sequence[str]") -> list[Html]:
    """The numbers of the grids, a row a cell and a column an arm: shares with the runs that are not done, and losses."""
    at = {(p.at, p.arm): p for p in found.points}
    places_ = sorted(
        dict.fromkeys(p.at for p in found.points),
        key=lambda place: [a.levels.index(x) for a, x in zip((found.across, *found.down), place, strict=True)],
    )
    gates = [arm for arm in arms if arm != book.arms.baseline]
    out = []
    for name, of, shown in (("runs with a sink", _share_words, arms), ("loss difference", _cost_words, gates)):
        rows = [
            [
                place_words((found.across, *found.down), place),
                *(of(at[place, arm]) if (place, arm) in at else NONE for arm in shown),
            ]
            for place in places_
        ]
        columns = [name, *(book.arms.labels[arm] for arm in shown)]
        out.append(tabulated(columns, rows, numeric=set(), name=f"phases: {name}"))
    return out


def _share_words(p: "Point") -> Html:
    text, _, interval = _sink(p)
    lost = tag("span", f" {p.said}", class_="quiet") if p.lost else None
    verdict = [" ", badge(p.change.verdict)] if p.change and p.n else None
    return tag("span", f"{text} ({interval})" if p.n else text, verdict, lost)


def _cost_words(p: "Point") -> Html:
    f = p.loss
    if f is None or not isfinite(f.effect):
        return tag("span", NONE)
    digits = places(max(abs(x) for x in (f.effect, f.low, f.high) if isfinite(x)))
    interval = f" ({decimal(f.low, digits)} to {decimal(f.high, digits)})" if isfinite(f.high - f.low) else ""
    return tag("span", f"{decimal(f.effect, digits)}{interval} ", badge(f.verdict))


def phases_csv(found: "Phases") -> str:
    """Every point in full: its levels by their keys, counts, interval, loss difference, and the runs that are not done."""
    axes = (found.across, *found.down)
    rows = []
    for p in found.points:
        f = p.loss
        rows.append({
            "cell": p.cell, "arm": p.arm, **{a.keys[0]: x for a, x in zip(axes, p.at, strict=True)},
            "sinks": p.k, "runs": p.n, "share_low": p.low, "share_high": p.high,
            "sink_q": p.change.q if p.change else None, "sink_verdict": p.change.verdict if p.change else None,
            "loss_difference": f.effect if f else None, "loss_low": f.low if f else None, "loss_high": f.high if f else None,
            "loss_q": f.q if f else None, "loss_verdict": f.verdict if f else None, "pairs": f.n_pairs if f else None,
            "not_done": p.said,
        })  # fmt: skip
    return csv_text(list(rows[0]), rows)
