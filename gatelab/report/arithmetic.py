"""What arms take beside their baseline, in weights and in arithmetic, as a table and in words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .markup import NONE, Html, span, tag
from .tables import table

if TYPE_CHECKING:
    from ..analysis.arithmetic import Range


def times(of: "Range | None") -> str:
    """A range of ratios, to three decimals."""
    if of is None:
        return NONE
    low, high = (f"{x:.3f}" for x in of)
    return f"{low}\u00a0×" if low == high else f"{low} to {high}\u00a0×"


def arms_table(plan: Sequence[Mapping[str, Any]], baseline: str, labels: Mapping[str, str]) -> Html | None:
    """A row an arm, over the cells: its weights, its operations a token, and these over the baseline's. None of a plan that trains
    nothing."""
    from ..analysis.arithmetic import a_token, beside_baseline

    of_arms, ratios = a_token(plan), beside_baseline(plan, baseline)
    rows = []
    for arm, label in labels.items():
        cells = {cell: x for (cell, name), x in of_arms.items() if name == arm}
        weights = [e["n_parameters"] for e in plan if e["arm"] == arm and e["cell"] in cells]
        over = "1" if arm == baseline else times(ratios.get(arm))
        rows += [[label, span(weights), span(cells.values()), over]] if cells else []
    if not rows:
        return None
    columns = ["arm", "parameters", "operations a token", "arithmetic beside the baseline"]
    about = (
        "Arms are matched in weights and not in arithmetic: of a token in training, by the plan; of experts, those that are"
        " chosen. Of several cells the least and the most."
    )
    return tag("div", tag("p", about), table(columns, rows, numeric={1, 2, 3}, name="arms"))
