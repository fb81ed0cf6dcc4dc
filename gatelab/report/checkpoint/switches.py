"""The section of the off-switches: every head's by the rules of `off_switch`, whose thresholds a reader can move.

Notable: the page holds the heads' values and applies the rules again in the browser (`script.py`); what is written here, at
the thresholds of the project, is what a reader without JavaScript has.
"""

from collections import Counter
from dataclasses import asdict, astuple, dataclass, fields

from ..markup import Html, tag
from ..tables import scrolling
from .off_switch import DEFAULT, SWITCHES, HeadValues, Thresholds, heads_of, off_switch
from .seen import STACKS
from .sheet import Sheet, percent, plate, section, swatch
from .switch_charts import LOOKS, class_map, shown, stacked_bars

# threshold -> (its words, the field of a head that has to be measured)
_SLIDERS = {
    "openness": ("a gate is shut below an openness of", "openness"),
    "slot": ("a slot takes more than", "slot"),
    "mass": ("a sink takes more than", "first_mass"),
    "drain": ("a value is drained below a ratio of", "drain"),
    "entropy": ("attention is diffuse above a relative entropy of", "entropy"),
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
    """The heads of one stack, and the names of its two charts."""

    stack: str | None
    heads: list[HeadValues]
    index: int

    @property
    def charts(self) -> tuple[str, str]:
        return f"switch-map-{self.index}", f"switch-bars-{self.index}"


def switches(sheet: Sheet) -> tuple[Html | None, dict | None]:
    """The section, and what its script reads; nothing where no head's attention was measured."""
    found = [
        (stack, heads_of(sheet.seen.rows, stack)) for stack in sheet.table.stacks("first_token_mass", "sink_importance")
    ]
    groups = [Group(stack, heads, i) for i, (stack, heads) in enumerate((s, h) for s, h in found if h)]
    if not groups:
        return None, None
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
                  "shown": shown(list(SWITCHES)), "groups": []}  # fmt: skip
    for group in groups:
        places, charts = _figures(group, sheet.table.n_layers)
        out += [sheet.heading(group.stack, [g.stack for g in groups]), places, _by_layer(group, offered)]
        data["groups"].append({"index": group.index, "charts": charts, "heads": [_values(h) for h in group.heads]})
    return section("switches", "Which off-switch does a head use", tag("p", lead), out), data


def _offered(heads: list[HeadValues], measured: set[str]) -> list[str]:
    """The switches that some head could have at some thresholds."""
    needs = {"gate": "openness", "slot": "slot", "diffuse": "entropy"}
    has_unknown = any(drain is None for _, drain in (h.sink for h in heads))
    has_drain = any(drain is not None for _, drain in (h.sink for h in heads))
    kept = [name for name in SWITCHES if name not in needs or needs[name] in measured]
    dropped = ([] if has_unknown else ["unknown"]) + ([] if has_drain else ["drained", "writes"])
    return [name for name in kept if name not in dropped]


def _totals(groups: list[Group], offered: list[str]) -> Html:
    """How many heads use each, with the rule in words: the legend of the charts too."""
    counts = [Counter(off_switch(h) for h in g.heads) for g in groups]
    names = [STACKS.get(g.stack, g.stack) if len(groups) > 1 else "heads" for g in groups]
    columns = [(words, "num") for name in names for words in (name, "share")]
    head = tag("tr", [tag("th", words, scope="col", class_=kind)
                      for words, kind in (("switch", None), ("rule", None), *columns)])  # fmt: skip
    rows = [
        tag("tr", tag("th", _sign(name), scope="row"), tag("td", _rule(name), data_label="rule"),
            [[tag("td", str(count[name]), class_="num", data_label=of, data_count=f"{g.index}/{name}"),
              tag("td", percent(count[name] / len(g.heads)), class_="num", data_label="share", data_share=f"{g.index}/{name}")]
             for g, count, of in zip(groups, counts, names, strict=True)])
        for name in offered
    ]  # fmt: skip
    whole = tag("table", tag("thead", head), tag("tbody", rows), class_="cards switches")
    return scrolling(whole, "off-switches")


def _sign(name: str) -> Html:
    colour, letter, _ = LOOKS[name]
    return tag("span", swatch(colour), SWITCHES[name], tag("span", f" {letter}", class_="quiet") if letter else None)


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
        for name, (words, need) in _SLIDERS.items()
        if need in measured or (name == "drain" and "first_drain" in measured) or (name == "mass" and "importance" in measured)
    ]  # fmt: skip
    reset = tag("button", "reset", type="button", data_reset=True)
    return tag("fieldset", tag("legend", "Thresholds"), sliders, reset, class_="sliders")


def _figures(group: Group, n_layers: int) -> tuple[Html, dict]:
    """The two charts' places, and their specifications by the names of the places."""
    said = "; ".join(f"{SWITCHES[name]} {n}" for name, n in Counter(off_switch(h) for h in group.heads).items())
    said = f"at the thresholds as they come: {said}"
    cells = class_map(group.heads, n_layers, f"Off-switches by layer and head, {said}")
    bars = stacked_bars(n_layers, f"Off-switches by layer, {said}")
    places = tag("div",
                 plate(group.charts[0], cells, "By layer and head", "Colours as in the table. A gap is a layer without rows."),
                 plate(group.charts[1], bars, "By layer", "Share of a layer's heads that use each switch."),
                 class_="row")  # fmt: skip
    return places, {name: {"fit": f.fit, "spec": f.spec} for name, f in zip(group.charts, (cells, bars), strict=True)}


def _by_layer(group: Group, offered: list[str]) -> Html:
    """Counts by layer, for who reads numbers."""
    counts: dict[int, Counter] = {}
    for head in group.heads:
        counts.setdefault(head.layer, Counter())[off_switch(head)] += 1
    head = tag(
        "tr", tag("th", "layer", scope="col"), [tag("th", _sign(name), scope="col", class_="num") for name in offered]
    )
    rows = [
        tag("tr", tag("th", str(layer), scope="row"),
            [tag("td", str(count[name]), class_="num", data_count=f"{group.index}/{name}/{layer}") for name in offered])
        for layer, count in sorted(counts.items())
    ]  # fmt: skip
    whole = scrolling(tag("table", tag("thead", head), tag("tbody", rows)), "off-switches by layer")
    return tag("details", tag("summary", "heads of each layer as numbers"), whole)


def _values(head: HeadValues) -> list[float | None]:
    """As the script reads them: nine digits are more than a float32 has."""
    return [v if v is None or isinstance(v, int) else float(f"{v:.9g}") for v in astuple(head)]
