"""Study: cells × arms × seeds, as a value. Every comparison in it is paired by construction.

A study file is a Python file that defines `study = Study(...)`; `load_study` finds built-in ones by name and others by
path. Nothing in this file reads data or plans; see plan.py.
"""

import difflib
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import ConfigError, Execution, Run, nearest
from ..config.base import explain
from ..store import of_pack
from .arm import Arm, label_of
from .changes import changed, changed_execution
from .problems import problems_of

__all__ = ["Arm", "Study", "built_in", "changed_execution", "label_of", "load_study"]


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
        problems = problems_of(self)
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
            return tuple(self.arms)
        return tuple(self.arms[:1]) + tuple(a for a in self.arms[1:] if a.name in self.only[cell])

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
        return changed(self, assignments)


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
    if said := of_pack(path):
        raise ConfigError([said])
    if name and name not in known and path.is_dir():
        raise ConfigError(
            [f"{name}: holds no study (no study.json); name the folder that `gatelab run` wrote to, or a Python file"]
        )
    if name not in known and path.suffix != ".py" and path.is_file():
        raise ConfigError([f"{name}: is no Python file (….py); docs/guide.md shows a study file of thirty lines"])
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
        with redirect_stdout(sys.stderr), _neighbours(path.parent, is_ours=name in known):
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


@contextmanager
def _neighbours(folder: Path, *, is_ours: bool) -> Iterator[None]:
    """Let a study file import the modules beside it, as `python study.py` does; afterwards the path is as it was, and another
    folder may have modules of these names."""
    if is_ours:
        yield
        return
    path, loaded, there = [*sys.path], {*sys.modules}, folder.resolve()
    sys.path.insert(0, str(there))
    try:
        yield
    finally:
        sys.path[:] = path
        # Of those that came from there, and of no environment that may lie there too: torch cannot be loaded twice.
        for name in {*sys.modules} - loaded:
            of = getattr(sys.modules[name], "__file__", None)
            inside = len(name.split(".")) + (Path(of).name == "__init__.py" if of else 0)
            if of and not name.startswith("gatelab.") and Path(of).parents[inside - 1 : inside] == (there,):
                del sys.modules[name]


def _said(error: BaseException) -> list[str]:
    """What went wrong in a study file, a sentence a mistake."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, SystemExit):
        return ["calls sys.exit(); a study file only defines `study`"]
    return [f"{type(error).__name__}: {error}"]
