"""The harness's definitions of tasks, and those of a folder: each of the harness's is included by a file of a few lines that names
local files in the place of a hub's.

Notable: prompts, metrics, filters and groups stay the harness's own. Its whole index takes half a minute to read, so it
is read only for a name that is nowhere else.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from .benchmarks import BENCHMARKS, GENERATED
from .brought import place_files
from .local import present

ROOT = Path(lm_eval.tasks.__file__).parent
RULER = "ruler"  # offline the tag of those of its thirteen that need no file
_SPLITS = ("training_split", "validation_split", "test_split")


def known(metadata: dict[str, Any]) -> TaskManager:
    """The harness's own definitions of the benchmarks that have files here or need none."""
    return _manager([*_folders(), *{(ROOT / path).parent for path in GENERATED}], metadata)


def everything(metadata: dict[str, Any]) -> TaskManager:
    """All of the harness's definitions."""
    return TaskManager(metadata=metadata)


def offline(
    folder: Path, draft: Path, shots: int | None, metadata: dict[str, Any]
) -> tuple[TaskManager, dict[str, list[str]]]:
    """The benchmarks with the files of a folder, the tasks that the harness generates, and the folder's own YAML files, which
    win; and of each task what it lacks, in sentences. Files are not read here.

    Args:
        draft: an empty folder to write definitions into, needed until tasks are loaded.
    """
    index = _manager(_folders(), {}).task_index.values()
    by_path = {entry.yaml_path.resolve(): entry for entry in index if entry.yaml_path}  # a tag has no file
    lacking: dict[str, list[str]] = {}
    for name, benchmark in BENCHMARKS.items():
        for path in ROOT.glob(benchmark.definitions):
            entry = by_path.get(path.resolve())
            if entry is None:
                continue
            lines: dict[str, Any] = {"include": str(path)}
            if "group" not in entry.cfg:
                stated = entry.cfg.get("num_fewshot")
                # The harness leaves a task alone that is defined with none.
                n = stated if shots is None or stated == 0 else shots
                local, lacking[entry.name] = _local(entry.cfg, name, folder, n or 0)
                lines |= local
            _write(draft / f"{name}-{path.stem}.yaml", lines)
    for path in GENERATED:
        _write(draft / path.replace("/", "-"), {"include": str(ROOT / path), "tag": [RULER]})
    manager = _manager([draft, folder], metadata)
    return manager, lacking | place_files(manager, folder, draft)


def is_tag(manager: TaskManager, name: str) -> bool:
    """Whether a name stands for tasks that are not scored together."""
    entry = manager.task_index.get(name)
    return entry is not None and entry.cfg is None


def leaves(manager: TaskManager, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and definition of every task that a name stands for: itself, or those of a group or of a tag."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    if entry.cfg is not None and "group" in entry.cfg:
        for member in entry.cfg.get("task") or ():
            word = member if isinstance(member, str) else member.get("task") or member.get("group")
            if isinstance(word, str):
                yield from leaves(manager, word)
    elif entry.cfg is None:
        for member in sorted(entry.tags):
            yield from leaves(manager, member)
    else:
        yield name, entry.cfg


def _folders() -> list[Path]:
    return sorted({(ROOT / b.definitions).parent for b in BENCHMARKS.values()})


def _manager(folders: list[Path], metadata: dict[str, Any]) -> TaskManager:
    return TaskManager(include_path=list(folders), include_defaults=False, metadata=metadata)


def _local(config: dict[str, Any], name: str, folder: Path, shots: int) -> tuple[dict[str, Any], list[str]]:
    """What a definition of a benchmark says differently of a folder's files, and which of them are not there."""
    benchmark = BENCHMARKS[name]
    stated = {key: config.get(key) for key in _SPLITS}
    evaluated = stated["test_split"] or stated["validation_split"]
    wanted, drawn, said = {evaluated: "its items"}, None, []
    if shots and not config.get("fewshot_config", {}).get("samples"):
        # The harness would fall back on the items that are evaluated, each perhaps its own shot.
        others = [s for s in (config.get("fewshot_split"), *stated.values()) if s and s != evaluated]
        drawn = next((s for s in others if present(folder, benchmark.file(s))), next(iter(others), None))
        if drawn is None:
            said.append(
                f"{config['task']}: has no split but the one that is evaluated, so no shots; leave out --shots {shots}"
            )
        else:
            wanted[drawn] = f"its {shots} shots"
    there = {split: present(folder, benchmark.file(split)) for split in wanted}
    files = {split: str(path) for split, path in there.items() if path}
    said += [
        f"{folder / benchmark.file(split)}: no such file, which would hold {what}; expected JSON lines with "
        f"{', '.join(benchmark.fields)}"
        for split, what in wanted.items()
        if split not in files
    ]
    local = {
        "custom_dataset": "!function gatelab.evals.harness.local.local_dataset",
        "dataset_kwargs": {
            "files": files,
            "fields": list(benchmark.fields),
            "column": benchmark.column,
            "value": config.get("dataset_name") if benchmark.column else None,
            "benchmark": name,
        },
        **{key: split if split in files else None for key, split in stated.items()},
        "fewshot_split": drawn,
    }
    return local, said


def _write(path: Path, lines: dict[str, Any]) -> None:
    """YAML of a definition; JSON is YAML, but for the harness's tag of a function."""
    said = {k: v if isinstance(v, str) and v.startswith("!function") else json.dumps(v) for k, v in lines.items()}
    path.write_text("".join(f"{key}: {value}\n" for key, value in said.items()), encoding="utf-8")
