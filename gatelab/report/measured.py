"""What the page shows, read once from a study folder: runs with their states, curves, maps and histograms.

Notable: a run that is missing, unfinished or diverged stays in `runs` with its state, so that every figure can say
what it lacks. Means are taken here, in a fixed order, never by the query engine: same folder in, same page out.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, log
from typing import Any

from ..store import DamagedError, RunFolder, StoreError, StudyFolder
from ..study.grouping import environment_of

Points = list[tuple[float, float]]


def state_of(run: RunFolder) -> str:
    """What done.json says ('done', 'diverged'), else 'not finished', or 'damaged'."""
    try:
        done = run.done()
    except DamagedError:
        return "damaged"
    return done["status"] if done else "not finished"


@dataclass(frozen=True)
class RunView:
    """One planned run. `steps` is the last step with a measurement (None: nothing was measured)."""

    entry: dict[str, Any]
    state: str
    steps: int | None
    last_loss: float | None
    seconds: float | None
    environment: dict[str, Any]
    dates: list[str]
    folder: RunFolder

    @property
    def key(self) -> tuple[str, str, int]:
        return self.entry["cell"], self.entry["arm"], self.entry["seed"]

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """What run.json says, which is read when it is asked for: of many runs few are shown."""
        try:
            return self.folder.config()
        except StoreError:
            return None

    @property
    def is_done(self) -> bool:
        return self.state == "done"

    @property
    def fate(self) -> str:
        """The state, with the step a run reached where it did not reach the last."""
        if self.is_done:
            return self.state
        return f"{self.state}, {f'up to step {self.steps:,}' if self.steps is not None else 'nothing measured'}"


@dataclass(frozen=True)
class Measured:
    """Keys are (cell, arm, seed), with the metric behind where several are kept.

    `curves`: (step, value) points, not finite ones included; the tables leave those out. At a run's last look:
    `heads`: {(layer, head): first-token mass}, `layers`: {layer: value}, `histograms`: {layer: {bin: share}} of gates.
    """

    study: dict[str, Any]
    runs: list[RunView]
    curves: dict[tuple[str, str, int, str], Points]
    heads: dict[tuple[str, str, int], dict[tuple[int, int], float]]
    layers: dict[tuple[str, str, int, str], dict[int, float]]
    histograms: dict[tuple[str, str, int], dict[int, dict[int, float]]]

    def of(self, cell: str, arm: str) -> list[RunView]:
        """The planned runs of an arm in a cell, by seed."""
        return sorted((r for r in self.runs if r.key[:2] == (cell, arm)), key=lambda r: r.key)

    def arms(self, cell: str) -> list[str]:
        """The arms planned in a cell, in the study's order."""
        planned = {r.key[1] for r in self.runs if r.key[0] == cell}
        return [arm["name"] for arm in self.study["arms"] if arm["name"] in planned]


def measure(folder: StudyFolder, state: Callable[[RunFolder], str] = state_of) -> Measured:
    """Everything the page needs, from study.json, the run folders and their rows."""
    from ..analysis.digest import digest, table

    study = folder.study()
    connection = digest(folder)
    curves = dict(table(connection, "curves"))
    heads = {
        key[:3]: {(layer, head): value for layer, head, value in values if isfinite(value)}
        for key, values in table(connection, "heads")
    }
    layers = {
        key: {layer: value for layer, value in values if isfinite(value)} for key, values in table(connection, "layers")
    }
    histograms: dict[tuple, dict] = {}
    for key, values in table(connection, "histograms"):
        of_run = histograms[key[:3]] = defaultdict(dict)
        for layer, bin_, value in values:
            if isfinite(value):
                of_run[layer][bin_] = value
    reached = connection.execute("SELECT cell, arm, seed, step FROM reached").fetchall()
    steps = {tuple(key): step for *key, step in reached}
    runs = [_view(entry, run, state(run), steps, curves) for entry, run in folder.planned()]
    return Measured(study, runs, curves, heads, layers, histograms)


def _view(entry: dict, run: RunFolder, state: str, steps: dict, curves: dict) -> RunView:
    key = (entry["cell"], entry["arm"], entry["seed"])
    losses = reversed(curves.get((*key, "loss"), []))
    # Of a damaged run nothing is shown but that it is.
    done = {} if state == "damaged" else run.done() or {}
    attempts = run.attempts()
    return RunView(
        entry=entry,
        state=state,
        steps=steps.get(key),
        last_loss=next((value for _, value in losses if isfinite(value)), None),
        seconds=done.get("seconds"),
        environment=environment_of(run) or {},
        dates=[str(a[word])[:10] for a in attempts for word in ("started", "ended") if a.get(word)],
        folder=run,
    )


def thin(points: Points, end: float, limit: int = 200) -> Points:
    """At most about `limit` points: means over bins of steps that are equally wide on a logarithmic axis up to `end`.

    The bins depend on `end` alone, so the curves of one plan share them; points that are not finite are left out.
    """
    finite = [point for point in points if isfinite(point[1])]
    if len(finite) <= limit:
        return finite
    bins: dict[int, Points] = defaultdict(list)
    for x, y in finite:
        bins[int(limit * log(1 + x) / log(1 + end))].append((x, y))
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for _, b in sorted(bins.items())]


def mean_curve(curves: list[Points]) -> Points:
    """The mean over curves where each of them has a point; it ends where the first of them ends."""
    if not curves:
        return []
    tables = [dict(curve) for curve in curves]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    return [(x, sum(t[x] for t in tables) / len(tables)) for x in shared]


def mean_table(tables: list[dict[Any, float]]) -> dict[Any, float]:
    """The mean of each entry over the tables that have it."""
    keys = sorted({key for table in tables for key in table})
    held = {key: [t[key] for t in tables if key in t] for key in keys}
    return {key: sum(values) / len(values) for key, values in held.items()}
