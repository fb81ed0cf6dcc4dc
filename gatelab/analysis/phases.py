"""Phases: where on a grid of settings a gate ends the first-token sink, and what it costs there.

A study has them where its cells are points of two axes or more. What an axis is, the cells' configurations say and not
their names: a key in which some two cells differ and in nothing else; keys that split the cells alike are one axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite, isnan
from typing import Any

from ..record import Finding
from .anomalies.gather import varying
from .heterogeneity import merged

SINK, LOSS = "first_token_mass", "val_loss"

Level = int | float | str


@dataclass(frozen=True, slots=True)
class Axis:
    """`keys` are dotted keys of a configuration that split the cells alike; `levels` those of the first, numbers in order."""

    keys: tuple[str, ...]
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """An arm in a cell, which is `at` one level of each axis. Of its `n` finished runs `k` have a sink, the true share being
    within `low` to `high` (Clopper and Pearson); `loss` is the finding about its held-out loss against the control's, None of
    the control and where none finished; `change` that about the sink, None where all runs of both have one or none has: it is then
    about the mean mass, and not about the share; `lost` {state: seeds} the runs that are not done."""

    cell: str
    at: tuple[Level, ...]
    arm: str
    k: int
    n: int
    low: float
    high: float
    loss: Finding | None
    change: Finding | None
    lost: dict[str, list[int]]

    @property
    def said(self) -> str:
        """The runs that are not done, in words."""
        return "; ".join(
            f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))} {state}"
            for state, seeds in self.lost.items()
        )


@dataclass(frozen=True, slots=True)
class Phases:
    """`across` is the axis with the most levels, `down` the others; `points` the arms' in the order of the study; `losses` {(cell,
    arm): {seed: held-out loss}} of the seeds that the points tell, for what lies between the levels."""

    across: Axis
    down: tuple[Axis, ...]
    points: list[Point]
    losses: Mapping[tuple[str, str], Mapping[int, float]] = field(default_factory=dict)

    def of(self, arm: str) -> list[Point]:
        """An arm's points."""
        return [p for p in self.points if p.arm == arm]


def axes(bases: Mapping[str, Any]) -> list[Axis]:
    """The axes of which cells with these configurations are points, in the order of their keys; none where they are fewer than
    two, or do not tell all cells apart."""
    cells = list(bases)
    factors = merged(dict(varying(bases)), cells)
    differ = [{name for name, at in factors.items() if at[a] != at[b]} for a, b in combinations(cells, 2)]
    kept = [name for name in factors if {name} in differ]
    places = {tuple(factors[name][cell] for name in kept) for cell in cells}
    if len(kept) < 2 or len(places) < len(cells):
        return []
    return [Axis(tuple(name.split(" = ")), _ordered(factors[name].values())) for name in kept]


def phases(
    study: Mapping[str, Any],
    findings: Iterable[Finding],
    shares: Iterable[Mapping[str, Any]],
    states: Mapping[tuple[str, str, int], str],
    losses: Mapping[tuple[str, str], Mapping[int, float]] | None = None,
) -> Phases | None:
    """The points of every arm of a study; None of one whose cells are no grid, or without a finished run.

    Args:
        study: what study.json says.
        shares: of bimodal metrics, each with cell, arm, metric, k, n, low, high.
        states: {(cell, arm, seed): state} of the planned runs.
    """
    bases = {c["name"]: c.get("base", {}) for c in study["cells"]}
    found = axes(bases)
    by_share = {(s["cell"], s["arm"]): s for s in shares if s["metric"] == SINK}
    if not found or not by_share:
        return None
    by_finding = {(f.cell, f.arm, f.metric): f for f in findings if f.metric in (SINK, LOSS)}
    lost: dict[tuple[str, str], dict[str, list[int]]] = {}
    for (cell, arm, seed), state in states.items():
        if state != "done":
            lost.setdefault((cell, arm), {}).setdefault(state, []).append(seed)
    # Of several axes with as many levels the first is across.
    across = max(found, key=lambda axis: len(axis.levels))
    planned = {(cell, arm) for cell, arm, _ in states}
    down = tuple(axis for axis in found if axis is not across)
    points = []
    for arm in (a["name"] for a in study["arms"]):
        for cell, base in bases.items():
            if (cell, arm) not in planned:
                continue
            s = by_share.get((cell, arm), {"k": 0, "n": 0, "low": 0.0, "high": 1.0})
            points.append(
                Point(
                    cell, tuple(_level(base, axis.keys[0]) for axis in (across, *down)), arm, s["k"], s["n"], s["low"], s["high"],
                    by_finding.get((cell, arm, LOSS)), _of_seeds(by_finding.get((cell, arm, SINK))), lost.get((cell, arm), {}),
                )
            )  # fmt: skip
    return Phases(across, down, points, losses or {})


def _of_seeds(f: Finding | None) -> Finding | None:
    """Of a bimodal metric a finding has no interval where its p is McNemar's, of the seeds that change sides."""
    return f if f is not None and isnan(f.low) and isfinite(f.p) else None


def _level(base: Any, key: str) -> Level:
    """The level of a cell, as `varying` tells it; what a union's other kind does not have is None there."""
    for part in key.split("."):
        base = base.get(part) if isinstance(base, dict) else None
    return base if isinstance(base, int | float) and not isinstance(base, bool) else str(base)


def _ordered(levels: Iterable[Level]) -> tuple[Level, ...]:
    """Each once: numbers by size, words as they come."""
    once: Sequence[Level] = list(dict.fromkeys(levels))
    return tuple(sorted(once) if all(isinstance(x, int | float) for x in once) else once)
