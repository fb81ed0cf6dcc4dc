"""Study: cells × arms × seeds, as a value. Every comparison in it is paired by construction.

A study file is a Python file that defines `study = Study(...)`; `load_study` finds built-in ones by name and others by
path. Nothing in this file reads data or plans; see plan.py.
"""

import difflib
import runpy
import traceback
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..config import Change, ConfigError, Execution, GateSpec, Run, accepts, cross, nearest, override, validate, vary
from .metrics import choose


@dataclass(frozen=True)
class Arm:
    """What an arm changes in every cell; `label` is for the page; a `control` is not a gate."""

    name: str
    changes: Change
    label: str = ""
    control: bool = False


@dataclass(frozen=True)
class Study:
    """A question, and the grid that answers it.

    Args:
        name: of the study and its default folder.
        question: one or two sentences for the page.
        cells: a Run a cell (its gate and seed are set by arms and seeds).
        arms: the first is the baseline.
        seeds: a number n (0 … n − 1) or the seeds themselves.
        match: the key that is narrowed until each arm has the baseline's parameters (`model.d_ff`), or None.
        primary: metrics (docs/metrics.md) that form the family of the false-discovery control.
        equivalence: bounds within which a difference counts as nothing, by metric; see study/metrics.py for defaults.
        about: a sentence a cell for the page.
        execution: how the runs are carried out unless the command line says otherwise.

    Raises:
        ConfigError: listing every mistake.
    """

    name: str
    question: str
    cells: dict[str, Run]
    arms: tuple[Arm, ...]
    seeds: int | tuple[int, ...] = 3
    match: str | None = "model.d_ff"
    primary: tuple[str, ...] = ("val_loss", "first_token_mass", "value_drain", "massive_max")
    equivalence: dict[str, float] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        problems = []
        if not self.cells or not self.arms:
            problems.append("a study needs at least one cell and one arm")
        names = [a.name for a in self.arms]
        problems += [f"arms: {n!r} is there twice" for n in sorted(set(names)) if names.count(n) > 1]
        if self.match not in (None, "model.d_ff"):
            problems.append(f"match={self.match!r}: expected 'model.d_ff' or None")
        if not self.seed_values:
            problems.append(f"seeds={self.seeds!r}: expected a positive number or a list of seeds")
        problems += [f"about: no cell {n!r}{nearest(n, list(self.cells))}" for n in self.about if n not in self.cells]
        for cell, run in self.cells.items():
            for arm in self.arms:
                try:
                    override(run, arm.changes)
                except ConfigError as error:
                    problems += [f"cell {cell}, arm {arm.name}: {p}" for p in error.problems]
        if problems:
            raise ConfigError(problems)
        choose(self.primary, self.equivalence)

    @property
    def baseline(self) -> Arm:
        """The first arm."""
        return self.arms[0]

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The seeds, written out."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    def changed(self, assignments: dict[str, list[Any]]) -> "Study":
        """The study with `key=value` words applied.

        `seed` replaces the seeds; `execution.*` the execution; a key that arms set replaces the arms after the baseline
        by one arm a value; any other key changes the cells that have it, several values making several cells.

        Raises:
            ConfigError: listing every mistake; a key that no cell has is one.
        """
        study, problems = self, []
        for path, values in assignments.items():
            try:
                study = _apply(study, path, values)
            except ConfigError as error:
                problems += [p for p in error.problems if p not in problems]
        if problems:
            raise ConfigError(problems)
        return study


def _apply(study: Study, path: str, values: list[Any]) -> Study:
    if path == "seed":
        return replace(study, seeds=tuple(validate(Run, {"seed": v}).seed for v in values))
    if path.startswith("execution."):
        if len(values) > 1:
            raise ConfigError([f"{path}: takes one value; it does not change results, so it is no axis"])
        changed = override(study.execution, {path.removeprefix("execution."): values[0]}, "execution.")
        return replace(study, execution=changed)
    if any(path in arm.changes for arm in study.arms):
        return replace(study, arms=(study.baseline, *_arms_of(study, path, values)))
    cells: dict[str, Run] = {}
    accepted = False
    for name, run in study.cells.items():
        grid = cross(vary(path, values)) if accepts(run, path) else [{}]
        accepted |= grid != [{}]
        for change in grid:
            label = f"{name}, {path}={change[path]}" if len(values) > 1 and change else name
            cells[label] = override(run, change)
    if not accepted:
        # No cell has it: let one of them say what exists.
        for run in study.cells.values():
            override(run, {path: values[0]})
        raise ConfigError([f"{path}: no cell of {study.name} has this key"])
    about = {
        new: study.about[old] for new in cells for old in study.cells if new.startswith(old) and old in study.about
    }
    return replace(study, cells=cells, about=about)


def _arms_of(study: Study, path: str, values: list[Any]) -> list[Arm]:
    arms = []
    for value in values:
        known = next((a for a in study.arms if a.changes == {path: value}), None)
        if known == study.baseline or (known is None and study.baseline.changes.get(path) == value):
            continue
        for run in study.cells.values():
            override(run, {path: value})
        arms.append(known or Arm(str(value), {path: value}, label=str(value)))
    return arms


def label_of(arm: Arm) -> str:
    """Human words for an arm: its own, or its gate's."""
    if arm.label:
        return arm.label
    gate = arm.changes.get("model.gate")
    if isinstance(gate, GateSpec):
        return gate.slug
    return "no gate" if gate == "none" else arm.name


def built_in() -> dict[str, Path]:
    """The studies that come with Gatelab, by name."""
    folder = Path(str(resources.files("gatelab.studies")))
    return {p.stem.replace("_", "-"): p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"}


def load_study(name: str) -> Study:
    """A built-in study by name, or the `study` of a Python file.

    Raises:
        ConfigError: no such study or file (with the nearest name), a file that does not run (with its line), a file
            that defines no study.
    """
    known = built_in()
    path = known.get(name, Path(name))
    if name not in known and path.suffix != ".py":
        hint = nearest(name, list(known))
        raise ConfigError(
            [f"no study {name!r}: expected one of {', '.join(known)}, or the path of a Python file{hint}"]
        )
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1)
        raise ConfigError([f"{name}: no such file" + (f"; did you mean {path.parent / close[0]}?" if close else "")])
    try:
        found = runpy.run_path(str(path)).get("study")
    except ConfigError as error:
        raise ConfigError([f"{path}: {p}" for p in error.problems]) from None
    except SyntaxError as error:
        raise ConfigError([f"{path}, line {error.lineno}: {error.msg}"]) from None
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError([f"{path}{where}: {type(error).__name__}: {error}"]) from None
    if not isinstance(found, Study):
        raise ConfigError([f"{path}: defines no `study = Study(...)`; docs/guide.md shows one of thirty lines"])
    return found
