"""The map of the atlas: for each arm its effects by architecture, data and size, study by study; blank where nothing was run."""

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from .arithmetic import times
from .atlas_effects import anchors
from .atlas_words import CHECK, Words
from .markup import NONE, Html, decimal, places, quantity, tag
from .parts import section
from .style import VERDICTS
from .tables import headings, scrolling

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas, Place, Sheet
    from ..analysis.standing import Told
    from ..record import Finding

FAR = 3.0  # half-widths from which a colour is full
_OPEN = 2  # arms whose map is not folded
MOST_METRICS = 8

# The panel of the radio button that is chosen is shown; in print all are.
MAP_CSS = (
    "".join(
        f".choose > input:nth-of-type({i}):checked ~ .panels > :nth-child({i})" + " { display: block; }\n"
        for i in range(1, MOST_METRICS + 1)
    )
    + """
.choose > input { position: absolute; opacity: 0; }
.choose > label { display: inline-block; padding: .25rem .8rem; margin: 0 .4rem .4rem 0; border: 1px solid var(--line);
  border-radius: 1rem; font-size: .88rem; cursor: pointer; }
.choose > input:checked + label { border-color: var(--link); color: var(--link); font-weight: 600; }
.choose > input:focus-visible + label { outline: 2px solid var(--link); outline-offset: 2px; }
.panels > div { display: none; }
.maps { display: flex; flex-wrap: wrap; gap: .6rem 2rem; align-items: flex-start; }
.maps > div { min-width: 0; max-width: 100%; break-inside: avoid; }
.map { width: auto; font-size: .78rem; }
.map caption { font-size: .9rem; color: var(--text); max-width: 30rem; }
.map th, .map td { padding: .3rem .45rem; border: 1px solid var(--line); }
.map thead th { text-align: center; font-weight: 400; color: var(--quiet); white-space: nowrap; }
.map tbody th, .map thead th:first-child { width: 8rem; text-align: left; white-space: normal; }
.map td { vertical-align: middle; text-align: center; min-width: 2.4rem; font-variant-numeric: tabular-nums; }
.map td > div { --c: var(--unclear); margin: -.3rem -.45rem; padding: .25rem .35rem;
  background: color-mix(in srgb, var(--c) calc(var(--r, 0) * 42%), transparent); print-color-adjust: exact; }
.map td > div + div { margin-top: .3rem; border-top: 1px solid var(--line); }
.map .less { --c: var(--lower); }
.map .more { --c: var(--higher); }
.map .sink { --c: var(--equivalent); }
.map.phase td { vertical-align: top; }
.colours > span { display: inline-block; margin-right: 1rem; }
.map small { display: block; font-size: .92em; color: var(--quiet); white-space: nowrap; }
.key span { display: inline-block; padding: .1rem .6rem; margin-right: .5rem;
  background: color-mix(in srgb, var(--c) 42%, transparent); print-color-adjust: exact; }
@media print { .panels > div { display: block; } .choose > input, .choose > label { display: none; } }
"""
)


def maps(atlas: "Atlas") -> Html:
    """A panel a metric that was measured, chosen by radio buttons; in each a table an arm."""
    from ..analysis.atlas import METRICS

    panels = {name: panel for name, words in METRICS.items() if (panel := _panel(atlas, name, words)) is not None}
    lead = (
        "An arm's effect against its baseline at each arm's own best learning rate, by data (down) and the parameters of the"
        " baseline (across). A field has a line a setting, with the letter of its study; a blank field was not run. Nothing is"
        " pooled; “in” another study are comparisons whose runs that one has too."
    )
    if not panels:
        return section("map", "Map of effects", tag("p", "No pair of runs has finished in any study."))
    inputs = []
    for i, name in enumerate(panels):
        inputs.append(tag("input", type="radio", name="metric", id=f"metric-{i}", checked=i == 0))
        inputs.append(tag("label", METRICS[name], for_=f"metric-{i}"))
    key = tag(
        "p",
        tag("span", "▼ lower", style="--c:var(--lower)"), tag("span", "▲ higher", style="--c:var(--higher)"),
        f"the fuller the colour, the further the effect is from zero in half-widths of its 95% interval, full at {FAR:g}; in"
        " brackets where no effect is seen, of fewer than three seeds, and where runs of the arm diverged; ",
        tag("b", CHECK), " an effect that was registered and confirmed on fresh seeds, which the mark leads to (the number is the"
        " screen's)", class_="about key",
    )  # fmt: skip
    word = tag("span", "metric: ", class_="quiet", id="metric-word")
    shown = tag("div", list(panels.values()), class_="panels")
    chooser = tag("div", word, inputs, shown, class_="choose", role="group", aria_labelledby="metric-word")
    return section("map", "Map of effects", tag("p", lead), key, chooser)


def _panel(atlas: "Atlas", metric: str, words: str) -> Html | None:
    told: dict[str, dict[tuple[str, str], dict[str, list[Told]]]] = {}
    for s in atlas.sheets:
        for t in s.told:
            if t.finding.metric == metric:
                p = s.place(t.setting)
                row = told.setdefault(t.arm, {}).setdefault((p.architecture, p.data), {})
                row.setdefault(quantity(p.n_parameters), []).append(t)
    if not told:
        return None
    unit = next(
        t.finding.unit for rows in told.values() for fields in rows.values() for of in fields.values() for t in of
    )
    known = _Known(Words(atlas), atlas.repeated, anchors(atlas))
    tables = [_table(atlas, name, told[name], words, known) for name in atlas.arms if name in told]
    about = f"{words[:1].upper()}{words[1:]}{f', {unit}' if unit not in ('', '1') else ''}: arm minus baseline."
    shown, more = tag("div", tables[:_OPEN], class_="maps"), tables[_OPEN:]
    rest = f"{len(more)} more arm{'s' * (len(more) != 1)}"
    folded = tag("details", tag("summary", rest), tag("div", more, class_="maps"), class_="print") if more else None
    return tag("div", tag("p", about, class_="about"), shown, folded, role="region", aria_label=f"maps of {words}")


def _table(
    atlas: "Atlas",
    name: str,
    rows: dict[tuple[str, str], dict[str, list["Told"]]],
    words: str,
    known: "_Known",
) -> Html:
    columns = ["data", *sizes(atlas)]
    several = len({p.architecture for p in atlas.places}) > 1
    body = []
    for architecture, data in sorted(rows):
        of = rows[architecture, data]
        fields = [tag("td", _fields(of.get(size, []), known)) for size in sizes(atlas)]
        body.append(tag("tr", tag("th", f"{architecture}: {data}" if several else data, scope="row"), fields))
    label = known.words.arm(name)
    own = atlas.arithmetic.get(name)
    takes = f"; arithmetic beside the baseline {times(own)}" if own else ""
    caption = tag("caption", tag("b", label[:1].upper(), label[1:]), tag("span", f" {name}{takes}", class_="quiet"))
    table = tag("table", caption, headings(columns, set()), tag("tbody", body), class_="map")
    return scrolling(table, f"{words} of {label}")


@dataclass(frozen=True, slots=True)
class _Known:
    """`twice` {(setting, arm): study whose runs its own are}; `effects` {(setting, arm, metric): anchor of what was confirmed}."""

    words: Words
    twice: dict[tuple[str, str], str]
    effects: dict[tuple[str, str, str], str]


def _fields(told: list["Told"], known: _Known) -> list[Html]:
    """A line a setting, named by its study's letter, or in full where the study has several here."""
    letters = [t.setting.partition(" ")[0] for t in told]
    names = [a if letters.count(a) == 1 else t.setting for a, t in zip(letters, told, strict=True)]
    return [_field(t, name, known) for t, name in zip(told, names, strict=True)]


def _field(t: "Told", name: str, known: _Known) -> Html:
    from ..analysis.standing import CONFIRMED

    n, among = t.finding.n_pairs, known.twice.get((t.setting, t.arm))
    at = known.effects.get((t.setting, t.arm, t.finding.metric))
    words = f"{t.setting}: {n} pair{'s' * (n != 1)}, {t.word}"
    mark = None
    if t.word == CONFIRMED:
        mark = tag("a", CHECK, href=f"#{at}", title=t.word) if at else tag("b", CHECK, title=t.word)
    return effect_field(
        t.finding, is_seen=t.word not in ("pilot", "runs diverged"), without=_without(t), side=t.side, mark=mark, title=words,
        before=tag("span", f"{name}{f' (in {among})' if among else ''} ", class_="quiet"),
    )  # fmt: skip


def effect_field(
    f: "Finding",
    *,
    is_seen: bool = True,
    without: str = NONE,
    side: int = 0,
    before: Html | None = None,
    mark: Html | None = None,
    title: str,
) -> Html:
    """An effect as a field of a map: with its sign where one was seen (and `is_seen` lets it), in brackets where not, and its
    interval or what stands `without` one, in the colour of its reach or, without one, of its `side`. A `mark` stands for one that
    was confirmed, whatever this finding shows alone."""
    half = (f.high - f.low) / 2
    reach = min(abs(f.effect) / half / FAR, 1.0) if isfinite(half) and half > 0 else 1.0 if side else 0.0
    digits = places(max((abs(x) for x in (f.effect, f.low, f.high) if isfinite(x)), default=1.0), 2)
    is_seen = mark is not None or (is_seen and f.verdict in ("lower", "higher"))
    seen = f.verdict if f.verdict in ("lower", "higher") else "lower" if f.effect < 0 else "higher"
    sign = tag("b", VERDICTS[seen][0], aria_hidden="true") if is_seen else None
    number = decimal(f.effect, digits)
    interval = f"{decimal(f.low, digits)} to {decimal(f.high, digits)}" if isfinite(half) else without
    value = [sign, " ", tag("b", number), [" ", mark] if mark else None] if is_seen else f"({number})"
    colour = "less" if f.effect < 0 else "more"
    return tag("div", before, value, tag("small", interval), class_=colour, title=title, style=f"--r:{reach:.2f}")


def _without(t: "Told") -> str:
    """What stands in the place of an interval: the number of pairs, or how many seeds changed."""
    if t.word == "pilot":
        return f"{t.finding.n_pairs} seed{'s' * (t.finding.n_pairs != 1)}"
    if t.changed is not None and t.changed[1]:
        return f"{t.changed[0]} of {t.changed[1]} change"
    return "all seeds alike"


def sizes(atlas: "Atlas") -> list[str]:
    """The columns: parameters in three digits, so that models a few weights apart share one."""
    return list(dict.fromkeys(map(quantity, atlas.sizes)))


def coverage(atlas: "Atlas") -> Html:
    """Which studies lie where, with their seeds: what is blank was not run."""
    held: dict[Place, list[Sheet]] = {}
    for s in atlas.sheets:
        for p in dict.fromkeys(s.places.values()):
            held.setdefault(p, []).append(s)
    rows = []
    for architecture, data in dict.fromkeys((p.architecture, p.data) for p in atlas.places):
        fields = []
        for size in sizes(atlas):
            here = [
                of
                for p, of in held.items()
                if (p.architecture, p.data, quantity(p.n_parameters)) == (architecture, data, size)
            ]
            there = dict.fromkeys((s.letter, len(s.arms), _seeds(s)) for of in here for s in of)
            fields.append(tag("td", [tag("div", f"{letter}: {n} arms, {seeds}") for letter, n, seeds in there]))
        rows.append(tag("tr", tag("th", f"{architecture}: {data}", scope="row"), fields))
    columns = ["architecture, data", *(f"{size} parameters" for size in sizes(atlas))]
    table = tag("table", headings(columns, set()), tag("tbody", rows), class_="map")
    return scrolling(table, "what was run where")


def _seeds(s: "Sheet") -> str:
    return f"{len(s.seeds)} seed{'s' * (len(s.seeds) != 1)}" if s.seeds else NONE
