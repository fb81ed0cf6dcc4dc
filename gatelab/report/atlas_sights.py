"""What a card of the atlas has to see its anomaly by: curves, gate scores and maps of the study's own rows, or where these have
none of the runs of another study that are the same beside their seeds and looks.

Notable: what runs are is told by their configuration and never by a name. Each figure is of one study and says of which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .anomaly_cards import LEAST_LOOKS
from .atlas_book import linked
from .book import Book
from .card_sights import curves_of, gates_of, maps_of
from .claims import spans_of
from .figures import map_top
from .markup import Html, tag

if TYPE_CHECKING:
    from ..analysis.atlas import Atlas, Sheet
    from ..analysis.confirmed import Anomaly
    from ..analysis.sights import Sight


@dataclass(frozen=True)
class Seen:
    """The baseline's and the gate's runs in a study, under the names that they have in the card's."""

    sheet: "Sheet"
    cell: str
    sides: "Mapping[str, Sight]"

    @property
    def n_looks(self) -> int:
        return min(sight.n_looks for sight in self.sides.values())


def sights_of(atlas: "Atlas", s: "Sheet", a: "Anomaly", book: Book, top: float) -> Html:
    """Curves, gate scores and maps, each of the first study that has it: the card's own, else the one with the most looks."""
    there, gate = seen(atlas, s, a), a.arm
    # Two looks are a line from the start to the end, for want of a curve.
    least = min(LEAST_LOOKS, max(2, *(x.n_looks for x in there), 0))
    parts = [
        _part(there, lambda x: x.n_looks >= least, s, lambda x: curves_of(book, a, x.sides, with_table=False)),
        _part(there, lambda x: bool(x.sides[gate].histograms), s,
              lambda x: gates_of(book, a, x.sides[gate], with_table=False)),
        _part(there, lambda x: any(x.sides[gate].heads.values()), s, lambda x: maps_of(book, a, x.sides, top)),
    ]  # fmt: skip
    lacking = [word for word, part in zip(("curve over training", "histogram of gates", "map of heads"), parts, strict=True)
               if part is None]  # fmt: skip
    note = f"No study here has a {' or a '.join(lacking)} of these settings." if lacking else ""
    return tag("div", [p for p in parts if p is not None], tag("p", note, class_="about") if note else None)


def seen(atlas: "Atlas", s: "Sheet", a: "Anomaly") -> list[Seen]:
    """The studies with finished runs of this cell and gate and of the cell's baseline: the card's own first."""
    base = s.views.study["baseline"]
    wanted = {side: s.views.settings.get((a.cell, side)) for side in (base, a.arm)}
    own, others = [], []
    for o in (o for o in atlas.sheets if o.views is not None):
        if o is s:
            sides = {side: o.views.sights[a.cell, side] for side in wanted if (a.cell, side) in o.views.sights}
            own += [Seen(o, a.cell, sides)] if len(sides) == len(wanted) else []
            continue
        for cell in dict.fromkeys(cell for cell, _ in o.views.sights):
            at = {o.views.settings.get(key): o.views.sights[key] for key in o.views.sights if key[0] == cell}
            if all(setting is not None and setting in at for setting in wanted.values()):
                others.append(Seen(o, cell, {side: at[setting] for side, setting in wanted.items()}))
    return [*own, *sorted(others, key=lambda x: -x.n_looks)]


def _part(there: list[Seen], has: Callable[[Seen], bool], s: "Sheet", draw: Callable[[Seen], Html]) -> Html | None:
    """Of the first that has it, with a line that says whose runs they are."""
    found = next((x for x in there if has(x)), None)
    return None if found is None else tag("div", draw(found), tag("p", _whose(found, s), class_="about"))


def _whose(x: Seen, s: "Sheet") -> list[Html | str]:
    seeds = sorted({seed for sight in x.sides.values() for seed in sight.seeds})
    n = f"{'seed' if len(seeds) == 1 else 'seeds'} {spans_of(seeds)}"
    if x.sheet is s:
        return [f"Of this study's finished runs, {n}."]
    return ["Of ", linked(x.sheet), f", {x.cell}: runs of the same configuration, {n}."]


def scale(atlas: "Atlas") -> float:
    """The upper end of the one scale of all these maps."""
    return map_top([
        v
        for s in atlas.sheets
        if s.views is not None
        for a in s.views.anomalies
        for x in seen(atlas, s, a)
        for sight in x.sides.values()
        for table in sight.heads.values()
        for v in table.values()
    ])  # fmt: skip
