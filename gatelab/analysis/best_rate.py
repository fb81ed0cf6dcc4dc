"""Settings: cells that differ in the learning rate alone are one, and each arm stands in it at its own best rate.

An arm that is judged at a rate which suits another is judged by the rate. The best is chosen by the mean held-out loss of the very
seeds that are compared, for arm and baseline alike; docs/statistics.md has the false alarms that this makes.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean

from .paired import Outcome
from .uses import RATE_COST, USES

LOSS = "val_loss"
_ASKED = {use.metric for use in USES}


@dataclass(frozen=True, slots=True)
class Setting:
    """`cells` {learning rate: cell}, in order of the rate; of a cell that stands alone its one rate, or nan. `arms` are those that
    stand in it, the baseline among them, where others stand elsewhere; None: all."""

    name: str
    cells: dict[float, str]
    arms: frozenset[str] | None = None

    def has(self, arm: str) -> bool:
        """Whether the arm stands in it."""
        return self.arms is None or arm in self.arms


@dataclass(frozen=True, slots=True)
class AtBest:
    """`outcomes` have the setting in the place of the cell, those of `rate_cost` among them; `best` {(setting, arm): the cell
    whose runs they are}; `lost` {(setting, arm, metric): seeds} that diverged or ended without a finite number, which flatters
    the arm; `notes` say which arm has no best rate, and which runs were lost."""

    settings: list[Setting]
    outcomes: list[Outcome]
    best: dict[tuple[str, str], str]
    lost: dict[tuple[str, str, str], list[int]]
    notes: list[str]


def settings(cells: Sequence[str], rates: Mapping[str, tuple[str, float]]) -> list[Setting]:
    """The cells by what they are besides their rate; `rates` {cell: (what else it is, rate)}. A cell without an entry, and two
    cells of one kind and rate, stand alone."""
    kinds: dict[str, dict[float, list[str]]] = {}
    for cell in cells:
        kind, rate = rates.get(cell, (f"\0{cell}", nan))
        kinds.setdefault(kind, {}).setdefault(rate, []).append(cell)
    out = []
    for by_rate in kinds.values():
        if len(by_rate) > 1 and all(len(c) == 1 for c in by_rate.values()):
            ordered = {rate: by_rate[rate][0] for rate in sorted(by_rate)}
            out.append(Setting(_name(ordered), ordered))
        else:
            out += [Setting(cell, {rate: cell}) for rate, held in by_rate.items() for cell in held]
    return _told_apart(out)


def _told_apart(found: Sequence[Setting]) -> list[Setting]:
    """The settings, those of one name by their cells."""
    names = [s.name for s in found]
    return [s if names.count(s.name) == 1 else replace(s, name=_range(s.cells)) for s in found]


def _name(cells: Mapping[float, str]) -> str:
    """What the names of the cells have in common when the rate is taken out where it last stands; else the first and the last."""
    bare = {
        re.sub(r"[\s_/-]*(lr)?[\s_=-]*$", "", re.sub(rf"^(.*)(?<![\d.]){re.escape(f'{rate:g}')}(?![\d.])", r"\1", cell))
        for rate, cell in cells.items()
    }
    return bare.pop() if len(bare) == 1 and all(bare) else _range(cells)


def _range(cells: Mapping[float, str]) -> str:
    names = list(cells.values())
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def at_best(
    outcomes: Iterable[Outcome], found: Sequence[Setting], *, baseline: str, refused: Collection[tuple[str, str]] = ()
) -> AtBest:
    """Every arm of every setting at its best rate, and what the largest rate costs it over the baseline's best. A rate at which a
    run of the arm is not done is no candidate; comparisons (cell, arm) that are `refused` are left out. An arm that is not
    planned at every rate stands alone at each of its own: the best of three beside the only one would be no comparison."""
    outcomes = list(outcomes)
    planned: dict[str, set[str]] = {}
    for o in outcomes:
        planned.setdefault(o.cell, set()).add(o.arm)
    parts = {setting.name: _comparable(setting, planned, baseline) for setting in found}
    found = _told_apart([part for of in parts.values() for part in of])
    held: dict[tuple[str, str], list[Outcome]] = {}
    for o in outcomes:
        if (o.cell, o.arm) not in refused:
            held.setdefault((o.cell, o.arm), []).append(o)
    arms = dict.fromkeys(arm for _, arm in held)
    out, best = [], {}
    notes = [_alone(name, of) for name, of in parts.items() if len(of) > 1]
    for setting in found:
        for arm in filter(setting.has, arms):
            there = [cell for cell in setting.cells.values() if (cell, arm) in held]
            means = {cell: _mean_loss(held[cell, arm]) for cell in there}
            judged = {cell: mean for cell, mean in means.items() if mean is not None}
            chosen = (
                there[0] if len(setting.cells) == 1 and there else min(judged, key=judged.__getitem__, default=None)
            )
            if chosen is None:
                if there:
                    notes.append(f"{arm} in {setting.name}: no learning rate at which all its runs are done")
                continue
            best[setting.name, arm] = chosen
            out += [replace(o, cell=setting.name) for o in held[chosen, arm]]
            if len(judged) < len(there) and len(setting.cells) > 1:
                left = ", ".join(
                    f"{rate:g}" for rate, cell in setting.cells.items() if cell in there and cell not in judged
                )
                notes.append(
                    f"{arm} in {setting.name}: the best of the rates without {left}, where not all its runs are done"
                )
        out += _costs(setting, held, best.get((setting.name, baseline)), filter(setting.has, arms))
    lost: dict[tuple[str, str, str], list[int]] = {}
    for o in out:
        if o.status == "diverged" or (o.status == "done" and not o.usable):
            lost.setdefault((o.cell, o.arm, o.metric), []).append(o.seed)
    return AtBest(list(found), out, best, lost, [*notes, *_losses(lost)])


def _comparable(setting: Setting, planned: Mapping[str, set[str]], baseline: str) -> list[Setting]:
    """The setting of the arms that are planned in each of its cells; where there are others, each cell that has some by itself, of
    these and the baseline. Where no gate is planned in each, every cell by itself."""
    arms = {cell: planned[cell] for cell in setting.cells.values() if cell in planned}
    everywhere = frozenset.intersection(*map(frozenset, arms.values())) if arms else frozenset()
    if all(of == everywhere for of in arms.values()):
        return [setting]
    alone = [Setting(cell, {rate: cell}) for rate, cell in setting.cells.items()]
    if baseline not in everywhere or len(everywhere) == 1:
        return alone
    others = [
        replace(s, arms=frozenset(rest | {baseline})) for s in alone if (rest := arms.get(s.name, set()) - everywhere)
    ]
    return [replace(setting, arms=everywhere), *others]


def _alone(name: str, parts: Sequence[Setting]) -> str:
    """What stands at its own rate where not every arm is planned at each."""
    if parts[0].name != name:
        return f"{name}: its rates stand alone, as no gate is planned at each"
    others = sorted({arm for part in parts[1:] for arm in part.arms or ()} - (parts[0].arms or frozenset()))
    return (
        f"{name}: {', '.join(others)} stand{'s' * (len(others) == 1)} alone at each rate, as not planned at all of them"
    )


def _losses(lost: Mapping[tuple[str, str, str], Sequence[int]]) -> list[str]:
    """A sentence for each arm and setting with lost runs, and one for those at the largest rate."""
    seeds: dict[tuple[str, str, bool], set[int]] = {}
    for (cell, arm, metric), of in lost.items():
        if metric in _ASKED:
            seeds.setdefault((cell, arm, metric == RATE_COST.name), set()).update(of)
    return [
        f"{arm} in {cell}{' at the largest rate' if is_cost else ''}: seed{'s' * (len(of) > 1)} {', '.join(map(str, sorted(of)))}"
        " diverged or gave no finite number, which the means of the others do not show"
        for (cell, arm, is_cost), of in seeds.items()
    ]


def _mean_loss(outcomes: Sequence[Outcome]) -> float | None:
    """None where a run has no finished loss, or none was measured."""
    losses = [o for o in outcomes if o.metric == LOSS]
    return fmean(o.value for o in losses) if losses and all(o.usable for o in losses) else None


def _costs(
    setting: Setting, held: Mapping[tuple[str, str], Sequence[Outcome]], from_cell: str | None, arms: Iterable[str]
) -> list[Outcome]:
    """The held-out loss at the largest rate less that at the baseline's best, by seed; none where that is the largest."""
    largest = setting.cells[max(setting.cells)]
    if from_cell is None or from_cell == largest:
        return []
    out = []
    for arm in arms:
        at = [{o.seed: o for o in held.get((cell, arm), ()) if o.metric == LOSS} for cell in (from_cell, largest)]
        for seed in sorted(at[0].keys() & at[1].keys()):
            low, high = at[0][seed], at[1][seed]
            status = high.status if low.status == "done" else low.status
            out.append(Outcome(setting.name, arm, seed, RATE_COST.name, high.value - low.value, status))
    return out
