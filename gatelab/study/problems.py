"""What is wrong with a study, a sentence a mistake."""

import re
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Any

from ..config import ConfigError, Execution, Run, nearest, override, validate
from .arm import Arm
from .metrics import choose

if TYPE_CHECKING:
    from .study import Study

# A plan of more runs takes minutes to make and to look at.
MOST_RUNS = 20_000
# What a field is made of, and how one is written.
_FIELDS = {
    "name": (str, "a word, which names a folder"),
    "question": (str, "a sentence or two"),
    "cells": (dict, "Runs by name, as in {'toy': run}"),
    "arms": ((tuple, list), "arms in a tuple, as in (Arm('none', {'model.gate': 'none'}),)"),
    "seeds": ((int, tuple, list, range), "a positive number, or a tuple of seeds"),
    "match_unit": (int, "1 or more"),
    "equivalence": (dict, "numbers by metric, as in {'val_loss': 0.01}"),
    "about": (dict, "sentences by cell, as in {'toy': 'A toy.'}"),
    "only": (dict, "arms by cell, as in {'toy': ('none', 'gated')}"),
    "execution": (Execution, "an Execution"),
}


def problems_of(study: "Study") -> list[str]:
    """Every mistake; of what is no study at all that alone."""
    problems = _of_other_kinds(study) or _misshapen(study) or _too_many(study) or _misnamed(study)
    if problems:
        return problems
    names = [a.name for a in study.arms]
    problems += [f"arms: {n!r} is there twice" for n in sorted(set(names)) if names.count(n) > 1]
    if study.match not in (None, "model.d_ff"):
        problems.append(f"match={study.match!r}: expected 'model.d_ff' or None")
    if study.match_unit < 1:
        problems.append(f"match_unit={study.match_unit}: expected 1 or more")
    problems += _seed_problems(study.seeds)
    problems += [f"about: no cell {n!r}{nearest(n, list(study.cells))}" for n in study.about if n not in study.cells]
    problems += _only_problems(study) or _follow_problems(study)
    for cell, run in study.cells.items():
        problems += _arm_problems(cell, run, study.arms_of(cell))
    try:
        choose(study.primary, study.equivalence)
    except ConfigError as error:
        problems += error.problems
    return problems


def _of_other_kinds(study: "Study") -> list[str]:
    """Fields that hold a value of a kind which they cannot hold."""
    problems = []
    for name, (kind, expected) in _FIELDS.items():
        value = getattr(study, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            problems.append(f"{name}={_short(value)}: expected {expected}")
    return problems


def _short(value: Any) -> str:
    """How a value is written, or what it is where that takes a line of its own."""
    said = repr(value)
    return said if len(said) < 60 else f"({type(value).__name__})"


def _misnamed(study: "Study") -> list[str]:
    """Names that are none; cells and arms of which cell/arm/seed names two runs."""
    names = [("cells", name) for name in study.cells] + [("arms", a.name) for a in study.arms]
    problems = [
        f"{field}: {name!r} is no name; use a word of printed letters"
        for field, name in names
        if not isinstance(name, str) or not name.isprintable() or name != name.strip() or not name
    ]
    problems += [
        f"arms: the changes of {a.name!r} are {_short(a.changes)}; expected values by key, as in {{'model.gate': 'none'}}"
        for a in study.arms
        if not isinstance(a.changes, dict)
    ]
    if problems:
        return problems
    said = Counter("/".join(pair) for pair in product(study.cells, dict.fromkeys(a.name for a in study.arms)))
    return [f"cells and arms: {label!r} names two of them; rename one" for label, n in said.items() if n > 1]


def _misshapen(study: "Study") -> list[str]:
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


def _too_many(study: "Study") -> list[str]:
    n_seeds = study.seeds if isinstance(study.seeds, int) else len(study.seeds)
    n = len(study.cells) * len(study.arms) * n_seeds
    return [f"{n} runs; a study has at most {MOST_RUNS}"] if n > MOST_RUNS else []


def _seed_problems(seeds: int | tuple[int, ...]) -> list[str]:
    if isinstance(seeds, int):
        return [] if seeds > 0 else [f"seeds={seeds}: expected {_FIELDS['seeds'][1]}"]
    if not seeds:
        return [f"seeds=(): expected {_FIELDS['seeds'][1]}"]
    problems = [f"seeds: {s!r} is no whole number" for s in seeds if not isinstance(s, int) or isinstance(s, bool)]
    if problems:
        return problems
    for seed in dict.fromkeys(seeds):
        try:
            validate(Run, {"seed": seed})
        except ConfigError as error:
            problems += error.problems
    return problems + [f"seeds: {seed} is there twice" for seed, n in Counter(seeds).items() if n > 1]


def _only_problems(study: "Study") -> list[str]:
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


def _follow_problems(study: "Study") -> list[str]:
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
