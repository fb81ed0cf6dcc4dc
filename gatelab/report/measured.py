"""What the page shows, read once from a study folder: runs with their states, curves, maps and histograms.

Notable: a run that is missing, unfinished or diverged stays in `runs` with its state, so that every figure can say
what it lacks. Means are taken here, in a fixed order, never by the query engine: same folder in, same page out.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

from ..store import RunFolder, StoreError, StudyFolder, read_json
from ..study.metrics import MAIN_ROWS

Points = list[tuple[float, float]]

CURVES = ("loss", "val_loss", "first_token_mass", "first_token_uniform")
LAYERS = ("massive_max", "massive_ratio", "gate_mean")


def state_of(run: RunFolder) -> str:
    """What done.json says ('done', 'diverged'), else 'not finished'."""
    done = run.done()
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
    config: dict[str, Any] | None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.entry["cell"], self.entry["arm"], self.entry["seed"]

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
    study = folder.study()
    connection = folder.connect()
    connection.execute(MAIN_ROWS)
    at_last = "QUALIFY step = max(step) OVER (PARTITION BY cell, arm, seed, metric)"
    everywhere = "domain IS NULL AND intervention IS NULL AND threshold IS NULL"

    def rows(columns: str, where: str, names: tuple[str, ...], last: str = at_last) -> list[tuple]:
        return connection.execute(
            f"SELECT DISTINCT cell, arm, seed, metric, {columns}, value FROM main_rows"
            f" WHERE list_contains($1, metric) AND {where} {last} ORDER BY ALL",
            [list(names)],
        ).fetchall()

    curves: dict[tuple, Points] = defaultdict(list)
    for *key, step, value in rows(
        "step", f"{everywhere} AND layer IS NULL AND head IS NULL AND bin IS NULL", CURVES, last=""
    ):
        curves[tuple(key)].append((step, value))
    heads: dict[tuple, dict] = defaultdict(dict)
    for cell, arm, seed, _, layer, head, value in rows(
        # Of the probe: a training may have rows of its own, step by step.
        "layer, head",
        f"{everywhere} AND head IS NOT NULL AND source = 'sinks'",
        ("first_token_mass",),
    ):
        if isfinite(value):
            heads[cell, arm, seed][layer, head] = value
    layers: dict[tuple, dict] = defaultdict(dict)
    for *key, layer, value in rows("layer", f"{everywhere} AND layer IS NOT NULL AND head IS NULL", LAYERS):
        if isfinite(value):
            layers[tuple(key)][layer] = value
    histograms: dict[tuple, dict] = defaultdict(lambda: defaultdict(dict))
    for cell, arm, seed, _, layer, bin_, value in rows(
        "layer, bin", f"{everywhere} AND layer IS NOT NULL AND bin IS NOT NULL", ("gate_histogram",)
    ):
        if isfinite(value):
            histograms[cell, arm, seed][layer][bin_] = value
    reached = connection.execute("SELECT cell, arm, seed, max(step) FROM rows GROUP BY ALL").fetchall()
    steps = {tuple(key): step for *key, step in reached}
    runs = [_view(entry, run, state(run), steps, curves) for entry, run in folder.planned()]
    return Measured(study, runs, dict(curves), dict(heads), dict(layers), dict(histograms))


def _view(entry: dict, run: RunFolder, state: str, steps: dict, curves: dict) -> RunView:
    key = (entry["cell"], entry["arm"], entry["seed"])
    finite = [value for _, value in curves.get((*key, "loss"), []) if isfinite(value)]
    done, attempts = run.done() or {}, run.attempts()
    environment = run.path / "environment.json"
    try:
        config = run.config()
    except StoreError:
        config = None
    return RunView(
        entry=entry,
        state=state,
        steps=steps.get(key),
        last_loss=finite[-1] if finite else None,
        seconds=done.get("seconds"),
        environment=read_json(environment) if environment.exists() else {},
        dates=[str(a[word])[:10] for a in attempts for word in ("started", "ended") if a.get(word)],
        config=config,
    )


def thin(points: Points, end: float, limit: int = 200) -> Points:
    """At most about `limit` points: means over bins of steps that are equally wide on a logarithmic axis up to `end`.

    The bins depend on `end` alone, so the curves of one plan share them; points that are not finite are left out.
    """
    finite = [(x, y) for x, y in points if isfinite(y)]
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
