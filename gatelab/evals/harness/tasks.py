"""Tasks by their names, from the hub or wholly offline; what is unknown, unsafe or lacks a file is said before anything runs."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import evaluate as hf_evaluate
from lm_eval.tasks import TaskManager

from ...config import ConfigError
from ...data import DataError
from . import definitions
from .benchmarks import BENCHMARKS
from .brought import check_labels, task_of, wrong_row
from .local import rows_of
from .quiet import quiet
from .sandbox import CodeEval
from .spelling import check_words, unknown_names
from .strict import make_strict

_SEED = 1234  # the harness's own, of the shots that are drawn


@dataclass(frozen=True)
class Asking:
    """What is asked: `names` of tasks, groups or tags; `data_dir`: a folder of files, and no hub; `shots`: worked examples before
    an item (None: as each task has it); `runs_code`: code that a model writes may be run; `lengths`: of RULER's contexts."""

    names: tuple[str, ...]
    data_dir: Path | None = None
    shots: int | None = None
    runs_code: bool = False
    lengths: tuple[int, ...] = (4096,)


@dataclass
class Loaded:
    """Tasks as the harness loads them, `notes` that a reader of their scores should know, and what became of code."""

    tasks: dict[str, Any]
    groups: dict[str, Any]
    group_map: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)
    code: CodeEval | None = None


def find(asking: Asking, tell: Callable[[str], None], *, draft: Path, tokenizer: Path) -> TaskManager:
    """The definitions, with every name known, allowed, and its files there.

    Args:
        draft: an empty folder for definitions, needed until they are loaded.
        tokenizer: a folder with the model's tokenizer, for items that the harness generates.

    Raises:
        ConfigError: names that are not known, code that may not be run.
        DataError: files that are not there, or hold what no item can be made of.
    """
    check_words(asking.names)
    lacking: dict[str, list[str]] = {}
    metadata = {"tokenizer": str(tokenizer), "max_seq_lengths": list(asking.lengths)}
    folder = asking.data_dir
    if folder is not None:
        if not folder.is_dir():
            raise DataError(f"--data-dir {folder}: no such folder; name one that holds a folder a benchmark")
        manager, lacking = definitions.offline(folder, draft, asking.shots, metadata)
    else:
        manager = definitions.known(metadata)
        if any(name not in manager.task_index for name in asking.names):
            tell("reading the harness's whole index of tasks, which takes half a minute")
            manager = definitions.everything(metadata)
    _check_names(asking, manager)
    found = [leaf for name in asking.names for leaf in definitions.leaves(manager, name)]
    unsafe = list(dict.fromkeys(name for name, config in found if config.get("unsafe_code")))
    if unsafe and not asking.runs_code:
        raise ConfigError(
            [f"{', '.join(unsafe)}: runs the code that the model writes; allow that with --run-code, or leave it out"]
        )
    missing = dict.fromkeys(said for name, _ in found for said in lacking.get(name, ()))
    if missing:
        raise DataError("\n".join(missing))
    _check_rows(config.get("dataset_kwargs") or {} for _, config in found)
    return manager


def load(asking: Asking, manager: TaskManager) -> Loaded:
    """The tasks, which read their items, with shots set and ties made wrong.

    Raises:
        DataError: items that cannot be read or had, or do not fit a task's prompts.
        ValueError: a task needs a package that is not installed.
    """
    found = [leaf for name in asking.names for leaf in definitions.leaves(manager, name)]
    code = CodeEval() if any(config.get("unsafe_code") for _, config in found) else None
    with quiet(), _own_code_eval(code):
        try:
            made = manager.load(list(asking.names))
        except DataError:
            raise
        except ImportError as error:
            raise ValueError(
                f"{', '.join(asking.names)}: {str(error).partition(chr(10))[0]} (pip install 'gatelab[eval]')"
            ) from None
        except (OSError, ConnectionError) as error:
            raise DataError(
                f"{', '.join(asking.names)}: items are not to be had ({str(error).partition(chr(10))[0]}); name a folder of files "
                "with --data-dir"
            ) from None
        except Exception as error:  # whatever a definition's templates and functions raise of a row
            raise _unfit(_failing(manager, [name for name, _ in found]), error) from error
    if code is not None:
        code.outcomes.clear()  # the harness tries it on a program of its own
    if asking.data_dir is not None:
        check_labels(made["tasks"])
    loaded = Loaded(made["tasks"], made.get("groups", {}), made.get("group_map", {}), code=code)
    fixed = []
    for name, task in loaded.tasks.items():
        stated = task.get_config("num_fewshot")
        if asking.shots is not None and stated == 0 and asking.shots:
            fixed.append(name)
        else:
            task.set_config(key="num_fewshot", value=(stated or 0) if asking.shots is None else asking.shots)
        task.set_fewshot_seed(seed=_SEED)
        make_strict(task)
        task.build_all_requests = partial(_built, name, task, task.build_all_requests)
    if fixed:
        some = ", ".join(fixed[:3]) + (" …" if len(fixed) > 3 else "")
        loaded.notes.append(f"{some}: defined with 0 shots, so --shots {asking.shots} is not for it")
    return loaded


def _check_rows(files: Iterable[dict[str, Any]]) -> None:
    """Read the files of benchmarks once each.

    Raises:
        DataError: a line that will not do.
    """
    seen = dict.fromkeys((path, f["benchmark"]) for f in files if "benchmark" in f for path in f["files"].values())
    for path, name in seen:
        rows_of(Path(path), BENCHMARKS[name].fields, BENCHMARKS[name].check)


def _built(name: str, task: Any, build: Callable[..., None], **how: Any) -> None:
    """The harness's requests of a task, which are made of templates and a definition's own functions."""
    try:
        build(**how)
    except Exception as error:
        raise _unfit(name, error, task) from error


def _failing(manager: TaskManager, names: list[str]) -> str:
    """The first task that cannot be loaded by itself, or all of them."""
    for name in names:
        try:
            manager.load([name])
        except Exception:
            return name
    return ", ".join(names)


def _unfit(name: str, error: Exception, task: Any = None) -> DataError:
    """What is wrong with the items of a task, or with the one that was being made: a row, where one can be named."""
    task = task or task_of(error)
    if task is not None and (problem := wrong_row(task.config.task, task)):
        return DataError(problem)
    reason = str(error).partition("\n")[0]
    return DataError(
        f"{name}: its items cannot be made ({type(error).__name__}: {reason}); correct its file, or its definition"
    )


def _check_names(asking: Asking, manager: TaskManager) -> None:
    unknown = [name for name in asking.names if name not in manager.task_index]
    if not unknown:
        return
    every = sorted(manager.task_index)
    where = "the harness" if asking.data_dir is None else f"what can be read offline from {asking.data_dir}"
    allowed = "" if asking.data_dir is None else f"; there are {', '.join(definitions.BENCHMARKS)} and their parts"
    raise ConfigError(unknown_names(unknown, every, where, allowed))


@contextmanager
def _own_code_eval(code: CodeEval | None) -> Iterator[None]:
    """The harness asks `evaluate` for what runs code; it gets ours, whose limits hold."""
    if code is None:
        yield
        return
    # A module that was loaded before holds what it asked for then.
    for name in [m for m in sys.modules if m.startswith("lm_eval.tasks.") and m.endswith("utils")]:
        del sys.modules[name]
    before = hf_evaluate.load

    def load_metric(path: str, *given: Any, **named: Any) -> Any:
        return code if path == "code_eval" else before(path, *given, **named)

    hf_evaluate.load = load_metric
    try:
        yield
    finally:
        hf_evaluate.load = before
