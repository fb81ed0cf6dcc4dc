"""What all charts share: the arms' colours, the figure as a value, Vega-Lite's parts, data small enough to inline.

Numbers are rounded to five significant digits; the CSV files hold all of them.

Notable: a study's charts are plain Vega-Lite. A page has a hundred of them, and making them with Altair took longer than
reading a thousand runs (benchmarks/results/many_runs_cpu_2026-11.md); tests hold them against Altair's copy of the schema.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .measured import Points


@dataclass(frozen=True)
class Arms:
    """The arms of a study in its order: their words, and the one colour and dash pattern of each."""

    labels: dict[str, str]
    colours: dict[str, tuple[str, tuple[int, int]]]
    baseline: str

    def colour(self) -> dict[str, Any]:
        """The encoding of the field `arm` as its colour."""
        return self._encoded(0)

    @property
    def is_dashed(self) -> bool:
        """Whether some arm has another dash pattern than the first's."""
        return len({dash for _, dash in self.colours.values()}) > 1

    def looks(self) -> dict[str, Any]:
        """The encodings of a line: its colour, and its dash pattern where arms differ in it."""
        if not self.is_dashed:
            return {"color": self.colour()}
        return {"color": self.colour(), "strokeDash": self._encoded(1)}

    def _encoded(self, index: int) -> dict[str, Any]:
        scale = {"domain": list(self.labels), "range": [self.colours[arm][index] for arm in self.labels]}
        return channel("arm:N") | {"scale": scale, "legend": None}


@dataclass(frozen=True)
class Figure:
    """A chart: its specification, what it shows in words, and the width up to which it is drawn (None: its own)."""

    spec: dict[str, Any]
    alt: str
    fit: int | None = None


@dataclass(frozen=True)
class Line:
    """One seed's curve (or table of layers) of an arm, from left to right; `cut` says why it ends early, if it does."""

    arm: str
    seed: int
    points: Points
    cut: str = ""


Spec = dict[str, Any]
_TYPES = {"Q": "quantitative", "N": "nominal", "O": "ordinal"}


def channel(field: str) -> Spec:
    """An encoding of a field, which says what it holds: `loss:Q` a quantity, `arm:N` a name, `layer:O` a place in an order."""
    name, _, kind = field.partition(":")
    return {"field": name, "type": _TYPES[kind]} if kind else {"field": name}


def layer(values: Sequence[Spec], mark: Spec, encoding: Spec) -> Spec:
    """One mark over records."""
    return {"data": {"values": list(values)}, "mark": mark, "encoding": encoding}


def lines(values: Sequence[Spec], mark: Spec, encoding: Spec) -> Spec:
    """One mark over whole curves, kept as two columns each: a third of the size of one record a point."""
    return layer(values, mark, encoding) | {"transform": [{"flatten": ["x", "y"]}]}


def by_seed(
    seeds: Sequence[Line], through: Mapping[str, Points], arms: Arms, at: Spec, *, is_clipped: bool = False
) -> list[Spec]:
    """Every seed as a thin line, and thick what goes `through` those of each arm."""
    # Round ends would fill the gaps between dashes.
    cap, clip = "butt" if arms.is_dashed else "round", {"clip": True} if is_clipped else {}
    drawn = {"type": "line", **clip, "strokeCap": cap}
    looks = at | arms.looks()
    return [
        lines(
            [{"arm": n.arm, "seed": n.seed, **columns(n.points)} for n in seeds],
            drawn | {"strokeWidth": 1, "opacity": 0.45},
            looks | {"detail": channel("seed:N")},
        ),
        lines(
            [{"arm": arm, **columns(points)} for arm, points in through.items() if points],
            drawn | {"strokeWidth": 2.6},
            looks,
        ),
    ]


def fitted(layers: Sequence[Spec], alt_text: str, width: int, height: int) -> Figure:
    """The figure of layers that are narrowed to the space there is."""
    fit = {"type": "fit-x", "contains": "padding"}
    spec = {"layer": list(layers), "autosize": fit, "description": alt_text, "height": height, "width": width}
    return Figure(spec, alt_text, width)


def stepped(values: Sequence[Spec], layers: Sequence[Spec], alt_text: str, across: int, down: int) -> Figure:
    """The figure of marks over the same records, in cells of so many pixels."""
    spec = {"layer": list(layers), "data": {"values": list(values)}, "description": alt_text}
    return Figure(spec | {"height": {"step": down}, "width": {"step": across}}, alt_text)


def columns(points: Points) -> dict[str, list[float]]:
    """A curve as the two columns that `lines` takes."""
    if not points:
        return {"x": [], "y": []}
    xs, ys = zip(*points, strict=True)
    return {"x": _steps(xs), "y": shorts(ys)}


def extent(curves: Sequence[Line]) -> tuple[float, float] | None:
    """The smallest and the largest height of curves; None without a point."""
    heights = [[y for _, y in line.points] for line in curves if line.points]
    return (min(map(min, heights)), max(map(max, heights))) if heights else None


def records(points: Points, **fields: Any) -> list[dict[str, Any]]:
    """A curve as one record a point, each with the same `fields`."""
    at = columns(points)
    return [{**fields, "x": x, "y": y} for x, y in zip(at["x"], at["y"], strict=True)]


def shorts(values: Sequence[float]) -> list[float]:
    """`short` of many at once, which one format of all is quicker at."""
    rounded = map(float, ("%.5g " * len(values) % tuple(values)).split())
    return [int(value) if value.is_integer() else value for value in rounded]


@lru_cache(maxsize=64)
def _steps(values: tuple[float, ...]) -> list[float]:
    """`shorts` of the places of a curve's points, which the curves of a plan share."""
    return shorts(values)


def short(x: float) -> float:
    """`x` to five significant digits, whole numbers as integers."""
    value = float(f"{x:.5g}")
    return int(value) if value.is_integer() else value
