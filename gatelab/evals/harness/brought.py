"""Tasks that a folder brings in YAML files of its own: where their rows lie, and which row makes no item.

Notable: the harness looks a relative file up in the working directory alone, says nothing of which row its templates failed on, and
counts an item whose label is none of its choices as answered wrongly.
"""

import glob
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from ...data import DataError

# Readers of `datasets` whose data_files are files, and not names in a repository.
_OF_FILES = ("json", "csv", "text", "parquet", "arrow")
_SPLITS = ("test_split", "validation_split")


def place_files(manager: TaskManager, folder: Path, draft: Path) -> dict[str, list[str]]:
    """Let the tasks of a folder's YAML files read their files from beside these, else from `folder`, else from the working
    directory; returns of each task what is in none of them, in sentences. Definitions that say so are written into `draft`."""
    lacking: dict[str, list[str]] = {}
    for name, entry in manager.task_index.items():
        cfg, path = entry.cfg or {}, entry.yaml_path
        if path is None or not path.resolve().is_relative_to(folder.resolve()):
            continue
        given = cfg.get("dataset_kwargs")
        if cfg.get("dataset_path") not in _OF_FILES or not isinstance(given, dict) or "data_files" not in given:
            continue
        places = list(dict.fromkeys([path.parent.resolve(), folder.resolve(), Path.cwd()]))
        absent: list[str] = []
        placed = _placed(given["data_files"], places, absent)
        lacking[name] = [
            f"{path}: its data_files name {word!r}, which is not in {' or '.join(map(str, places))}; put it beside the YAML file"
            for word in absent
        ]
        if placed != given["data_files"]:
            made = draft / f"placed-{len(lacking)}.yaml"
            lines = {"include": str(path.resolve()), "task": name, "dataset_kwargs": given | {"data_files": placed}}
            made.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in lines.items()), encoding="utf-8")
            manager.task_index[name] = replace(entry, yaml_path=made, cfg=cfg | lines)
    return lacking


def check_labels(tasks: dict[str, ConfigurableTask]) -> None:
    """Whether the label of every row is one of its choices, of tasks whose rows are in files that a YAML file names.

    Raises:
        DataError: the first that is not, by its file and row.
    """
    for name, task in tasks.items():
        if (
            not task.config.custom_dataset
            and task.OUTPUT_TYPE == "multiple_choice"
            and (problem := wrong_row(name, task))
        ):
            raise DataError(problem)


def wrong_row(name: str, task: ConfigurableTask) -> str:
    """A sentence on the first row of which a task's templates make no item, or whose label is none of its choices; else empty."""
    for number, row in enumerate(task.task_docs, 1):
        try:
            asked, right = task.doc_to_text(row), task.doc_to_target(row)
            choices = task.doc_to_choice(row) if task.config.doc_to_choice is not None else None
        except Exception as error:  # whatever a definition's templates and functions raise
            reason = str(error).partition("\n")[0]
            return f"{_where(name, task, number)}: {type(error).__name__}: {reason}; correct the row, or the task's YAML file"
        label = asked if task.multiple_input else right
        if task.OUTPUT_TYPE == "multiple_choice" and choices is not None and not _is_choice(label, choices):
            return (
                f"{_where(name, task, number)}: its label {label!r} is none of its {len(choices)} choices (numbered 0 to "
                f"{len(choices) - 1}); correct the row, or doc_to_target in the task's YAML file"
            )
    return ""


def task_of(error: BaseException) -> ConfigurableTask | None:
    """The task that was being made as an error was raised, where it has its rows already."""
    found, trace = None, error.__traceback__
    while trace is not None:
        made = trace.tb_frame.f_locals.get("self")
        if isinstance(made, ConfigurableTask) and hasattr(made, "multiple_target"):
            found = made
        trace = trace.tb_next
    return found


def _is_choice(label: Any, choices: list[Any]) -> bool:
    if isinstance(label, list):
        return bool(label) and all(_is_choice(one, choices) for one in label)
    return 0 <= label < len(choices) if isinstance(label, int) else label in choices


def _where(name: str, task: ConfigurableTask, number: int) -> str:
    """A row by its file where there is one, and rows are not chosen among by a function."""
    config = task.config
    split = next((s for s in (getattr(config, key) for key in _SPLITS) if s), None)
    files = (config.dataset_kwargs or {}).get("data_files")
    files = files.get(split) if isinstance(files, dict) else files
    files = [files] if isinstance(files, str) else list(files or [])
    what = "row" if config.process_docs is None else "item"
    return f"{files[0]}, {what} {number} of {name}" if len(files) == 1 else f"{name}, {what} {number} of its {split}"


def _placed(files: Any, places: list[Path], absent: list[str]) -> Any:
    """`data_files` with every relative file at the first place that has it; `absent` are added those that none has."""
    if isinstance(files, dict):
        return {split: _placed(of, places, absent) for split, of in files.items()}
    if isinstance(files, list | tuple):
        return [_placed(one, places, absent) for one in files]
    word = str(files)
    if "://" in word:
        return word
    word = os.path.expanduser(word)
    found = next((place / word for place in places if glob.glob(str(place / word), recursive=True)), None)
    if found is None:
        absent.append(word)
    return word if found is None else str(found)
