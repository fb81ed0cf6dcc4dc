"""What the rows of a study have to see a confirmed anomaly by: curves over training, gate scores, and where the first token is
attended to. What they do not have is said in its place.
"""

from collections.abc import Iterable, Mapping
from math import ceil, isfinite
from statistics import median
from typing import TYPE_CHECKING

from .book import Book
from .card_figures import Band, band, bands, gate_map
from .figures import mass_map
from .markup import NONE, Html, decimal, places, tag
from .measured import mean_table, thin
from .parts import ramp
from .style import RAMP
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.confirmed import Anomaly
    from ..analysis.sights import Sight

_MOST_POINTS = 60  # of a curve
_MOST_LAYERS = 12  # of the table of gates
_SILENT = ("", "1", "ratio", "share")
_BESIDE = ("val_loss", "first_token_mass")  # shown with whatever was confirmed


def unit_of(unit: str) -> str:
    """A unit behind a number, where it is worth saying."""
    return "" if unit in _SILENT else f" {unit}"


def word(book: Book, a: "Anomaly", reading: str) -> tuple[str, str]:
    """A reading's label and unit."""
    metric = book.metrics.get(reading)
    known = {"val_loss": ("held-out loss", "nats"), "first_token_mass": ("first-token mass", "share")}
    return a.words.get(reading) or (
        (metric["label"], metric["unit"]) if metric else known.get(reading, (reading.replace("_", " "), ""))
    )


def own_sights(book: Book, a: "Anomaly") -> dict[str, "Sight"]:
    """{arm: what the finished runs of this study have}, of the baseline and the gate."""
    from ..analysis.sights import Sight

    out, m = {}, book.measured
    for side in (book.arms.baseline, a.arm):
        keys = {r.key[2]: r.key for r in m.of(a.cell, side) if r.is_done}
        curves = {
            reading: {seed: course for (arm, seed), course in of.items() if arm == side and seed in keys}
            for reading, of in a.seen.courses.items()
        }
        curves |= {r: {s: c for s, k in keys.items() if (c := m.curves.get((*k, r)))} for r in _BESIDE}
        out[side] = Sight(
            list(keys), curves,
            {s: m.heads[k] for s, k in keys.items() if k in m.heads},
            {s: m.layers[*k, "gate_mean"] for s, k in keys.items() if (*k, "gate_mean") in m.layers},
            {s: a.seen.shut[k[1:]] for s, k in keys.items() if k[1:] in a.seen.shut},
            {s: m.histograms[k] for s, k in keys.items() if k in m.histograms},
        )  # fmt: skip
    return out


def curves_of(book: Book, a: "Anomaly", sides: Mapping[str, "Sight"], *, with_table: bool = True) -> Html:
    """Each claim's metric over training, and the two that are always shown; at their last look in a table."""
    shown = dict.fromkeys(r for r in (*(h.claim.reading for h in a.held), *_BESIDE) if r != "unstable")
    figures, rows, lacking = [], [], []
    for reading in shown:
        found = [b for side, sight in sides.items() if (b := _band(sight, reading, side)) is not None]
        label, unit = word(book, a, reading)
        if not found:
            lacking.append(label)
            continue
        said = {b.arm: f"{_range(b)}{f' ({b.n_seeds} seeds)' if b.n_seeds > 1 else ''}" for b in found}
        step = max(b.median[-1][0] for b in found)
        name = f"{label},{unit_of(unit)}" if unit_of(unit) else label
        rows.append([name, f"{step:,.0f}", *(said.get(side, NONE) for side in sides)])
        if all(len(b.median) > 1 for b in found):
            words = f"{label} over training in {a.cell}, median (least to largest of the seeds) at the last look: "
            alt_text = words + "; ".join(f"{book.arms.labels[arm]} {text}" for arm, text in said.items())
            title = f"{label[:1].upper()}{label[1:]}"
            figures.append(book.charts.place(bands(found, book.arms, unit, alt_text), title))
    labels = [book.arms.labels[side] for side in sides]
    notes = []
    if rows and not figures:
        notes.append("The rows of this study have one look of each at a run: no curve over training.")
    if lacking:
        notes.append(f"Without rows: {', '.join(lacking)}.")
    table = tabulated(["median (range)", "step", *labels], rows, numeric={1}, name=f"last look of {a.cell}, {a.arm}")
    legend = "Line: median of the seeds; band: from the least to the largest." if figures else ""
    return tag(
        "div", tag("h4", "Over training"), tag("div", figures, class_="row") if figures else None,
        tag("p", " ".join([legend, *notes]).strip(), class_="about") if legend or notes else None,
        table if rows and with_table else None,
    )  # fmt: skip


def _band(sight: "Sight", reading: str, side: str) -> Band | None:
    """The seeds of an arm over the steps that all of them have."""
    courses = sight.curves.get(reading, {})
    curves = [dict(points) for _, c in sorted(courses.items()) if (points := thin(c, c[-1][0], _MOST_POINTS))]
    return band(side, curves)


def _range(b: Band) -> str:
    """The last median, with the range of seeds."""
    middle, low, high = (points[-1][1] for points in (b.median, b.low, b.high))
    digits = places(max(abs(middle), abs(low), abs(high)), 4)
    return f"{decimal(middle, digits)} ({decimal(low, digits)} to {decimal(high, digits)})"


def gates_of(book: Book, a: "Anomaly", sight: "Sight", *, with_table: bool = True) -> Html:
    """Histograms by layer, and the mean gate and the share of shut scores."""
    pooled, means, shut = (
        list(sight.histograms.values()),
        _by_layer(sight.gates.values()),
        _by_layer(sight.shut.values()),
    )
    heading = tag("h4", "Gate scores")
    if not (pooled or means or shut):
        return tag("div", heading, tag("p", "The rows of this study have no gate scores of this arm.", class_="about"))
    layers = sorted({*means, *shut})
    figure, note = None, "The rows of this study have no histograms."
    if pooled:
        shares = {n: mean_table([h[n] for h in pooled if n in h]) for n in sorted({n for h in pooled for n in h})}
        said = "; ".join(f"layer {n} {decimal(median(means[n]), 2)}" for n in layers if n in means)
        alt_text = f"Gate scores of {book.arms.labels[a.arm]} in {a.cell} by layer; mean gate: {said}"
        figure = book.charts.place(gate_map(shares, alt_text), "Shares of gate scores by layer")
        note = (
            f"Of {len(pooled)} finished seeds, pooled, the brighter the more; blank: below 0.0001 of a layer's scores."
        )
    shown = layers[:: ceil(len(layers) / _MOST_LAYERS)] if layers and with_table else []
    rows = [[n, *(_spread(of.get(n, [])) for of in (means, shut))] for n in shown]
    every = f" One layer in {ceil(len(layers) / _MOST_LAYERS)} is listed." if rows and len(shown) < len(layers) else ""
    columns = ["layer", "mean gate, median (range)", "share below 0.1, median (range)"]
    return tag(
        "div", heading, tag("p", note + every, class_="about"),
        tag("div", figure, tabulated(columns, rows, numeric={1, 2}, name=f"gates of {a.cell}, {a.arm}") if rows else None,
            class_="row"),
    )  # fmt: skip


def _by_layer(tables: Iterable[dict[int, float]]) -> dict[int, list[float]]:
    out: dict[int, list[float]] = {}
    for table in tables:
        for n, value in table.items():
            if isfinite(value):
                out.setdefault(n, []).append(value)
    return out


def _spread(values: list[float]) -> str:
    return f"{decimal(median(values), 2)} ({decimal(min(values), 2)} to {decimal(max(values), 2)})" if values else NONE


def maps_of(book: Book, a: "Anomaly", sides: Mapping[str, "Sight"], top: float) -> Html:
    """First-token mass by layer and head, the baseline's beside the arm's."""
    figures = []
    for side, sight in sides.items():
        tables = [t for t in sight.heads.values() if t]
        if not tables:
            continue
        held: dict[tuple[int, int], list[float]] = {}
        for table in tables:
            for place, value in table.items():
                held.setdefault(place, []).append(value)
        middle = {place: median(values) for place, values in sorted(held.items())}
        (layer, head) = max(middle, key=middle.__getitem__)
        caption = (
            f"median of {len(tables)} seeds; highest {decimal(middle[layer, head], 2)} (layer {layer}, head {head})"
        )
        alt_text = f"First-token mass by layer and head, {book.arms.labels[side]} in {a.cell}: {caption}"
        figures.append(book.charts.place(mass_map(middle, top, alt_text, side=30), book.arm(side), caption))
    shown = (
        [ramp(RAMP, "0", f"{top:g}", "first-token mass; layers run down, heads across"), tag("div", figures, class_="row")]
        if figures else tag("p", "The rows of this study have no first-token mass by head.", class_="about")
    )  # fmt: skip
    return tag("div", tag("h4", "Where the first token is attended to"), shown)
