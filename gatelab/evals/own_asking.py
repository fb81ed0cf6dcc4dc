"""Gatelab's own tasks by name: which there are, and what each needs.

Notable: `gatelab/needle` is a task of `gatelab tasks`, `gatelab/ruler/…`, `gatelab/middle/…`, `gatelab/summary/…` and
`gatelab/citations/…` are prompts, `gatelab/found/…` and the like measures of `evals.measures`, and a folder's name stands for what
is in it. What is unknown, or lacks a file, is said before a model is opened.
"""

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from ..config import ConfigError, nearest
from ..data import DataError
from ..data.documents import NotText, documents
from ..data.files import find
from ..tasks import TASKS, Knobs, TaskError, open_task
from ..tasks.cited import CITATIONS
from ..tasks.meetings import SUMMARIES
from ..tasks.middle import MIDDLE
from ..tasks.prompt import PromptTask, Setting, Source
from ..tasks.ruler import RULER
from .harness.local import present, rows_of
from .measures import EVIDENCE, TEXTS

PREFIX = "gatelab/"
PROMPTS = {**RULER, **MIDDLE, **SUMMARIES, **CITATIONS}
FOLDERS = {
    "ruler": tuple(RULER),
    "middle": ("middle/kv", "middle/qa"),
    "summary": tuple(SUMMARIES),
    "citations": ("citations/one", "citations/three"),
    "found": ("found/kv", "found/cite"),
    "deletion": ("deletion/kv", "deletion/cite"),
}
NAMES = (*TASKS, *PROMPTS, *EVIDENCE, *TEXTS, *FOLDERS)
LENGTH = 4096  # in tokens, unless stated
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class OwnAsking:
    """What is asked: `names` without their prefix; lengths in tokens (None: 4096, or the model's positions where
    those are fewer, or those of a run on ids); depths (None:
    anywhere); `limit`: items of each. distractors, hardness: knobs of `gatelab tasks` (None: the task's own, or those that a run on
    ids was trained with). haystack: a file or folder of essays. data_dir: files of questions, NAME.jsonl each. chat: prompts are
    turns of a conversation. text: what is read for its loss; window: LongPPL's short context (None: an eighth of the length);
    keys: a file of its key tokens (None: the model's own). untrained: whether an untrained model is asked, all of it (None: its
    choices, where that is cheap)."""

    names: tuple[str, ...]
    lengths: tuple[int, ...] | None = None
    depths: tuple[float | None, ...] = (None,)
    limit: int = 100
    distractors: int | None = None
    hardness: int | None = None
    layout: str = "spread"
    haystack: Path | None = None
    data_dir: Path | None = None
    chat: bool = False
    text: str = "stdlib"
    window: int | None = None
    keys: Path | None = None
    untrained: bool | None = None


def asked_in(name: str) -> str:
    """The task whose items a name asks: its own, but for the measures of evidence."""
    return EVIDENCE[name][1] if name in EVIDENCE else name


Prepared = dict[str, Setting]  # by name, all but the length and the depth


def prepare(asking: OwnAsking) -> Prepared:
    """Names with what they need, their files read.

    Raises:
        ConfigError: names that are not known, with the nearest; knobs that a task does not take; what a task needs and lacks.
        DataError: files that cannot be read.
        ValueError: a package that a score takes is not installed.
    """
    unknown = [name for name in asking.names if name not in NAMES]
    if unknown:
        near = [nearest(f"{PREFIX}{name}", [f"{PREFIX}{n}" for n in NAMES]) for name in unknown]
        raise ConfigError(
            [
                f"--tasks {PREFIX}{name}: no such task of ours{hint or '; `gatelab tasks` lists them'}"
                for name, hint in zip(unknown, near, strict=True)
            ]
        )
    names = dict.fromkeys(leaf for name in asking.names for leaf in FOLDERS.get(name, (name,)))
    prompts = {name: PROMPTS[asked_in(name)] for name in names if asked_in(name) in PROMPTS}
    needs_essay = any(task.needs == "essay" for task in prompts.values())
    essay = sentences(asking.haystack) if asking.haystack is not None and needs_essay else ()
    settings, problems = {}, _of_texts(asking, [name for name in names if name in TEXTS])
    # What would change nothing is refused.
    if asking.haystack is not None and not needs_essay:
        problems.append(f"{', '.join(names)}: no haystack of essays; leave --haystack out")
    if asking.layout != "spread" and not set(names) & set(RULER):
        problems.append(f"{', '.join(names)}: --layout {asking.layout} is of RULER's tasks alone; leave it out")
    for knob, value in (("distractors", asking.distractors), ("hardness", asking.hardness)):
        if value is not None and prompts:
            named = f", {PREFIX}".join(prompts)
            problems.append(f"{named}: {knob}={value}, and text of others has no such knob; leave --{knob} out")
    for name in names:
        setting = Setting(layout=asking.layout, essay=essay)
        try:
            if name in prompts:
                setting = replace(setting, held=_held(prompts[name], asking.data_dir))
            for depth in asking.depths if name not in TEXTS else ():
                if name in prompts:
                    prompts[name].check(replace(setting, depth=depth))
                else:
                    open_task(asked_in(name)).resolved(
                        Knobs(depth=depth, distractors=asking.distractors, hardness=asking.hardness)
                    )
        except TaskError as error:
            problems.append(str(error))
        settings[name] = setting
    if asking.untrained and all(name in EVIDENCE or name in TEXTS for name in names):
        problems.append(f"{', '.join(names)}: no score beside which an untrained model stands; leave --untrained out")
    if problems:
        raise ConfigError([f"{PREFIX}{problem}" for problem in problems])
    absent = {name: task.package for name, task in prompts.items() if task.package and find_spec(task.package) is None}
    if absent:
        said = ", ".join(f"{PREFIX}{name} needs {package}" for name, package in absent.items())
        raise ValueError(f"{said}: pip install 'gatelab[eval]'")
    return settings


def _of_texts(asking: OwnAsking, names: list[str]) -> list[str]:
    """What is asked of texts, and is not for them."""
    given = {
        "depths": asking.depths != (None,),
        "distractors": asking.distractors is not None,
        "hardness": asking.hardness is not None,
        "chat": asking.chat,
    }
    problems = [f"{name}: reads texts as they are; leave --{w} out" for name in names for w in given if given[w]]
    if asking.keys is not None and asking.window is not None:
        problems.append(f"long_ppl: --window {asking.window}, and --keys was chosen with its own; leave one out")
    if asking.keys is not None and asking.lengths is not None:
        problems.append("long_ppl: --keys has its own length; leave --lengths out")
    shortest = min(asking.lengths or (LENGTH,))
    if asking.window is not None and asking.window + max(1, asking.window // 4) >= shortest:
        problems.append(
            f"long_ppl: --window {asking.window} of texts of {shortest} tokens leaves none with a longer context; take a smaller "
            "one, or longer texts"
        )
    if names and not problems:
        # A text or a key set that is not there is told before a model is opened.
        find((asking.text,))
        if asking.keys is not None:
            from .own_reading import read_keys

            read_keys(asking.keys)
    return problems


def sentences(path: Path) -> tuple[str, ...]:
    """The sentences of a text file, or of all text files of a folder.

    Raises:
        DataError: it cannot be read, or holds no text.
    """
    found: list[str] = []
    for file in find((str(path),)):
        try:
            texts = [document.decode() for document in documents(file, "text")]
        except NotText:
            if file.named:
                raise
            continue
        found += [s for text in texts for s in _SENTENCE_END.split(" ".join(text.split())) if s]
    if not found:
        raise DataError(f"--haystack {path}: holds no text; name a file or a folder of plain text")
    return tuple(found)


def _held(task: PromptTask, data_dir: Path | None) -> object:
    if not task.sources or data_dir is None:
        return ()
    # What can be drawn is read where a file of it is there.
    if not task.needs and all(_present(source, data_dir) is None for source in task.sources):
        return ()
    paths = [_path(task.name, source, data_dir) for source in task.sources]
    said = " and ".join(map(str, paths))
    fields = ", ".join(field for source in task.sources for field in source.fields)
    try:
        held = task.read(*(rows_of(path, source.fields) for path, source in zip(paths, task.sources, strict=True)))
    except TaskError as error:
        raise DataError(f"{said}: {error}") from None
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{said}: its {fields} are not as docs/eval.md has them ({type(error).__name__}: {error})"
        ) from None
    if not held:
        raise DataError(f"{said}: holds no question; expected JSON lines with {fields}")
    return held


def _path(name: str, source: Source, data_dir: Path) -> Path:
    """The first of the files that a source may be.

    Raises:
        TaskError: none is there.
    """
    path = _present(source, data_dir)
    if path is None:
        files = [f"{own}.jsonl" for own in source.names]
        others = "".join(f", nor {file}" for file in files[1:])
        raise TaskError(
            f"{name}: no file {data_dir / files[0]}{others}; expected JSON lines with {', '.join(source.fields)}"
        )
    return path


def _present(source: Source, data_dir: Path) -> Path | None:
    return next((path for name in source.names if (path := present(data_dir, f"{name}.jsonl"))), None)
