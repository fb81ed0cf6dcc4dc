"""What the finished runs of a study have to see a cell and arm by: courses, gate scores, first-token mass by head.

A sight is found by what its runs are, whatever study, cell and arm they are called: their configuration as it is resolved, without
the seed and what they were looked at with. So a card of one study may show runs of another of the same settings.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from ..config import ConfigError, Run, canonical, validate
from ..store import StudyFolder
from .anomalies.gather import LOOKS
from .confirmed import Course, seen_in
from .digest import digest, table
from .tasks import Key

_NOT_THE_SETTING = ("seed", *LOOKS)  # of a run
_CURVES = ("val_loss", "first_token_mass")  # of the table of curves; the others are courses


@dataclass(frozen=True, slots=True)
class Sight:
    """Of the finished `seeds` of one cell and arm: `curves` {reading: {seed: course}}; at a run's last
    look `heads` {seed: {(layer, head): first-token mass}}, `gates` {seed: {layer: mean}}, `shut` {seed: {layer: share of scores
    below 0.1}} and `histograms` {seed: {layer: {bin: share}}}."""

    seeds: list[int] = field(default_factory=list)
    curves: dict[str, dict[int, Course]] = field(default_factory=dict)
    heads: dict[int, dict[tuple[int, int], float]] = field(default_factory=dict)
    gates: dict[int, dict[int, float]] = field(default_factory=dict)
    shut: dict[int, dict[int, float]] = field(default_factory=dict)
    histograms: dict[int, dict[int, dict[int, float]]] = field(default_factory=dict)

    @property
    def n_looks(self) -> int:
        """The most steps at which a run's loss was looked at."""
        return max((len(course) for course in self.curves.get("val_loss", {}).values()), default=0)


Sights = dict[tuple[str, str], Sight]


def setting(config: Mapping[str, Any]) -> str | None:
    """What a run is beside its seed and its looks, as a word; None of one that starts from another's weights, which have a seed, or
    that is no run of this version."""
    try:
        run = validate(Run, dict(config))  # what it does not state is as it was then
    except ConfigError:
        return None
    if run.init_from is not None:
        return None
    facts = {key: value for key, value in canonical(run).items() if key not in _NOT_THE_SETTING}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def settings(folder: StudyFolder) -> dict[tuple[str, str], str]:
    """{(cell, arm): its setting} by the first of its runs."""
    out: dict[tuple[str, str], str | None] = {}
    for entry, run in folder.planned():
        where = (entry["cell"], entry["arm"])
        if where not in out and (config := run.config_if_whole()) is not None:
            out[where] = setting(config)
    return {where: found for where, found in out.items() if found is not None}


def sights(folder: StudyFolder, runs: Collection[Key]) -> Sights:
    """{(cell, arm): what its runs among these have}.

    Raises:
        StoreError: rows that cannot be read.
    """
    out: Sights = {}
    for cell, arm, seed in sorted(runs):
        out.setdefault((cell, arm), Sight()).seeds.append(seed)
    connection = digest(folder)
    for name in ("curves", "courses"):
        for key, course in table(connection, name):
            of = out.get(key[:2])
            is_meant = (key[3] in _CURVES) if name == "curves" else not key[3].startswith("furthest:")
            points = [point for point in course if isfinite(point[1])]
            if of is not None and key[:3] in runs and is_meant and points:
                of.curves.setdefault(key[3], {})[key[2]] = points
    for key, values in table(connection, "heads"):
        if key[:3] in runs:
            out[key[:2]].heads[key[2]] = {(layer, head): v for layer, head, v in values if isfinite(v)}
    for key, values in table(connection, "layers"):
        if key[:3] in runs and key[3] == "gate_mean":
            out[key[:2]].gates[key[2]] = {layer: v for layer, v in values if isfinite(v)}
    for key, values in table(connection, "histograms"):
        if key[:3] in runs:
            of_run = out[key[:2]].histograms.setdefault(key[2], {})
            for layer, bin_, v in values:
                if isfinite(v):
                    of_run.setdefault(layer, {})[bin_] = v
    for cell, seen in seen_in(folder, {cell for cell, *_ in runs}).items():
        for (arm, seed), shares in seen.shut.items():
            if (cell, arm, seed) in runs:
                out[cell, arm].shut[seed] = shares
    return out
