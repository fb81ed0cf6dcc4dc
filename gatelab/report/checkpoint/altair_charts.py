"""Charts that are built with Altair: how one starts from its records, and how it becomes a figure."""

from collections.abc import Sequence
from typing import Any

from ..charts import Figure, specification, table


def fitted(chart: Any, alt_text: str, width: int, height: int) -> Figure:
    """The figure of a chart that is narrowed to the space there is."""
    chart = chart.properties(width=width, height=height, autosize={"type": "fit-x", "contains": "padding"})
    return Figure(specification(chart, alt_text), alt_text, width)


def lines(values: Sequence[dict[str, Any]]) -> Any:
    """A chart over whole curves, kept as two columns each: a third of the size of one record a point."""
    return table(values).transform_flatten(["x", "y"])
