"""From a study's folder to evidence: readings of every run, what the cells are, and which comparisons cannot be made.

What may not be compared (`refusals`) is refused by name and enters no mean; of cells made by different versions of the code
each stands for itself, and nothing is pooled over them.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import nan
from typing import Any

from ...record import Metric
from ...store import RunFolder, StoreError, StudyFolder
from ...study.ledger import state_of
from ..architecture import by_architecture
from ..digest import digest
from ..lacking import lacks, notes
from ..lost import lost_cells
from ..paired import Outcome, Outcomes
from ..refusals import Comparison, Refusals, Run, refusals
from ..short import NO_ROWS, short_rows
from .evidence import Evidence
from .readings import FINAL, READINGS, UNSTABLE

LOOKS = ("probe", "ask")  # of a configuration


@dataclass(frozen=True)
class Gathered:
    """`factors` {dotted key: {cell: level}} are those in which the cells differ, whose configurations are `bases`; `brought` are
    the keys in the place of which these have the architecture. `runs` {(cell, arm): {seed: fingerprint}} are the finished ones,
    `models` {(cell, arm): the model's configuration}."""

    evidence: Evidence
    primary: list[str]
    factors: dict[str, dict[str, Any]]
    bases: dict[str, dict[str, Any]]
    runs: dict[Comparison, dict[int, str]]
    models: dict[Comparison, dict[str, Any]]
    refusals: Refusals
    brought: list[str]

    @property
    def versions(self) -> set[str]:
        """Those of the code that made its runs, in words."""
        return self.refusals.versions


def gather(
    folder: StudyFolder,
    study_metrics: Iterable[Outcome] = (),
    *,
    only: Container[int] | None = None,
    without: Container[int] = (),
) -> Gathered:
    """The evidence of a study; `study_metrics` are its outcomes, of which those are added that are no reading.

    Seeds `without` which, or which `only`, it is made are as if they did not exist: a screen and its confirmation may be the
    work of two versions of the code, which refuses neither.

    Raises:
        StoreError: a study that was edited; one without an ungated baseline, or without a gate.
    """
    study = checked(folder)

    def is_in(seed: int) -> bool:
        return seed not in without and (only is None or seed in only)

    planned = list(folder.planned())
    models = _models(planned)
    runs = [(entry, run, state_of(run)) for entry, run in planned if is_in(entry["seed"])]
    gates = [a["name"] for a in study["arms"] if a["name"] != study["baseline"] and not a["control"]]
    _refuse_without_control(folder, study["baseline"], gates, models)
    bases = {c["name"]: c.get("base", {}) for c in study["cells"]}
    refusal, declared = refusals(runs, study["baseline"]), _declared(study)
    declared_outcomes = [o for o in study_metrics if is_in(o.seed)]
    found = [*_outcomes(folder, runs), *(o for o in declared_outcomes if o.metric not in READINGS)]
    arms = [a["name"] for a in study["arms"]]
    holes = lacks(
        Outcomes(declared_outcomes), list(declared.values()), baseline=study["baseline"], arms=arms, cells=list(bases)
    )
    short = short_rows(digest(folder)).notes((entry, state) for entry, _, state in runs)
    refusal = replace(refusal, notes=[*refusal.notes, *short, *notes(holes)])
    # A study that was planned before accuracies were graded keeps the rule that it was planned with.
    is_graded = any(m.graded for m in declared.values())
    readings = {name: replace(r.metric, graded=r.metric.graded and is_graded) for name, r in READINGS.items()}
    evidence = Evidence(
        outcomes=refusal.marked(found),
        metrics=readings | {UNSTABLE.name: UNSTABLE} | declared,
        baseline=study["baseline"],
        arms=gates,
        cells=list(bases),
        rates={c: _rate(base) for c, base in bases.items() if "optim" in base},
        longer=_longer(runs, bases),
        refused=refusal.refused,
        not_pooled=refusal.not_pooled,
        lost=lost_cells(digest(folder), runs),
    )
    done: dict[Comparison, dict[int, str]] = {}
    for entry, run, state in runs:
        if state == "done":
            done.setdefault((entry["cell"], entry["arm"]), {})[entry["seed"]] = run.fingerprint
    data = {c["name"]: {**_setting(bases[c["name"]]), "data": c.get("data", "")} for c in study["cells"]}
    primary = [m["name"] for m in study["metrics"] if m["primary"]]
    factors, brought = by_architecture(dict(varying(data)), {c: base.get("model") or {} for c, base in bases.items()})
    return Gathered(evidence, primary, factors, bases, done, models, refusal, brought)


def checked(folder: StudyFolder) -> dict[str, Any]:
    """What study.json says, with its metrics, arms, cells and baseline as a plan writes them.

    Raises:
        StoreError: one that was edited.
    """
    study, path = folder.study(), folder.path / "study.json"
    missing = [key for key in ("metrics", "arms", "cells", "baseline") if key not in study]
    if missing:
        raise StoreError(f"{path}: {', '.join(missing)} missing; was it edited?")
    for key, needed in (("arms", {"name": str, "control": bool}), ("cells", {"name": str}), ("metrics", {"name": str})):
        held = study[key] if isinstance(study[key], list) else [None]
        if any(
            not isinstance(x, dict) or any(not isinstance(x.get(k), kind) for k, kind in needed.items()) for x in held
        ):
            raise StoreError(f"{path}: its {key} are not as a plan writes them; was it edited?")
    try:
        _declared(study)
    except (TypeError, ValueError):
        raise StoreError(f"{path}: its metrics are not as a plan writes them; was it edited?") from None
    if study["baseline"] not in [a["name"] for a in study["arms"]]:
        raise StoreError(f"{path}: its baseline {study['baseline']!r} is none of its arms; was it edited?")
    return study


def _models(planned: list[tuple[dict[str, Any], RunFolder]]) -> dict[Comparison, dict[str, Any]]:
    """Of each cell and arm, in their order, the model of the last of its runs that says it."""
    found: dict[Comparison, dict[str, Any] | None] = {(e["cell"], e["arm"]): None for e, _ in planned}
    for entry, run in reversed(planned):
        where = (entry["cell"], entry["arm"])
        if found[where] is None and (config := run.config_if_whole()) is not None:
            found[where] = config["model"]
    return {where: model for where, model in found.items() if model is not None}


def _declared(study: dict[str, Any]) -> dict[str, Metric]:
    """The study's metrics, with the equivalence bounds and thresholds that it declared."""
    return {m["name"]: Metric(**m) for m in study["metrics"]}


def _refuse_without_control(
    folder: StudyFolder, baseline: str, gates: list[str], models: dict[Comparison, dict[str, Any]]
) -> None:
    gated = sorted({str(m["gate"]) for (_, arm), m in models.items() if arm == baseline and m.get("gate") != "none"})
    why = (
        f"its baseline {baseline} has a gate ({gated[0]})" if gated
        else "it has no arm besides its baseline that is not a control" if not gates
        else ""
    )  # fmt: skip
    if why:
        raise StoreError(
            f"{folder.path}: anomalies are what a gate does against none, and {why}; give the study a first arm without a"
            " gate and one with, and run it again"
        )


def _outcomes(folder: StudyFolder, runs: list[Run]) -> Iterator[Outcome]:
    connection = digest(folder)
    connection.execute(FINAL)
    short = short_rows(connection)
    measured = {run for (run,) in connection.execute("SELECT run FROM reached").fetchall()}
    values: dict[str, dict[str, float]] = {}
    for name, reading in READINGS.items():
        # In an order of our own: the query engine has none, and of tests with one p the first found is listed first.
        for fingerprint, part, value in connection.execute(f"FROM ({reading.sql}) ORDER BY ALL").fetchall():
            if value is not None:
                values.setdefault(fingerprint, {})[f"{name}:{part}" if part is not None else name] = value
    for entry, run, state in runs:
        where = (entry["cell"], entry["arm"], entry["seed"])
        found = values.get(run.fingerprint, {})
        for name, value in found.items():
            yield Outcome(*where, name, value, state)
        if state == "done":
            for name in ("val_loss",) if run.fingerprint not in measured else short.of(run.fingerprint):
                if name in READINGS and name not in found:
                    yield Outcome(*where, name, nan, state, cut=short.why(run.fingerprint, name) or NO_ROWS)
        if state not in ("done", "diverged"):
            if "val_loss" not in found:
                yield Outcome(*where, "val_loss", nan, state)
            continue
        if state == "diverged" or "loss_spikes" in found:
            unstable = state == "diverged" or found["loss_spikes"] > 0
            yield Outcome(*where, UNSTABLE.name, float(unstable))


def _rate(base: Mapping[str, Any]) -> tuple[str, float]:
    rest = {**base, "optim": {k: v for k, v in base["optim"].items() if k != "lr"}}
    return json.dumps(rest, sort_keys=True), base["optim"]["lr"]


def _longer(runs: list[Run], bases: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{cell: the cell whose weights of the same arm it goes on from}, where its sequences are longer."""
    by_name = {entry["fingerprint"]: entry for entry, _, _ in runs}
    out = {}
    for entry, _, _ in runs:
        source = by_name.get(entry.get("init_from"))
        if source is not None and source["arm"] == entry["arm"]:
            here, there = (bases[e["cell"]].get("train", {}).get("seq_len", 0) for e in (entry, source))
            if here > there:
                out[entry["cell"]] = source["cell"]
    return out


def _setting(base: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's configuration without when and how its runs are looked at, which is no factor of an effect."""
    return {key: value for key, value in base.items() if key not in LOOKS}


def varying(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The dotted keys in which the cells' configurations differ, each with {cell: level}."""
    if all(isinstance(v, dict) for v in values.values()):
        for key in dict.fromkeys(k for v in values.values() for k in v):
            yield from varying({cell: v.get(key) for cell, v in values.items()}, f"{path}.{key}" if path else key)
        return
    levels = {c: v if isinstance(v, int | float) and not isinstance(v, bool) else str(v) for c, v in values.items()}
    if len(set(levels.values())) > 1:
        yield path, levels
