"""The tasks: what each measures and mirrors, what guessing would score, an example; and items of one of them."""

from itertools import count
from statistics import fmean
from typing import Any

from ..config import ConfigError

Record = dict[str, Any]

_LENGTH = 128  # of the items that examples are taken from
_ITEMS = 64  # over which what guessing scores is averaged


def task_records() -> list[Record]:
    """One record a task.

    `choice` is the share of right choices among the options of an item by chance, `exact` that of exact matches of tokens
    of the right kind, drawn at random, both of item 0, as of every other; `copying` is that of answers copied blindly out of the
    item, its mean over 64 items.
    """
    from ..tasks import TASKS, Knobs, open_task
    from ..tasks.options import chance_of, options_of

    records = []
    for name in TASKS:
        task = open_task(name)
        items = [task.item(Knobs(length=_LENGTH), index) for index in range(_ITEMS)]
        records.append(
            {
                "name": name,
                "what": task.what,
                "mirrors": task.mirrors,
                "choice": 1 / len(options_of(items[0])),
                "exact": chance_of(items[0]),
                "copying": fmean(item.floor for item in items),
                "hardness": f"{task.hardness} ({task.levels[0]} to {task.levels[-1]}; {task.default_hardness})",
                "distractors": "as many as fit" if task.distractors is None else task.distractors,
                "answer": task.answer,
                "signal": task.signal,
                "example": _example(name),
            }
        )
    return records


def task_items(name: str, given: dict[str, Any], n_items: int) -> list[Record]:
    """Items 0 … n_items − 1 of a task, as tokens and as text; `given` are knobs: length, depth, distractors, hardness, seed.

    Raises:
        ConfigError: no such task or knob, with the nearest; a value that the task does not take.
    """
    from ..tasks import TaskError, open_task
    from ..tasks.options import chance_of, options_of
    from ..tasks.text import as_text

    knobs = _knobs(given)
    records = []
    try:
        task = open_task(name)
        for index in range(n_items):
            item = task.item(knobs, index)
            text = as_text(task, item)
            records.append(
                {
                    "task": name,
                    "item": index,
                    "text": text.text,
                    "answers": [text.text[start:end].strip() for start, end in text.answers],
                    "evidence": [text.text[start:end] for start, end in text.evidence],
                    "n_distractors": len(text.distractors),
                    "depth": item.depth,
                    "choice": 1 / len(options_of(item)),
                    "exact": chance_of(item),
                    "copying": item.floor,
                    "tokens": list(item.tokens),
                    "asked": list(item.asked),
                    "answer_tokens": list(item.answer),
                    "evidence_tokens": [list(span) for span in item.evidence],
                    "distractor_tokens": [list(span) for span in item.distractors],
                }
            )
    except TaskError as error:
        raise ConfigError([str(error)]) from None
    return records


def _knobs(given: dict[str, Any]) -> Any:
    from ..config import nearest
    from ..tasks import Knobs

    whole = ("length", "distractors", "hardness", "seed")
    allowed = [*whole, "depth"]
    problems = []
    for name, value in given.items():
        wanted = "a number from 0 to 1" if name == "depth" else "a whole number from 0"
        kinds = (int, float) if name == "depth" else (int,)
        if name not in allowed:
            problems.append(f"{name}: no such knob; allowed here: {', '.join(allowed)}{nearest(name, allowed)}")
        elif isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
            problems.append(f"{name}={value!r}: expected {wanted}")
    if problems:
        raise ConfigError(problems)
    return Knobs(**given)


def _example(name: str) -> str:
    """What matters of an item: the evidence, the question, and the answer behind an arrow."""
    from ..tasks import Knobs, open_task
    from ..tasks.text import as_text

    task = open_task(name)
    # The first that has evidence: some tasks ask for what the text does not say, too.
    items = (task.item(Knobs(length=_LENGTH), index) for index in count())
    text = as_text(task, next(item for item in items if item.evidence))
    asked, until = text.answers[0]
    question = text.text[:asked].rpartition(task.join if task.join == "\n" else ". ")[2]
    question = question if len(question) <= 60 else f"…{question[-40:]}"
    seen = [text.text[start:end] for start, end in text.evidence]
    before = f"{' … '.join(seen[:3])} … " if seen and len(seen[0]) > 4 else ""
    return f"{before}{question} → {text.text[asked:until].strip()}"
