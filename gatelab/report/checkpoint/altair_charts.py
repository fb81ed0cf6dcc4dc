"""Charts that are built with Altair: how one starts from its records, and how it becomes a figure."""

import json
from collections.abc import Sequence
from typing import Any

from ..charts import Figure


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
