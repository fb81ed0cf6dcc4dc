"""What single items of tasks say: curves over depth, answer × citation, and the items that are worst.

Notable: all runs are asked the same items, so the unit is the item: its score is the mean over the seeds of an arm, and
intervals come from drawing items anew. They speak of these seeds, and of items like these.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from operator import attrgetter
from statistics import fmean
from typing import Any

from ..store import StoreError, StudyFolder
from ..tasks import Knobs, TaskItem, open_task
from ..tasks.metrics import N_BINS, PositionCurve, answer_by_citation, bin_of, cited, position_curve
from .shares import exact_interval
from .tasks import Asking, Key


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer of a run to an item. `times` is its length over the shortest that the run was asked; `bin` that of its depth, None
    where it has no evidence; `is_beside`: asked for what is told by depth alone; `knobs` make it again; `strips` are what
    `gatelab.evals.strips` kept of it, and `inside` what `gatelab.evals.inside` did, or None."""

    key: Key
    task: str
    index: int
    length: int
    times: int
    stretch: str
    bin: int | None
    is_right: bool
    margin: float
    answer: tuple[int, ...]
    given: tuple[int, ...]
    knobs: tuple[tuple[str, Any], ...]
    is_beside: bool = False
    strips: dict[str, Any] | None = None
    inside: dict[str, Any] | None = None

    def item(self) -> TaskItem:
        """What was asked."""
        made_of = dict(self.knobs)
        knobs = Knobs(self.length, made_of["asked_depth"], made_of["distractors"], made_of["hardness"])
        return open_task(self.task).item(knobs, self.index)


def asked_items(folder: StudyFolder, done: set[Key]) -> list[Asked]:
    """The answers that finished runs gave at their end.

    Raises:
        StoreError: a file of items that is cut, or lacks what a run writes.
    """
    out = []
    for entry, run in folder.planned():
        key = (entry["cell"], entry["arm"], entry["seed"])
        records = list(run.items()) if key in done else []
        try:
            shortest = min((r["factors"]["length"] for r in records), default=0)
            out += [_asked(key, r, shortest) for r in records]
        except KeyError as missing:
            raise StoreError(
                f"{run.items_path}: an item has no {missing}, which `gatelab run` writes; was it edited? Take the file away, or "
                "run the study anew"
            ) from None
    return out


def _asked(key: Key, record: dict[str, Any], shortest: int) -> Asked:
    f = record["factors"]
    depth = f["knobs"]["asked_depth"]
    return Asked(
        key=key,
        task=record["task"],
        index=record["item"],
        length=f["length"],
        times=round(f["length"] / shortest),
        stretch=f.get("intervention", "none"),
        bin=None if depth is None or f.get("evidence") == [] else bin_of(depth),
        is_right=bool(record["correct"]),
        margin=float(record["score"]),
        answer=tuple(map(int, record["answer"].split())),
        given=tuple(map(int, record["given"].split())),
        knobs=tuple(f["knobs"].items()),
        is_beside=f.get("is_beside", False),
        strips=f.get("strips"),
        inside=f.get("inside"),
    )


Group = tuple[str, str, str, int, str]  # cell, arm, task, times, stretch


def grouped(items: Iterable[Asked]) -> dict[Group, list[Asked]]:
    """The answers of an arm's seeds in a cell, by task, length and stretch."""
    out: dict[Group, list[Asked]] = defaultdict(list)
    for a in items:
        out[a.key[0], a.key[1], a.task, a.times, a.stretch].append(a)
    return out


def lower_ends(items: Iterable[Asked]) -> dict[Asking, float]:
    """The lower ends of the exact 95% intervals over items of each run's accuracies."""
    found: dict[Asking, list[bool]] = defaultdict(list)
    for a in (a for a in items if not a.is_beside):
        found[a.key, a.task, a.times, a.stretch].append(a.is_right)
    return {asking: exact_interval(sum(rights), len(rights))[0] for asking, rights in found.items()}


def depth_curves(
    items: Iterable[Asked], score: Callable[[Asked], float] = attrgetter("is_right")
) -> dict[Group, PositionCurve]:
    """A score by depth, accuracy or `attrgetter("margin")`, of groups that were asked at all that a curve needs; an answer whose
    score is no number is left out."""
    out = {}
    for group, own in grouped(items).items():
        by_item: dict[int, list[float]] = defaultdict(list)
        place: dict[int, int] = {}
        for a in own:
            if a.bin is not None and isfinite(score(a)):
                place[a.index] = a.bin
                by_item[a.index].append(score(a))
        if {0, 4, 5, 6, N_BINS - 1} <= set(place.values()):
            chosen = sorted(place)
            depths = [place[i] / (N_BINS - 1) for i in chosen]
            out[group] = position_curve(depths, [fmean(by_item[i]) for i in chosen])
    return out


def citations(items: Iterable[Asked]) -> dict[Group, dict[tuple[bool, bool], float]]:
    """{(is the answer right, is the citation): share} of tasks that ask for both; a citation is right when it is all of the
    documents and no other."""
    out = {}
    for group, own in grouped(a for a in items if not a.is_beside).items():
        if open_task(group[2]).answer == "cite":
            both = [cited(a.given, a.answer) for a in own]
            out[group] = answer_by_citation([(is_right, share.f1 == 1) for is_right, share in both])
    return out


@dataclass(frozen=True, slots=True)
class Worst:
    """An item that many runs of a cell get wrong, and what each of them said to it."""

    cell: str
    asked: Asked
    n_wrong: int
    margin: float
    said: dict[tuple[str, int], Asked]  # by arm and seed


def worst_items(items: Sequence[Asked], n: int = 3) -> list[Worst]:
    """By cell and task the `n` items that most runs get wrong, those of the lowest mean margin first among equals: of the
    shortest length at which any is wrong, with positions as trained. Nothing of what is always right."""
    by_length: dict[tuple, dict[int, list[Asked]]] = defaultdict(lambda: defaultdict(list))
    for a in items:
        if a.stretch == "none" and not a.is_beside:
            by_length[a.key[0], a.task, a.times][a.index].append(a)
    out, told = [], set()
    for cell, task, times in sorted(by_length, key=lambda key: key[2]):
        found = [_worst(cell, own) for own in by_length[cell, task, times].values()]
        found = sorted((w for w in found if w.n_wrong), key=lambda w: (-w.n_wrong, w.margin, w.asked.index))
        if found and (cell, task) not in told:
            told.add((cell, task))
            out += found[:n]
    return out


def _worst(cell: str, own: list[Asked]) -> Worst:
    margins = [a.margin for a in own if isfinite(a.margin)]
    said = {(a.key[1], a.key[2]): a for a in own}
    return Worst(cell, own[0], sum(not a.is_right for a in own), fmean(margins) if margins else float("nan"), said)
