"""Names of tasks that stand in none of the harness's definitions, found by looking through their text: nothing of it is imported,
whose index takes half a minute to make."""

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from ...config import ConfigError, nearest
from ...tasks import TASKS
from ...tasks.cited import CITATIONS
from ...tasks.meetings import SUMMARIES
from ...tasks.middle import MIDDLE
from ...tasks.ruler import RULER

_NAMED = re.compile(rb"^\s*-?\s*(?:task|group|tag)\s*:\s*[\"']?([\w.\-]+)", re.MULTILINE)


def check_words(names: Iterable[str]) -> None:
    """That no task is named by a file.

    Raises:
        ConfigError: a line a name.
    """
    wrong = []
    for name in names:
        if name.endswith((".jsonl", ".json", ".jsonl.gz", ".csv", ".parquet")):
            wrong.append(
                f"--tasks {name}: is a file of items, and a task says what to ask of them; write a YAML file of the harness's kind "
                "that names it, put it into a folder for --data-dir, and give --tasks its `task` (docs/eval.md, A task of your own)"
            )
        elif name.endswith((".yaml", ".yml")):
            wrong.append(
                f"--tasks {name}: is a file; name the folder that holds it with --data-dir, and give --tasks the `task` that it "
                "says (docs/eval.md, A task of your own)"
            )
    if wrong:
        raise ConfigError(wrong)


def check_spelling(names: Sequence[str]) -> None:
    """Refuse files, and names that no definition has; one that passes may still be no task's.

    Raises:
        ConfigError: a line a name, with the nearest.
    """
    check_words(names)
    unknown, defined = dict.fromkeys(names), set()
    for text in _definitions():
        for name in [name for name in unknown if name.encode() in text]:
            del unknown[name]
        defined.update(found.decode() for found in _NAMED.findall(text))
        if not unknown:
            return
    raise ConfigError(unknown_names(list(unknown), sorted(defined)))


def unknown_names(names: Sequence[str], known: list[str], where: str = "the harness", allowed: str = "") -> list[str]:
    """What is said of names that are not among those that are known."""
    ours = {name: f"; of ours write gatelab/{name}" for name in (*TASKS, *RULER, *MIDDLE, *SUMMARIES, *CITATIONS)}
    return [f"--tasks {name}: is not in {where}{ours.get(name) or nearest(name, known) or allowed}" for name in names]


def _definitions() -> Iterator[bytes]:
    spec = find_spec("lm_eval")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        # Some that others include end in `_yaml`.
        for path in Path(folder, "tasks").rglob("*yaml"):
            yield path.read_bytes()
