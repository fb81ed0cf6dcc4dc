"""Study: cells × arms × seeds, as a value. Every comparison in it is paired by construction.

A study file is a Python file that defines `study = Study(...)`; `load_study` finds built-in ones by name and others by
path. Nothing in this file reads data or plans; see plan.py.
"""

import difflib
import re
import runpy
import sys
import traceback
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import (
    Change,
    ConfigError,
    Execution,
    GateSpec,
    Run,
    accepts,
    cross,
    keys,
    nearest,
    override,
    validate,
    vary,
)  # fmt: skip
from ..config.base import explain
from .metrics import choose

# A plan of more runs takes minutes to make and to look at.
MOST_RUNS = 20_000


@dataclass(frozen=True)
class Arm:
    """What an arm changes in every cell; `label` is for the page; a `control` is not a gate.

    Arms share data and seeds, which is what pairs their runs, so neither can be changed. An arm that sets the study's
    `match` key itself (a wider feed-forward layer as a control) is not matched.
    """

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
        match_unit: widths are multiples of it; 8 where tensor cores would slow down at odd ones.
        primary: metrics (docs/metrics.md) that form the family of the false-discovery control.
        equivalence: bounds within which a difference counts as nothing, by metric; see study/metrics.py for defaults.
        about: a sentence a cell for the page.
        follows: cells that go on from others, `{cell: source}`: each of its runs starts from the weights of the same arm
            and seed in the source; `{cell: (source, arm)}`: of that arm, whichever its own is (a gate inserted later).
            Where arms differ in gates, set match to None: narrowed weights do not fit.
        only: cells that have some of the arms alone, `{cell: arms}`; the baseline is in every cell.
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
    match_unit: int = 1
    primary: tuple[str, ...] = ("val_loss", "first_token_mass", "value_drain", "massive_max")
    equivalence: dict[str, float] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    follows: dict[str, str | tuple[str, str]] = field(default_factory=dict)
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        problems = _misshapen(self) or _too_many(self)
        if problems:
            raise ConfigError(problems)
        names = [a.name for a in self.arms]
        problems += [f"arms: {n!r} is there twice" for n in sorted(set(names)) if names.count(n) > 1]
        if self.match not in (None, "model.d_ff"):
            problems.append(f"match={self.match!r}: expected 'model.d_ff' or None")
        if self.match_unit < 1:
            problems.append(f"match_unit={self.match_unit}: expected 1 or more")
        problems += _seed_problems(self.seeds)
        problems += [f"about: no cell {n!r}{nearest(n, list(self.cells))}" for n in self.about if n not in self.cells]
        problems += _only_problems(self) or _follow_problems(self)
        for cell, run in self.cells.items():
            problems += _arm_problems(cell, run, self.arms_of(cell))
        try:
            choose(self.primary, self.equivalence)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    @property
    def baseline(self) -> Arm:
        """The first arm."""
        return self.arms[0]

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The seeds, written out."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    def arms_of(self, cell: str) -> tuple[Arm, ...]:
        """The arms that a cell has, the baseline first."""
        if cell not in self.only:
            return self.arms
        return self.arms[:1] + tuple(a for a in self.arms[1:] if a.name in self.only[cell])

    def source_of(self, cell: str, arm: str) -> tuple[str, str] | None:
        """The cell and arm whose weights an arm of a cell starts from; None: it starts afresh."""
        source = self.follows.get(cell)
        return (source, arm) if isinstance(source, str) else source

    def changed(self, assignments: dict[str, list[Any]]) -> "Study":
        """The study with `key=value` words applied.

        `cell` chooses cells by their names, in which `*` stands for anything, and `arm` arms, of which the baseline stays; `seed`
        replaces the seeds; `execution.*` the execution; a key that arms set replaces the arms after the baseline
        by one arm a value; any other key changes the cells that have it, several values making several cells.

        Raises:
            ConfigError: listing every mistake; a key that no cell has is one.
        """
        if "cell" in assignments:
            rest = {path: values for path, values in assignments.items() if path != "cell"}
            return replace(self, **_chosen(self, [str(name) for name in assignments["cell"]])).changed(rest)
        if "arm" in assignments:
            rest = {path: values for path, values in assignments.items() if path != "arm"}
            arms = _chosen_arms(self, [str(name) for name in assignments["arm"]])
            return replace(self, arms=arms, only=_only(self, arms)).changed(rest)
        known = {path for arm in self.arms for path in arm.changes}
        if "model.gate" in known:
            known.add("model.preset")  # a name for what these arms are
        of_execution = {p: v for p, v in assignments.items() if p.startswith("execution.")}
        of_arms = {p: v for p, v in assignments.items() if p in known}
        of_cells = {p: v for p, v in assignments.items() if p not in {"seed", *of_execution, *of_arms}}
        cells = {name: _Cell(name, run) for name, run in self.cells.items()}
        fields: dict[str, Any] = {}
        problems: list[str] = []
        try:
            cells = _changed_cells(_changed_cells(cells, of_cells, kinds=True), of_cells, kinds=False)
        except ConfigError as error:
            problems += error.problems
        for name, make in (
            ("seeds", lambda: _changed_seeds(self.seeds, assignments)),
            ("execution", lambda: changed_execution(self.execution, of_execution)),
            ("arms", lambda: _changed_arms(self.arms, of_arms, [cell.run for cell in cells.values()])),
        ):
            try:
                fields[name] = make()
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        kept = {"about": self.about, "only": _only(self, fields["arms"])}
        fields |= {
            key: {name: of[cell.origin] for name, cell in cells.items() if cell.origin in of}
            for key, of in kept.items()
        }
        if self.follows and set(cells) != set(self.cells):
            split = ", ".join(path for path, values in of_cells.items() if len(values) > 1)
            raise ConfigError([f"{split}: takes one value, since cells of this study go on from one another"])
        return replace(self, cells={name: cell.run for name, cell in cells.items()}, **fields)


def _chosen(study: Study, names: list[str]) -> dict[str, Any]:
    """The fields of a study that tell of its cells, of those that are named."""
    there = list(study.cells)
    problems = [
        f"cell={name}: no such cell; expected some of {', '.join(there)}, as in cell={there[0][:3]}*{nearest(name, there)}"
        for name in names
        if not any(fnmatchcase(cell, name) for cell in there)
    ]
    cells = {cell: run for cell, run in study.cells.items() if any(fnmatchcase(cell, name) for name in names)}
    problems += [
        f"cell={cell}: goes on from the cell {source!r}; choose that too"
        for cell in cells
        if (source := (study.source_of(cell, "") or (None,))[0]) not in {None, *cells}
    ]
    if problems:
        raise ConfigError(problems)
    kept = {
        name: {c: v for c, v in getattr(study, name).items() if c in cells} for name in ("about", "follows", "only")
    }
    return {"cells": cells, **kept}


def _chosen_arms(study: Study, names: list[str]) -> tuple[Arm, ...]:
    """The baseline, and the arms that are named."""
    there = [a.name for a in study.arms]
    problems = [
        f"arm={name}: no such arm; expected some of {', '.join(there)}, as in arm={there[-1]}{nearest(name, there)}"
        for name in names
        if not any(fnmatchcase(arm, name) for arm in there)
    ]
    if problems:
        raise ConfigError(problems)
    return study.arms[:1] + tuple(a for a in study.arms[1:] if any(fnmatchcase(a.name, name) for name in names))


def _only(study: Study, arms: tuple[Arm, ...]) -> dict[str, tuple[str, ...]]:
    """Which of these arms the cells of `only` have: of the study's own as before, and those that the command line made."""
    before, names = {a.name for a in study.arms}, [a.name for a in arms[1:]]
    return {cell: tuple(n for n in names if n in own or n not in before) for cell, own in study.only.items()}


@dataclass(frozen=True)
class _Cell:
    """A cell on its way through `Study.changed`: its run, and the cell of the study that it comes from."""

    origin: str
    run: Run


def _changed_cells(cells: dict[str, _Cell], assignments: dict[str, list[Any]], *, kinds: bool) -> dict[str, _Cell]:
    """The cells with all assignments applied together to those that have the keys: first, as another step, all but the
    parts of a union whose `kind` is chosen here, since the kind decides which parts there are."""
    unions = {path.removesuffix(".kind") for path in keys(Run) if path.endswith(".kind")}
    decided = {f"{p.removesuffix('.kind')}." for p in assignments if p.removesuffix(".kind") in unions}
    if "model.preset" in assignments:
        decided |= {f"{union}." for union in unions if union.startswith("model.")}  # a preset may choose a kind
    parts = {p for p in assignments if not p.endswith(".kind") and p.startswith(tuple(decided))}
    chosen = {p: v for p, v in assignments.items() if (p not in parts) == kinds}
    n = len(cells) * prod(len(values) for values in chosen.values())
    if n > MOST_RUNS:
        raise ConfigError([f"{n} cells; a study has at most {MOST_RUNS} runs"])
    out: dict[str, _Cell] = {}
    problems: list[str] = []
    for name, cell in cells.items():
        own = {path: values for path, values in chosen.items() if accepts(cell.run, path)}
        for change in cross(*(vary(path, values) for path, values in own.items())):
            words = [f"{path}={value}" for path, value in change.items() if len(own[path]) > 1]
            label = ", ".join([name, *words])
            if label in out:
                problems.append(f"{', '.join(words)}: is there twice")
            out[label] = _Cell(cell.origin, _tried(cell.run, change, problems))
    for path, values in chosen.items():
        if not any(accepts(cell.run, path) for cell in cells.values()):
            _tried(next(iter(cells.values())).run, {path: values[0]}, problems)
    if problems:
        raise ConfigError(problems)
    return out


def _tried(run: Run, change: Change, problems: list[str]) -> Run:
    """The changed run; or the same one, with the mistakes added to `problems`."""
    try:
        return override(run, change)
    except ConfigError as error:
        problems += [p for p in error.problems if p not in problems]
        return run


def _changed_seeds(seeds: int | tuple[int, ...], assignments: dict[str, list[Any]]) -> int | tuple[int, ...]:
    values = assignments.get("seed")
    return seeds if values is None else tuple(validate(Run, {"seed": value}).seed for value in values)


def changed_execution(execution: Execution, assignments: dict[str, list[Any]]) -> Execution:
    """With `execution.*` words applied."""
    many = [path for path, values in assignments.items() if len(values) > 1]
    if many:
        raise ConfigError([f"{path}: takes one value; it does not change results, so it is no axis" for path in many])
    changes = {path.removeprefix("execution."): values[0] for path, values in assignments.items()}
    return override(execution, changes, "execution.")


def _changed_arms(arms: tuple[Arm, ...], assignments: dict[str, list[Any]], runs: list[Run]) -> tuple[Arm, ...]:
    """The baseline, and one arm a value that makes a difference to it."""
    if not assignments:
        return arms
    baseline, problems = arms[0], []
    out = [baseline]
    for path, values in assignments.items():
        for value in values:
            changed = [_tried(run, {path: value}, problems) for run in runs]
            if changed != [_tried(run, baseline.changes, problems) for run in runs]:
                known = next((a for a in arms if a.changes == {path: value}), None)
                out.append(known or Arm(str(value), {path: value}, label=str(value)))
    if problems:
        raise ConfigError(problems)
    return tuple(out)


def _misshapen(study: Study) -> list[str]:
    """What makes a study no study, before its parts are looked at."""
    problems = []
    if not re.fullmatch(r"\w[\w.-]*", study.name):
        problems.append(f"name={study.name!r}: it names a folder; use letters, digits, '-', '_' and '.'")
    if not study.cells or not study.arms:
        problems.append("a study needs at least one cell and one arm")
    problems += [
        f"cells: {n!r} is a {type(r).__name__}, not a Run" for n, r in study.cells.items() if type(r) is not Run
    ]
    problems += [f"arms: {a!r} is no Arm" for a in study.arms if not isinstance(a, Arm)]
    follows = study.follows.items() if isinstance(study.follows, dict) else [("", study.follows)]
    problems += [
        f"follows={study.follows!r}: expected cells, as in {{'later': 'sooner'}} or {{'later': ('sooner', 'arm')}}"
        for cell, source in follows
        if not (cell and (isinstance(source, str) or (isinstance(source, tuple) and len(source) == 2)))
    ][:1]
    if isinstance(study.primary, str):
        problems.append(f"primary={study.primary!r}: expected names in a tuple, as in ({study.primary!r},)")
    return problems


def _too_many(study: Study) -> list[str]:
    n_seeds = study.seeds if isinstance(study.seeds, int) else len(study.seeds)
    n = len(study.cells) * len(study.arms) * n_seeds
    return [f"{n} runs; a study has at most {MOST_RUNS}"] if n > MOST_RUNS else []


def _seed_problems(seeds: int | tuple[int, ...]) -> list[str]:
    if isinstance(seeds, int):
        return [] if seeds > 0 else [f"seeds={seeds}: expected a positive number, or the seeds themselves"]
    if not seeds:
        return ["seeds=(): expected a positive number or a list of seeds"]
    problems = []
    for seed in dict.fromkeys(seeds):
        try:
            validate(Run, {"seed": seed})
        except ConfigError as error:
            problems += error.problems
    return problems + [f"seeds: {seed} is there twice" for seed, n in Counter(seeds).items() if n > 1]


def _only_problems(study: Study) -> list[str]:
    """Cells and arms that `only` names and are not there, or arms that no cell has."""
    arms = [a.name for a in study.arms]
    problems = [f"only: no cell {c!r}{nearest(c, list(study.cells))}" for c in study.only if c not in study.cells]
    problems += [
        f"only: {cell} has no arm {name!r}{nearest(name, arms)}"
        for cell, names in study.only.items()
        for name in names
        if name not in arms
    ]
    return problems


def _follow_problems(study: Study) -> list[str]:
    """Cells that go on from what is not there, or from themselves."""
    problems, arms = [], [a.name for a in study.arms]
    for cell in study.follows:
        if cell not in study.cells:
            problems.append(f"follows: no cell {cell!r}{nearest(cell, list(study.cells))}")
            continue
        source, arm = study.source_of(cell, arms[0])
        if source not in study.cells:
            problems.append(
                f"follows: {cell} goes on from {source!r}, which is no cell{nearest(source, list(study.cells))}"
            )
        if arm not in arms:
            problems.append(f"follows: {cell} goes on from arm {arm!r}, which is none{nearest(arm, arms)}")
        if study.cells[cell].init_from is not None:
            problems.append(f"follows: {cell} has an init_from of its own; keep one")
        seen = {cell}
        while source in study.follows and source not in seen:
            seen.add(source)
            source, _ = study.source_of(source, arms[0])
        if source in seen:
            problems.append(f"follows: {cell} goes on from itself, in the end")
    return problems


def _arm_problems(cell: str, run: Run, arms: tuple[Arm, ...]) -> list[str]:
    """Arms that cannot be, and arms that are the same run, which would be compared with itself."""
    problems: list[str] = []
    resulting: dict[str, Run] = {}
    for arm in arms:
        where = f"cell {cell}, arm {arm.name}"
        problems += [
            f"{where}: {path} is the same for all arms of a cell, since their runs are pairs; vary it over cells or seeds"
            for path in arm.changes
            if path.partition(".")[0] in ("data", "seed")
        ]
        try:
            changed = override(run, arm.changes)
        except ConfigError as error:
            problems += [f"{where}: {p}" for p in error.problems]
            continue
        twin = next((name for name, other in resulting.items() if other == changed and name != arm.name), None)
        if twin is not None:
            problems.append(f"{where}: is the same run as arm {twin}; leave one out")
        resulting[arm.name] = changed
    return problems


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
        beside = [p.name for p in path.parent.glob("*.py") if p.is_file()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1)
        raise ConfigError([f"{name}: no such file" + (f"; did you mean {path.parent / close[0]}?" if close else "")])
    try:
        # What a study file prints is for people; stdout may be for a program that reads records.
        with redirect_stdout(sys.stderr):
            found = runpy.run_path(str(path)).get("study")
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise ConfigError([f"{error.filename or path}{where}: {error.msg}"]) from None
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise ConfigError([f"{where}: {problem}" for problem in _said(error)]) from None
    if not isinstance(found, Study):
        raise ConfigError([f"{path}: defines no `study = Study(...)`; docs/guide.md shows one of thirty lines"])
    return found


def _said(error: BaseException) -> list[str]:
    """What went wrong in a study file, a sentence a mistake."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, SystemExit):
        return ["calls sys.exit(); a study file only defines `study`"]
    return [f"{type(error).__name__}: {error}"]
