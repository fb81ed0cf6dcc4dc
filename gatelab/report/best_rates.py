"""Held-out loss along the axis of phases with the most levels, such as the learning rate: a curve an arm, its lowest point marked.

Notable: an arm that is judged at a rate which suits another is judged by the rate; so each arm's own best is told too, between the
levels where the lowest is inside of them.
"""

from math import isfinite
from typing import TYPE_CHECKING

from .book import Book
from .charts import channel, fitted, layer, short
from .markup import Html, number, tag
from .tables import table as tabulated

if TYPE_CHECKING:
    from ..analysis.optimum import Optimum
    from ..analysis.phases import Level, Phases

# With two levels a lowest point says nothing of what lies between or beyond.
_LEAST = 3


def best_rates(book: Book, found: "Phases", words: str) -> list[Html]:
    """A figure a place on the other axes, and where each arm is lowest; nothing where the axis has no numbers or two levels.
    `words` names the axis."""
    levels = found.across.levels
    if len(levels) < _LEAST or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in levels):
        return []
    figures, rows = [], []
    scale = {"type": "log", "domain": [min(levels) / 1.2, max(levels) * 1.2], "nice": False} if min(levels) > 0 else {}
    for place in dict.fromkeys(p.at[1:] for p in found.points):
        where = ", ".join(f"{a.keys[0].rpartition('.')[2]} {x}" for a, x in zip(found.down, place, strict=True))
        means = _means(found, place, book.arms.baseline)
        points = [(arm, x, mean) for arm, of in means.items() for x, mean in of.items()]
        best = lowest(found, place, book.arms.baseline)
        if not points:
            continue
        said = "; ".join(f"{book.arms.labels[arm]} lowest at {x:g}" for arm, x in best.items())
        values = [{"arm": arm, "x": x, "y": short(mean), "best": best.get(arm) == x} for arm, x, mean in points]
        x_axis = channel("x:Q") | {
            "title": words,
            "scale": scale,
            "axis": {"values": list(levels)},
        }
        at = {
            "x": x_axis,
            "y": channel("y:Q") | {"title": "held-out loss", "scale": {"zero": False}},
            **book.arms.looks(),
        }
        diamond = {"type": "point", "shape": "diamond", "filled": True, "size": 90, "opacity": 1}
        layers = [
            layer(values, {"type": "line", "strokeWidth": 2}, at),
            layer([v for v in values if v["best"]], diamond, {k: at[k] for k in ("x", "y", "color") if k in at}),
        ]
        figures.append(
            book.charts.place(fitted(layers, f"Held-out loss by {words}, {where}: {said}", 380, 220), where, said)
        )
        between = optima(found, place, list(best)) if min(levels) > 0 else {}
        rows.append(
            [where, *(_words(best.get(arm), levels, means.get(arm, {}), between.get(arm)) for arm in book.arms.labels)]
        )
    if not figures:
        return []
    lead = (
        f"Mean held-out loss by {words}, all arms; a diamond where an arm is lowest. An optimum at an end of the range is not"
        " inside it: what lies beyond was not run. Inside, the optimum is that of the parabola, over the logarithm, through the"
        " lowest mean and the two beside it, with its 95% interval over seeds (Fieller's); a curve that may be flat bounds none."
        " The interval does not know how far the curve is from a parabola between levels that lie far apart."
        " Compare arms at their own best as well as at one value."
    )
    columns = [f"lowest at {words}", *book.arms.labels.values()]
    return [
        tag("h3", f"Each arm's best {words}"),
        tag("p", lead),
        tag("div", figures, class_="grid"),
        tabulated(columns, rows, numeric=set(), name="best"),
    ]


def lowest(found: "Phases", place: tuple["Level", ...], baseline: str) -> dict[str, float]:
    """{arm: the level at which it is lowest} at a place on the other axes, of the arms that have all levels."""
    means, n = _means(found, place, baseline), len(found.across.levels)
    return {arm: min(of, key=of.__getitem__) for arm, of in means.items() if len(of) == n}


def optima(found: "Phases", place: tuple["Level", ...], arms: list[str]) -> dict[str, "Optimum"]:
    """{arm: its best level, between those that were run}, at a place on the other axes."""
    from ..analysis.optimum import optimum

    cells = {p.at[0]: p.cell for p in found.points if p.at[1:] == place}
    fits = {arm: optimum({x: found.losses.get((cell, arm), {}) for x, cell in cells.items()}) for arm in arms}
    return {arm: fit for arm, fit in fits.items() if fit is not None}


def _means(found: "Phases", place: tuple["Level", ...], baseline: str) -> dict[str, dict[float, float]]:
    """Mean loss of each arm by level; the control's is that of its pairs."""
    out: dict[str, dict[float, float]] = {}
    for p in found.points:
        if p.at[1:] != place or p.loss is None:
            continue
        for arm, mean in ((p.arm, p.loss.arm_mean), (baseline, p.loss.baseline_mean)):
            if isfinite(mean):
                out.setdefault(arm, {})[p.at[0]] = mean
    return out


def _words(
    best: float | None, levels: tuple["Level", ...], means: dict[float, float], fit: "Optimum | None" = None
) -> str:
    if best is None:
        return "not known: a level is missing"
    lowest = f"{best:g}: {number(means[best], 5)}"
    if best in (min(levels), max(levels)):
        return f"{lowest} (an end of the range)"
    return f"{lowest}; {_between(fit)}" if fit is not None and isfinite(fit.best) else lowest


def _between(fit: "Optimum") -> str:
    seeds = f"{fit.n} seed{'s' * (fit.n != 1)}"
    if fit.n < 2:
        return f"optimum at {fit.best:.2g}, one seed"
    if not isfinite(fit.high):
        return f"optimum at {fit.best:.2g}, not bounded by {seeds}"
    return f"optimum at {fit.best:.2g} ({fit.low:.2g} to {fit.high:.2g}, {seeds})"
