"""What the atlas draws of a study beside its comparisons: phases, learning rates, looks over training, accuracy by length, and the
anomalies that fresh seeds confirmed.

All of it is of finished runs, and all but the anomalies without the seeds that a confirmation keeps to itself.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from ..record import Finding
from ..store import StudyFolder
from .best_rate import LOSS, Setting
from .confirmed import Anomaly, Course
from .digest import digest, table
from .optimum import seed_losses
from .paired import Outcome
from .phases import Axis, Phases, Point
from .sights import Sights
from .tasks import Key, TaskRow, last_rows, task_rows
from .varied import Varied

RATE = "optim.lr"
LEAST_RATES = 3  # with two a lowest point says nothing of what lies between or beyond
LEAST_LOOKS = 3  # at a run's sink that make a curve
SIGHTS = ("first_token_mass", "value_drain", LOSS)  # what is drawn over training
_TOLD = ("exact_match", "answer_floor", "answer_chance")


@dataclass(frozen=True, slots=True)
class Views:
    """Of a study, whose study.json without its plan is `study`. `phases` have the learning rate across, None where the cells are no
    grid with one; `ladders` are the settings with three rates or more, those of the same rates together; `courses` are {(cell, arm,
    seed, reading): course} of cells whose sink was looked at three times or more, `n_looks` the most looks of a run; `tasks` the
    rows of all items at the end of a run and before its training. Of what fresh seeds confirmed `anomalies` are the cells and arms
    with an anomaly, `effects` those with an effect; some are both. `varied` is how effects vary over cells, None where nothing was
    tested; `sights` {(cell, arm): what all finished runs have to be seen by}, `settings` {(cell, arm): what its runs are}."""

    study: dict[str, Any]
    phases: Phases | None = None
    ladders: list[Phases] = field(default_factory=list)
    courses: dict[tuple[str, str, int, str], Course] = field(default_factory=dict)
    n_looks: int = 0
    tasks: list[TaskRow] = field(default_factory=list)
    anomalies: list[Anomaly] = field(default_factory=list)
    effects: list[Anomaly] = field(default_factory=list)
    varied: Varied | None = None
    sights: Sights = field(default_factory=dict)
    settings: dict[tuple[str, str], str] = field(default_factory=dict)


def along(found: Phases | None, key: str) -> Phases | None:
    """The same points with the axis of this key across; None where none has it."""
    axes = () if found is None else (found.across, *found.down)
    at = next((i for i, axis in enumerate(axes) if key in axis.keys), None)
    if found is None or at is None:
        return None
    order = [at, *(i for i in range(len(axes)) if i != at)]
    points = [replace(p, at=tuple(p.at[i] for i in order)) for p in found.points]
    return Phases(axes[at], tuple(axes[i] for i in order[1:]), points, found.losses)


def ladders(settings: Iterable[Setting], findings: Sequence[Finding], outcomes: Iterable[Outcome] = ()) -> list[Phases]:
    """The settings as points of rate (across) and setting, of which the loss alone is told; those of the same rates together.
    `outcomes` are the study's."""
    of_seeds = seed_losses(outcomes, findings)
    losses: dict[str, list[Finding]] = {}
    for f in (f for f in findings if f.metric == LOSS):
        losses.setdefault(f.cell, []).append(f)
    groups: dict[tuple[float, ...], list[Setting]] = {}
    for s in settings:
        if len(s.cells) >= LEAST_RATES:
            groups.setdefault(tuple(s.cells), []).append(s)
    return [
        Phases(
            Axis((RATE,), rates),
            (Axis(("setting",), tuple(s.name for s in held)),),
            [
                Point(cell, (rate, s.name), f.arm, 0, 0, 0.0, 1.0, f, None, {})
                for s in held
                for rate, cell in s.cells.items()
                for f in losses.get(cell, ())
                if s.has(f.arm)
            ],
            of_seeds,
        )
        for rates, held in groups.items()
    ]


def courses(folder: StudyFolder, runs: Collection[Key]) -> tuple[dict[tuple[str, str, int, str], Course], int]:
    """Of these runs, in the cells where some had `LEAST_LOOKS` looks at its sink; and the most looks of any run.

    Raises:
        StoreError: rows that cannot be read.
    """
    connection = digest(folder)
    looks = connection.execute(
        "SELECT cell, max(len(steps)) FROM tables WHERE name = 'curves' AND metric = $1 GROUP BY cell", [SIGHTS[0]]
    ).fetchall()
    cells = [cell for cell, n in looks if n >= LEAST_LOOKS]
    out = {
        key: finite
        for name in ("curves", "courses")
        for key, course in table(connection, name, cells)
        if key[:3] in runs and key[3] in SIGHTS and (finite := [p for p in course if isfinite(p[1])])
    }
    return out, max((n for _, n in looks), default=0)


def by_length(folder: StudyFolder, runs: Collection[Key]) -> list[TaskRow]:
    """The rows of all items of these runs at their end and before training: accuracy and what it stands beside.

    Raises:
        StoreError: rows that cannot be read.
    """
    meant = [r for r in task_rows(folder) if r.bin is None and r.metric in _TOLD and (r.cell, r.arm, r.seed) in runs]
    ends = {key: own[0].step for key, own in last_rows(meant).items()}
    return [r for r in meant if r.step in (0, ends[r.cell, r.arm, r.seed])]


def stated(study: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """What study.json says of the study, without its plan and with these seeds."""
    return {key: value for key, value in study.items() if key != "plan"} | {"seeds": list(seeds)}
