"""The section of the off-switches: every head's by the rules of `off_switch`, whose thresholds a reader can move.

Notable: the page holds the heads' values and applies the rules again in the browser (`script.py`); what is written here, at
the thresholds of the project, is what a reader without JavaScript has.
"""

from dataclasses import asdict, astuple, dataclass, fields

from ..document import Charts, inlined
from ..markup import Html, tag
from ..parts import section, swatch
from ..style import SOLID
from ..tables import headings, scrolling
from .off_switch import DEFAULT, SWITCHES, HeadValues, Thresholds, census, heads_of
from .seen import STACKS
from .sheet import Sheet, percent
from .switch_charts import LOOKS, SHOWN, class_map, stacked_bars

# threshold -> (its words, the fields of a head of which one has to be measured)
_SLIDERS = {
    "openness": ("a gate is shut below an openness of", {"openness"}),
    "slot": ("a slot takes more than", {"slot"}),
    "mass": ("a sink takes more than", {"first_mass", "importance"}),
    "drain": ("a value is drained below a ratio of", {"first_drain", "drain"}),
    "entropy": ("attention is diffuse above a relative entropy of", {"entropy"}),
}

# switch -> its rule; the names of thresholds stand where the numbers go.
_RULES = {
    "gate": "gate openness < {openness}",
    "slot": "mass on the slot > {slot}",
    "drained": "strongest key takes > {mass}, and its value norm over the median of the others is < {drain}",
    "writes": "strongest key takes > {mass}, and its value norm is not drained",
    "unknown": "strongest key takes > {mass}; its value norm has no row",
    "diffuse": "relative entropy > {entropy}",
    "other": "no rule above holds",
}


@dataclass(frozen=True)
class Group:
    """The heads of one stack; its `index` stands in the names of what the script rewrites."""

    stack: str | None
    heading: Html | None
    heads: list[HeadValues]
    index: int


def switches(sheet: Sheet) -> Html | None:
    """The section, with what its script reads; nothing where no head's attention was measured."""
    found = [(*of, heads_of(sheet.seen.rows, of[0])) for of in sheet.stacks("first_token_mass", "sink_importance")]
    groups = [Group(*of, i) for i, of in enumerate(of for of in found if of[2])]
    if not groups:
        return None
    every = [head for group in groups for head in group.heads]
    measured = {f.name for f in fields(HeadValues) if any(getattr(h, f.name) is not None for h in every)}
    offered = _offered(every, measured)
    lead = (
        "A softmax has to attend to something. This is how each head does nothing where it has nothing to give. The first rule"
        " that holds decides, from the output inwards: a shut gate silences whatever attention does. The rules are of means"
        " over queries, so a head that is off at half of its tokens may meet none. “Strongest key”: the one of the largest"
        " importance, or the first token where that takes more."
    )
    has_unmeasured = [words for name, words in (("entropy", "entropy, so none is called diffuse"), ("importance", "the"
                      " strongest key, so sinks stand at the first token alone")) if name not in measured]  # fmt: skip
    lacking = tag("p", f"Not measured: {'; '.join(has_unmeasured)}.", class_="about") if has_unmeasured else None
    without = [words for name, words in (("openness", "gate"), ("slot", "slot")) if name not in measured]
    none = tag("p", f"No head has a {' or a '.join(without)} that was read.", class_="about") if without else None
    out = [_totals(groups, offered), none, lacking, _controls(measured)]
    data: dict = {"defaults": asdict(DEFAULT), "fields": [f.name for f in fields(HeadValues)],
                  "shown": SHOWN, "groups": []}  # fmt: skip
    for group in groups:
        places, charts = _figures(group, sheet.table.n_layers)
        out += [group.heading, places, _by_layer(group, offered)]
        data["groups"].append({"charts": charts, "heads": [_values(h) for h in group.heads]})
    script = inlined("switches-data", data)
    return section("switches", "Which off-switch does a head use", tag("p", lead), out, script)


def _offered(heads: list[HeadValues], measured: set[str]) -> list[str]:
    """The switches that some head could have at some thresholds."""
    drains = {h.sink[1] for h in heads}
    has_drain = bool(drains - {None})
    could = {"gate": "openness" in measured, "slot": "slot" in measured, "drained": has_drain, "writes": has_drain,
             "unknown": None in drains, "diffuse": "entropy" in measured, "other": True}  # fmt: skip
    return [name for name in SWITCHES if could[name]]


def _totals(groups: list[Group], offered: list[str]) -> Html:
    """How many heads use each, with the rule in words: the legend of the charts too."""
    counts = [census(g.heads) for g in groups]
    names = [STACKS.get(g.stack, g.stack) if len(groups) > 1 else "heads" for g in groups]
    columns = ["switch", "rule", *(words for name in names for words in (name, "share"))]
    rows = [
        tag("tr", tag("th", _sign(name), scope="row"), tag("td", _rule(name), data_label="rule"),
            [[tag("td", str(count[name]), class_="num", data_label=of, data_count=f"{g.index}/{name}"),
              tag("td", percent(count[name] / len(g.heads)), class_="num", data_label="share", data_share=f"{g.index}/{name}")]
             for g, count, of in zip(groups, counts, names, strict=True)])
        for name in offered
    ]  # fmt: skip
    whole = tag("table", headings(columns, set(range(2, len(columns)))), tag("tbody", rows), class_="cards switches")
    return scrolling(whole, "off-switches")


def _sign(name: str) -> Html:
    colour, letter, _ = LOOKS[name]
    return tag(
        "span", swatch(colour, SOLID), SWITCHES[name], tag("span", f" {letter}", class_="quiet") if letter else None
    )


def _rule(name: str) -> Html:
    """The rule with its thresholds as elements that the script rewrites."""
    parts = []
    for piece in _RULES[name].replace("}", "{").split("{"):
        is_threshold = piece in {f.name for f in fields(Thresholds)}
        parts.append(tag("b", f"{getattr(DEFAULT, piece):g}", data_at=piece) if is_threshold else piece)
    return tag("span", parts)


def _controls(measured: set[str]) -> Html:
    sliders = [
        tag("label", tag("span", f"{words} ", tag("output", f"{getattr(DEFAULT, name):.2f}", data_at=name)),
            tag("input", type="range", min=0, max=1, step=0.01, value=getattr(DEFAULT, name), data_threshold=name,
                autocomplete="off"))
        for name, (words, needed) in _SLIDERS.items()
        if needed & measured
    ]  # fmt: skip
    reset = tag("button", "reset", type="button", data_reset=True)
    return tag("fieldset", tag("legend", "Thresholds"), sliders, reset, class_="sliders")


def _figures(group: Group, n_layers: int) -> tuple[Html, list[dict]]:
    """The places of two charts, and the charts."""
    said = "; ".join(f"{SWITCHES[name]} {n}" for name, n in census(group.heads).items() if n)
    said = f"at the thresholds as they come: {said}"
    cells = class_map(group.heads, n_layers, f"Off-switches by layer and head, {said}")
    bars = stacked_bars(n_layers, f"Off-switches by layer, {said}")
    charts = Charts(f"switches-{group.index}")
    places = [
        charts.place(cells, "By layer and head", "Colours as in the table. A gap is a layer without rows."),
        charts.place(bars, "By layer", "Share of a layer's heads that use each switch."),
    ]
    return tag("div", places, class_="row"), charts.placed


def _by_layer(group: Group, offered: list[str]) -> Html:
    """Counts by layer, for who reads numbers."""
    counts = {at: census(h for h in group.heads if h.layer == at) for at in sorted({h.layer for h in group.heads})}
    columns = ["layer", *(_sign(name) for name in offered)]
    rows = [
        tag("tr", tag("th", str(layer), scope="row"),
            [tag("td", str(count[name]), class_="num", data_count=f"{group.index}/{name}/{layer}") for name in offered])
        for layer, count in counts.items()
    ]  # fmt: skip
    whole = scrolling(
        tag("table", headings(columns, set(range(1, len(columns)))), tag("tbody", rows)), "off-switches by layer"
    )
    return tag("details", tag("summary", "heads of each layer as numbers"), whole)


def _values(head: HeadValues) -> list[float | None]:
    """As the script reads them: nine digits are more than a float32 has."""
    return [v if v is None or isinstance(v, int) else float(f"{v:.9g}") for v in astuple(head)]
