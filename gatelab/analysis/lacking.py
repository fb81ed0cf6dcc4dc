"""Comparisons that others have and that cannot be made, since no finished run of one side has the metric.

That an ungated model has no gate mean is no hole, and nothing is said of it. A side should have a metric that it has in another
cell, that is primary and not of gates, or, of a gate, that the baseline and all other arms of the cell have.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..record import Metric
from .paired import Outcomes

_MANY = 6  # arms with their cells that a note names


@dataclass(frozen=True, slots=True)
class Lack:
    """`sides` are the arm, the baseline or both: what no finished run of has the metric."""

    cell: str
    metric: Metric
    arm: str
    sides: tuple[str, ...]

    @property
    def why(self) -> str:
        return f"no finished run of {' and of '.join(self.sides)} has {self.metric.name}"


def lacks(
    table: Outcomes, metrics: Sequence[Metric], *, baseline: str, arms: Sequence[str], cells: Sequence[str]
) -> Iterator[Lack]:
    """Cell by cell, metric by metric, arm by arm; of metrics that some arm has in the cell."""
    for metric in metrics:
        if metric.name not in table.metrics:
            continue
        has = {(cell, arm) for cell in cells for arm in arms if table.measured(cell, arm, metric)}
        elsewhere = {arm for _, arm in has}
        is_asked = metric.primary and not metric.name.startswith("gate_")
        for cell in cells:
            here = [arm for arm in arms if table.there(cell, arm)]
            gates = [arm for arm in here if arm != baseline]
            if not any((cell, arm) in has for arm in here):
                continue
            for arm in gates if baseline in here else ():
                sides = tuple(side for side in (baseline, arm) if (cell, side) not in has)
                others = [a for a in gates if a != arm]
                is_odd = others and all((cell, a) in has for a in (baseline, *others))
                if sides and all(s in elsewhere or is_asked or (s == arm and is_odd) for s in sides):
                    yield Lack(cell, metric, arm, sides)


def notes(found: Iterable[Lack]) -> list[str]:
    """A sentence that names them, each side that lacks the same in several cells once."""
    holes: dict[tuple[str, str], dict[str, None]] = {}
    for lack in found:
        for side in lack.sides:
            holes.setdefault((lack.cell, side), {})[lack.metric.name] = None
    cells: dict[tuple[str, str], list[str]] = {}
    for (cell, side), names in holes.items():
        cells.setdefault((", ".join(names), side), []).append(cell)
    said = [f"{names} of {side} in {', '.join(where)}" for (names, side), where in cells.items()]
    more = f"; and {len(said) - _MANY} more" if len(said) > _MANY else ""
    return [f"untestable: no finished run has {'; '.join(said[:_MANY])}{more}"] if said else []
