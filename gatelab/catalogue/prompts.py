"""The tasks of `gatelab eval` that are text alone: what each needs, what guessing scores, an example; and items of one, made
without a tokenizer. And the measures.

Notable: lengths count words and marks here, where a model's tokenizer counts its own. What a user's file would hold is made up,
and said to be.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..config import ConfigError, nearest

if TYPE_CHECKING:
    from ..tasks.prompt import Prompt, PromptTask, Setting

Record = dict[str, Any]

LENGTH = 1024  # words and marks of an item, the answer's budget among them, unless stated
# What is scored, by metric, where tokens of the right kind cannot be told.
_SCORED = {
    "rouge_l": "ROUGE-L",
    "best_subspan_em": "an answer found in it",
    "found": "an answer found in it",
}


def prompt_tasks() -> "dict[str, PromptTask]":
    """By name, as they are listed."""
    from ..tasks.cited import CITATIONS
    from ..tasks.meetings import SUMMARIES
    from ..tasks.middle import MIDDLE
    from ..tasks.ruler import RULER

    return {**RULER, **MIDDLE, **SUMMARIES, **CITATIONS}


def prompt_records() -> list[Record]:
    """One record a task.

    `choice`, `exact` and `copying` are what guessing scores in item 0, the last two by the task's own score (`metric`), and None
    where that is not known; `no_chance` says then why there is no level of chance.
    """
    return [_record(task) for task in prompt_tasks().values()]


def measure_records() -> list[Record]:
    """One record a measure."""
    from ..evals.measures import ASKED, MEASURES

    return [
        {
            "name": measure.name if measure.of == "text" else f"{measure.name}/…",
            "what": measure.what,
            "mirrors": measure.mirrors,
            "needs": "a text: the standard library, or --text"
            if measure.of == "text"
            else f"one of {', '.join(ASKED)}",
        }
        for measure in MEASURES.values()
    ]


def prompt_items(name: str, given: dict[str, Any], n_items: int) -> list[Record]:
    """Items 0 … n_items − 1; `given` are length, depth, seed and layout.

    Raises:
        ConfigError: no such knob, with the nearest; a value that the task does not take, or more items than made-up records have.
    """
    from ..tasks import TaskError
    from ..tasks.made_up import filled

    task = prompt_tasks()[name]
    setting = filled(task, _setting(given))
    if task.needs == "rows" and n_items > len(setting.held):
        n = len(setting.held)
        raise ConfigError([f"--items={n_items}: {name} is shown on {n} made-up questions; ask for at most as many"])
    try:
        task.check(setting)
        return [_item(task, setting, index) for index in range(n_items)]
    except TaskError as error:
        raise ConfigError([str(error)]) from None


def _record(task: "PromptTask") -> Record:
    from ..tasks.made_up import filled
    from ..tasks.prompt import Setting

    prompt = _made(task, filled(task, Setting(length=LENGTH)), 0)
    return {
        "name": task.name,
        "what": task.what,
        "mirrors": task.mirrors,
        "needs": {
            "": f"nothing; or --data-dir, with {task.sources[0].names[0]}.jsonl" if task.sources else "nothing",
            "essay": "--haystack FILE",
            "rows": f"--data-dir, with {' and '.join(f'{source.names[0]}.jsonl' for source in task.sources)}",
        }[task.needs],
        "metric": task.metric,
        **_guesses(task, prompt),
        "is_made_up": bool(task.needs),
        "files": _files(task),
        "example": _example(prompt),
    }


def _item(task: "PromptTask", setting: "Setting", index: int) -> Record:
    from ..tasks.prompt import words_in

    prompt = _made(task, setting, index)
    return {
        "task": task.name,
        "item": index,
        "text": prompt.whole,
        "answers": list(prompt.references or (a.strip() for a in prompt.answers)),
        "evidence": [prompt.whole[start:end] for start, end in prompt.evidence],
        "n_distractors": len(prompt.distractors),
        "depth": prompt.depth,
        "n_words": len(words_in(prompt.whole)),
        "metric": task.metric,
        **_guesses(task, prompt),
        "is_made_up": bool(task.needs),
        "files": _files(task),
    }


def _made(task: "PromptTask", setting: "Setting", index: int) -> "Prompt":
    from ..tasks.prompt import fitted_prompt, words_in

    return fitted_prompt(task, setting, index, lambda text: len(words_in(text)))


def _guesses(task: "PromptTask", prompt: "Prompt") -> Record:
    is_known = prompt.floor is not None
    return {
        "choice": 1 / len(prompt.options) if prompt.options else None,
        "exact": prompt.chance if is_known else None,
        "copying": prompt.floor,
        "no_chance": "" if is_known else f"no chance level: generated text, {_SCORED[task.metric]}",
    }


def _files(task: "PromptTask") -> dict[str, str]:
    """A made-up line of each file."""
    from ..tasks.made_up import RECORDS

    names = [source.names[0] for source in task.sources]
    return {f"{name}.jsonl": json.dumps(RECORDS[name][0], ensure_ascii=False) for name in names}


def _example(prompt: "Prompt") -> str:
    """What matters of an item: the evidence, the end of what is read, and the answer behind an arrow."""
    seen = list(dict.fromkeys(_short(prompt.whole[start:end], 90) for start, end in prompt.evidence))[:2]
    asked = prompt.read().rstrip().replace("\n", " ")
    return " … ".join([*seen, f"{asked[-60:]} → {_short(prompt.answers[-1].strip(), 60)}"])


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _setting(given: dict[str, Any]) -> "Setting":
    from ..tasks.prompt import LAYOUTS, Setting

    allowed = {
        "length": ("a whole number from 1", lambda v: type(v) is int and v >= 1),
        "seed": ("a whole number from 0", lambda v: type(v) is int and v >= 0),
        "depth": ("a number from 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1),
        "layout": (" or ".join(LAYOUTS), lambda v: v in LAYOUTS),
    }
    problems = []
    for name, value in given.items():
        if name not in allowed:
            near = nearest(name, list(allowed))
            problems.append(f"{name}: no such knob of a task of text alone; allowed here: {', '.join(allowed)}{near}")
        elif not allowed[name][1](value):
            problems.append(f"{name}={value!r}: expected {allowed[name][0]}")
    if problems:
        raise ConfigError(problems)
    return Setting(**{"length": LENGTH} | given)


def refusal_of(name: str, others: Iterable[str]) -> str:
    """Why no items of a name can be shown: it is a folder, a measure, the harness's, or nothing."""
    from ..evals.harness.benchmarks import BENCHMARKS, is_benchmark
    from ..evals.measures import EVIDENCE, TEXTS

    own = [*others, *prompt_tasks()]
    if inside := [n for n in own if n.startswith(f"{name}/")]:
        return f"{name} is {len(inside)} tasks: {', '.join(inside)}; name one of them"
    if name in EVIDENCE or name in TEXTS:
        of = f"items of {EVIDENCE[name][1]}" if name in EVIDENCE else "a text"
        return f"{name} is a measure, taken on {of}: gatelab eval MODEL --tasks gatelab/{name}"
    if is_benchmark(name):
        ours = nearest(name, own).replace("did you mean", "the nearest of ours is").rstrip("?")
        return f"{name} is the harness's: gatelab eval MODEL --tasks {name}{ours}"
    return f"no task {name!r}: expected one of {', '.join(own)}{nearest(name, [*own, *BENCHMARKS])}"
