"""What all charts share: the arms' colours, the figure as a value, data small enough to inline.

Numbers are rounded to five significant digits; the CSV files hold all of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .measured import Points


@dataclass(frozen=True)
class Arms:
    """The arms of a study in its order: their words, and the one colour and dash pattern of each."""

    labels: dict[str, str]
    colours: dict[str, tuple[str, tuple[int, int]]]
    baseline: str

    def colour(self) -> Any:
        """The Altair encoding of the field `arm` as its colour."""
        import altair as alt

        return alt.Color("arm:N", scale=self._scale(0), legend=None)

    @property
    def is_dashed(self) -> bool:
        """Whether some arm has another dash pattern than the first's."""
        return len({dash for _, dash in self.colours.values()}) > 1

    def looks(self) -> dict[str, Any]:
        """The encodings of a line: its colour, and its dash pattern where arms differ in it."""
        import altair as alt

        if not self.is_dashed:
            return {"color": self.colour()}
        return {"color": self.colour(), "strokeDash": alt.StrokeDash("arm:N", scale=self._scale(1), legend=None)}

    def _scale(self, index: int) -> Any:
        import altair as alt

        return alt.Scale(domain=list(self.labels), range=[self.colours[arm][index] for arm in self.labels])


@dataclass(frozen=True)
class Figure:
    """A chart: its specification, what it shows in words, and the width up to which it is drawn (None: its own)."""

    spec: dict[str, Any]
    alt: str
    fit: int | None = None


@dataclass(frozen=True)
class Line:
    """One seed's curve (or table of layers) of an arm; `cut` says why it ends early, if it does."""

    arm: str
    seed: int
    points: Points
    cut: str = ""


def fitted(chart: Any, alt_text: str, width: int, height: int) -> Figure:
    """The figure of a chart that is narrowed to the space there is."""
    chart = chart.properties(width=width, height=height, autosize={"type": "fit-x", "contains": "padding"})
    return Figure(specification(chart, alt_text), alt_text, width)


def specification(chart: Any, alt_text: str) -> dict[str, Any]:
    """The chart as JSON, without what the page supplies once: the schema's address and the theme."""
    # Checking each chart against the whole schema took nearly half of a page's time; in the tests a browser draws whole pages.
    spec = chart.properties(description=alt_text).to_dict(validate=False)
    return {key: _filled(value) for key, value in spec.items() if key not in ("$schema", "config")}


def _filled(part: Any) -> Any:
    """A part of a specification with its data as records again."""
    if isinstance(part, list):
        return [_filled(each) for each in part]
    if not isinstance(part, dict):
        return part
    if isinstance(part.get("values"), str):
        return {**part, "values": json.loads(part["values"])}
    return {key: _filled(value) for key, value in part.items()}


def table(values: Sequence[dict[str, Any]]) -> Any:
    """A chart over records. They wait as one string until the chart is whole, since Altair copies a chart at every change."""
    import altair as alt

    return alt.Chart(alt.Data(values=json.dumps(list(values))))


def lines(values: Sequence[dict[str, Any]]) -> Any:
    """A chart over whole curves, kept as two columns each: a third of the size of one record a point."""
    return table(values).transform_flatten(["x", "y"])


def columns(points: Points) -> dict[str, list[float]]:
    """A curve as the two columns that `lines` takes."""
    return {"x": [short(x) for x, _ in points], "y": [short(y) for _, y in points]}


def records(points: Points, **fields: Any) -> list[dict[str, Any]]:
    """A curve as one record a point, each with the same `fields`."""
    return [{**fields, "x": short(x), "y": short(y)} for x, y in points]


def short(x: float) -> float:
    """`x` to five significant digits, whole numbers as integers."""
    value = float(f"{x:.5g}")
    return int(value) if value.is_integer() else value
