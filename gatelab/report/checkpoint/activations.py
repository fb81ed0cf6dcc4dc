"""The section of the residual stream: its largest entries by depth, which block writes them, which one begins to
remove them, its norm."""

from ..markup import Html, join, number, tag
from ..parts import section
from ..style import BLUE
from .figures import Mark, Series, ends, line_chart, points_of
from .maps import octave_map
from .sheet import Scale, Sheet

# What arXiv 2402.17762 calls massive: above 100, and about 1000 times the median.
_MASSIVE, _TIMES = 100.0, 1000.0

# metric -> (title, title of the axis, caption, floor of a logarithmic axis)
_METRICS = {
    "massive_max": ("Largest |x|", "largest |x|", "Over tokens and channels of a sequence; mean over sequences.", 1e-3),
    "massive_ratio": ("Largest |x| over the median", "ratio", "Over the median |x| of the same block and sequence; mean over"
                      " sequences.", 1.0),
    "residual_kurtosis": ("Kurtosis", "kurtosis", "Over tokens and channels of a sequence; mean over sequences. 3 for a"
                          " normal distribution.", 1.0),
    "outlier_channels": ("Outlier channels", "channels", "Channels whose level is above 6 times the median channel's: large at"
                         " most tokens. Mean over sequences.", None),
    "sink_residual_peak": ("Norm at the strongest key", "ratio", "‖x‖ at the strongest key of the layer's strongest head over"
                           " the median of the others; mean over sequences.", 0.1),
}  # fmt: skip


def activations(sheet: Sheet) -> Html | None:
    """Profiles by depth with the layers that write and remove the largest activation, and the norm by depth and position."""
    out = []
    for stack, heading in sheet.stacks(*_METRICS, "residual_norm"):
        figures = [f for metric in _METRICS if (f := _profile(sheet, metric, stack))]
        norm, said = _norms(sheet, stack), _story(sheet, stack)
        grid = tag("div", figures, norm, class_="grid")
        out += [heading, tag("p", said) if said else None, grid]
    if not out:
        return None
    lead = (
        "The residual stream after each block, layers counted from 0. Dotted rules: the first and the last layer whose largest"
        " |x| is at least half of the largest layer's."
    )
    return section("activations", "Activations by depth", tag("p", lead), out)


def _story(sheet: Sheet, stack: str | None) -> str | None:
    """Which block writes the largest activation, after which it falls below half, where it is, and whether it is massive."""
    largest = sheet.table.layers("massive_max", stack)
    written = sheet.table.model("massive_layer", stack)
    last = sheet.table.model("massive_layer_last", stack)
    if not largest or written is None or last is None:
        return None
    top = max(largest, key=largest.__getitem__)
    removed = f"block {last + 1:.0f} begins to remove it" if last < max(largest) else "no block removes it"
    said = f"Block {written:.0f} writes the largest activation, {number(largest[top], 4)} after layer {top}, and {removed}."
    places = [
        f"{word} {place} in {share:.0%} of the sequences"
        for word, found in (("position", "massive_position"), ("channel", "massive_channel"))
        for r in sheet.table.rows(found, stack)
        if r.layer is None
        for place, share in [(r.key if word == "position" else r.channel, r.value)]
    ]
    said += f" It is at {' and '.join(places)}." if places else ""
    ratio = sheet.table.layers("massive_ratio", stack).get(top)
    if ratio is not None:
        is_massive = largest[top] > _MASSIVE and ratio >= _TIMES
        said += (
            f" It is {number(ratio)} times the median there: {'' if is_massive else 'not '}massive by the rule of arXiv"
        )
        said += " 2402.17762 (above 100 and about 1000 times the median)."
        said += "" if is_massive else " So the layers that write and remove it say little."
    return said


def _profile(sheet: Sheet, metric: str, stack: str | None) -> Html | None:
    values = sheet.table.layers(metric, stack)
    if not values:
        return None
    title, y_title, caption, floor = _METRICS[metric]
    line = Series(title, BLUE, points_of(values))
    marks = _marks(sheet, stack) if metric in ("massive_max", "massive_ratio") else []
    chart = line_chart([line], f"{title} by layer. {ends([line])}", along="layer", x_title="layer", y_title=y_title,
                       end=sheet.table.n_layers - 1, floor=floor, marks=marks)  # fmt: skip
    return sheet.charts.place(chart, title, caption + (" Logarithmic axis." if floor is not None else ""))


def _marks(sheet: Sheet, stack: str | None) -> list[Mark]:
    first, last = (sheet.table.model(metric, stack) for metric in ("massive_layer", "massive_layer_last"))
    if first is None or last is None:
        return []
    if first == last:
        return [Mark(first, f"written by {first:.0f}, last after it")]
    return [Mark(first, f"written by {first:.0f}"), Mark(last, f"last after {last:.0f}")]


def _norms(sheet: Sheet, stack: str | None) -> Html | None:
    bins = {layer: b for layer, b in sheet.table.bins("residual_norm", stack).items() if layer is not None}
    values = [v for of_layer in bins.values() for v in of_layer.values() if v > 0]
    if not values:
        return None
    low, high = min(values), max(values)
    scale = Scale(low, max(high, 1.01 * low), is_log=True)
    (layer, n), top = max(((at, b), v) for at, of_layer in bins.items() for b, v in of_layer.items() if v == high)
    said = f"Largest {number(top)}, after layer {layer}, at positions from {2**n - 1}."
    chart = octave_map(bins, scale, f"Norm of the residual stream by layer and position. {said}",
                       n_layers=sheet.table.n_layers, word="norm")  # fmt: skip
    caption = f"Mean ‖x‖ over the positions of an octave and over sequences; logarithmic colours. {said}"
    return sheet.charts.place(chart, "Norm by depth and position", join([scale.legend("‖x‖"), caption]))
