"""What `key=value` words make of a study: some of its cells and arms, other seeds, arms, cells or execution."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from shlex import quote
from typing import TYPE_CHECKING, Any

from ..config import Change, ConfigError, Execution, Run, accepts, cross, keys, nearest, override, validate, vary
from .arm import Arm
from .problems import MOST_RUNS

if TYPE_CHECKING:
    from .study import Study


def changed(study: "Study", assignments: dict[str, list[Any]]) -> "Study":
    """As `Study.changed`."""
    if "cell" in assignments:
        rest = {path: values for path, values in assignments.items() if path != "cell"}
        return replace(study, **_chosen(study, [str(name) for name in assignments["cell"]])).changed(rest)
    if "arm" in assignments:
        rest = {path: values for path, values in assignments.items() if path != "arm"}
        arms = _chosen_arms(study, [str(name) for name in assignments["arm"]])
        return replace(study, arms=arms, only=_only(study, arms)).changed(rest)
    known = {path for arm in study.arms for path in arm.changes}
    if "model.gate" in known:
        known.add("model.preset")  # a name for what these arms are
    of_execution = {p: v for p, v in assignments.items() if p.startswith("execution.")}
    of_arms = {p: v for p, v in assignments.items() if p in known}
    of_cells = {p: v for p, v in assignments.items() if p not in {"seed", *of_execution, *of_arms}}
    cells = {name: _Cell(name, run) for name, run in study.cells.items()}
    fields: dict[str, Any] = {}
    problems = _of_several_texts(study, of_cells)
    try:
        cells = _changed_cells(_changed_cells(cells, of_cells, kinds=True), of_cells, kinds=False)
    except ConfigError as error:
        problems += error.problems
    for name, make in (
        ("seeds", lambda: _changed_seeds(study.seeds, assignments)),
        ("execution", lambda: changed_execution(study.execution, of_execution)),
        ("arms", lambda: _changed_arms(study.arms, of_arms, [cell.run for cell in cells.values()])),
    ):
        try:
            fields[name] = make()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    kept = {"about": study.about, "only": _only(study, fields["arms"])}
    fields |= {
        key: {name: of[cell.origin] for name, cell in cells.items() if cell.origin in of} for key, of in kept.items()
    }
    if study.follows and set(cells) != set(study.cells):
        split = ", ".join(path for path, values in of_cells.items() if len(values) > 1)
        raise ConfigError([f"{split}: takes one value, since cells of this study go on from one another"])
    return replace(study, cells={name: cell.run for name, cell in cells.items()}, **fields)


def _chosen(study: "Study", names: list[str]) -> dict[str, Any]:
    """The fields of a study that tell of its cells, of those that are named."""
    there = list(study.cells)
    example = quote(f"cell={there[0][:3].rstrip()}*")
    problems = [
        f"cell={name}: no such cell; expected some of {', '.join(there)}, as in {example}{nearest(name, there)}"
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


def _chosen_arms(study: "Study", names: list[str]) -> tuple[Arm, ...]:
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


def _only(study: "Study", arms: tuple[Arm, ...]) -> dict[str, tuple[str, ...]]:
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


def _of_several_texts(study: "Study", assignments: dict[str, list[Any]]) -> list[str]:
    """Words that would have cells of different texts, by the paths that are their own, read one."""
    problems = []
    for path in ("data.paths", "data.val_paths"):
        texts: dict[tuple[str, ...], list[str]] = {}
        for name, run in study.cells.items():
            if accepts(run, path) and run.data.kind == "text":
                texts.setdefault(getattr(run.data, path.removeprefix("data.")), []).append(name)
        if path in assignments and len(texts) > 1:
            own = "; ".join(f"{','.join(paths)} of {_shown(names)}" for paths, names in texts.items())
            first = next(iter(study.cells)).split()[0]
            problems.append(
                f"{path}={assignments[path][0]}: cells of this study are of different texts ({own}); choose those that this one is"
                f" of, as in 'cell={first}*', and give the others a command and an --out of their own"
            )
    return problems


def _shown(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


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
