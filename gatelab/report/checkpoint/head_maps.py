"""The section of the layer by head maps: shares on one scale, value drain and logit gap on their own."""

from ..markup import Html, join, number, tag
from ..parts import section
from .maps import head_map
from .sheet import Scale, Sheet

UNIT = Scale(0.0, 1.0)

# metric -> (title, the word of a tooltip, caption). All are shares and stand on one scale.
_SHARES = {
    "first_token_mass": ("First-token mass", "mass", "Share of attention on the first token, mean over the queries after"
                         " it and over sequences."),
    "sink_importance": ("Importance of the strongest key", "importance", "Of each head and sequence the key that gets most,"
                        " wherever it stands: its mean share over the queries that see it; mean over sequences."),
    "gate_openness": ("Gate openness", "openness", "What the gate on the output lets through, weighed by the energy of what"
                      " it gates: ⟨y′, y⟩ / ⟨y, y⟩, mean over queries and sequences. 1 is open."),
    "sink_slot_mass": ("Mass on the slot", "mass", "Share that the slot without a value takes, mean over queries and"
                       " sequences."),
    "attention_entropy_relative": ("Relative entropy", "entropy", "Entropy over that of uniform attention, mean over queries"
                                   " and sequences. 1 is uniform."),
}  # fmt: skip


def maps(sheet: Sheet) -> Html | None:
    """Layer by head maps on one scale, and two on scales of their own."""
    out = []
    for stack, heading in sheet.stacks(*_SHARES, "value_drain", "sink_logit_gap"):
        figures = [f for metric in _SHARES if (f := _share_map(sheet, metric, stack))]
        own = [f for f in (_drain_map(sheet, stack), _gap_map(sheet, stack)) if f]
        out += [heading, tag("div", figures, own, class_="row")]
    if not out:
        return None
    lead = (
        "Layers run down, heads across. The bars are means over a layer's heads, on the scale of their map. A gap is a layer"
        " without rows. These maps share one scale; value drain and logit gap have their own, beneath them."
    )
    return section(
        "maps", "Where heads look", tag("p", lead), UNIT.legend("share, one scale for all of these maps"), out
    )


def _share_map(sheet: Sheet, metric: str, stack: str | None) -> Html | None:
    site = "sdpa" if metric == "gate_openness" else None
    values = sheet.table.heads(metric, stack, site=site)
    if not values:
        return None
    title, word, caption = _SHARES[metric]
    uniform = sheet.table.model("first_token_uniform", stack)
    if metric == "first_token_mass" and uniform is not None:
        caption += f" Uniform attention would give {number(uniform)}."
    outside = sum(not 0 <= v <= 1 for v in values.values())
    if outside:
        caption += f" {outside} head{'s' * (outside > 1)} outside of 0 to 1 have the scale's end colours."
    (layer, head), top = max(values.items(), key=lambda item: item[1])
    said = (
        f"All heads {number(sum(values.values()) / len(values))}; highest {number(top)} (layer {layer}, head {head})."
    )
    means = sheet.table.layers(metric, stack, site=site)
    figure = head_map(
        values, means, UNIT, f"{title} by layer and head. {said}", n_layers=sheet.table.n_layers, word=word
    )
    return sheet.charts.place(figure, title, f"{caption} {said}")


def _drain_map(sheet: Sheet, stack: str | None) -> Html | None:
    values = sheet.table.heads("value_drain", stack)
    if not values:
        return None
    scale = Scale(1 / 8, 8.0, is_log=True, is_diverging=True)
    drained = sum(v < 0.3 for v in values.values())
    said = f"{drained} of {len(values)} are below 0.3, which is called drained."
    caption = (
        "Norm of the first token's value over the median of the others', a key/value head, mean over sequences; logarithmic,"
        f" grey is 1. {said}"
    )
    means = sheet.table.layers("value_drain", stack)
    figure = head_map(values, means, scale, f"Value drain by layer and key/value head. {said}",
                      n_layers=sheet.table.n_layers, word="ratio", across="key/value head")  # fmt: skip
    return sheet.charts.place(figure, "Value drain", join([scale.legend("ratio"), caption]))


def _gap_map(sheet: Sheet, stack: str | None) -> Html | None:
    values = sheet.table.heads("sink_logit_gap", stack)
    if not values:
        return None
    largest = max(abs(v) for v in values.values())
    end = next((float(e) for e in (2, 4, 8, 16, 32, 64) if largest <= e), 90.0)
    scale = Scale(-end, end, is_diverging=True)
    above = sum(v > 0 for v in values.values())
    said = f"In {above} of {len(values)} heads it is above 0."
    caption = (
        "ln of the first token's mass minus ln of all the other, in nats, mean over queries and sequences; grey is 0, where"
        f" the first token has half. {said}"
    )
    means = sheet.table.layers("sink_logit_gap", stack)
    figure = head_map(
        values, means, scale, f"Logit gap by layer and head. {said}", n_layers=sheet.table.n_layers, word="gap"
    )
    return sheet.charts.place(figure, "Logit gap of the first token", join([scale.legend("nats"), caption]))
