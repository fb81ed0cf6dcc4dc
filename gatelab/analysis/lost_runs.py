"""The finished runs of a study that are lost (lost.py), by name: what is told of the others is then told without them."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..store import StudyFolder
from .digest import digest, table
from .lost import is_lost
from .paired import Outcome

LOSS = "val_loss"
Where = tuple[str, str, int]  # cell, arm, seed


@dataclass(frozen=True, slots=True)
class LostRuns:
    """Those that are `lost`, and those that are `unknown` to be: the rows of their untrained weights were not kept. A run that
    goes on from another's weights has none, and is neither."""

    lost: frozenset[Where]
    unknown: frozenset[Where]

    def without(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """The outcomes of the runs that are not lost."""
        return [o for o in outcomes if (o.cell, o.arm, o.seed) not in self.lost]


def lost_runs(folder: StudyFolder) -> LostRuns:
    """Of the runs that have rows of the held-out loss."""
    started = {(e["cell"], e["arm"], e["seed"]) for e, _ in folder.planned() if not e.get("init_from")}
    lost, unknown = set(), set()
    for (*where, metric), places in table(digest(folder), "curves"):
        looks = dict(places)
        if metric != LOSS or tuple(where) not in started:
            continue
        if 0 not in looks:
            unknown.add(tuple(where))
        elif is_lost("done", looks[0], looks[max(looks)]):
            lost.add(tuple(where))
    return LostRuns(frozenset(lost), frozenset(unknown))
