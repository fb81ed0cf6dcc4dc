"""Gatelab's own tasks asked of a model, in words or as ids: rows, items, and a line a score.

Notable: a run that was trained on the tasks' own ids is asked in them, anything else in the words of its tokenizer.
"""

from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version

from ..config import ConfigError, Run
from ..models.decoder import Decoder
from ..models.encoder import Encoder
from ..models.external import External
from ..models.model import Model
from ..record import Row
from ..tasks import Knobs, open_task
from ..tasks.prompt import words_of
from .asking import left_out, why_not
from .found import Found
from .harness.external import ExternalPasses
from .harness.own import OwnPasses
from .harness.tokens import Tokens
from .own_asking import PREFIX, PROMPTS, OwnAsking, Prepared
from .own_text import Progress, ask_prompts, items_of_said, rows_of_said
from .reach import reaching
from .tasks import ask_items, choice_rows, choices, hidden, items_of, reader_of, rows_of

_LENGTHS = (4096,)  # of text, unless stated
_SCORES = ("exact_match", "found", "best_subspan_em", "choice")


def evaluate_text(
    opened: External,
    asking: OwnAsking,
    prepared: Prepared,
    *,
    batch_size: int = 8,
    new_tokens: int | None = None,
    progress: Progress = lambda what, n, total: None,
) -> Found:
    """A language model asked in words, in its own tokens.

    Raises:
        ValueError: a model that predicts no next token, or has too few positions.
        TaskError: a length that no item can have.
    """
    passes = OwnPasses(opened.model) if isinstance(opened.model, Decoder) else ExternalPasses(opened.model)
    tokens = Tokens(opened.tokenizer, passes.n_ids)
    found = Found([], [], [], [f"{tokens.rule}; no chat template", *opened.notes])
    if passes.max_tokens is None:
        found.notes.append("the model does not say how many positions it has, so every length is asked")
    knobs = Knobs(distractors=asking.distractors, hardness=asking.hardness)
    for name, base in prepared.items():
        refused: dict[str, int] = {}
        for length in asking.lengths or _LENGTHS:
            for depth in asking.depths:
                setting = replace(base, length=length, depth=depth)
                task = (
                    PROMPTS[name] if name in PROMPTS else words_of(open_task(name), knobs, length=length, depth=depth)
                )
                n_items = min(asking.limit, len(base.held)) if base.held else asking.limit
                said = ask_prompts(
                    passes,
                    tokens,
                    task,
                    setting,
                    n_items,
                    batch_size=batch_size,
                    new_tokens=new_tokens,
                    progress=progress,
                )
                found.rows += rows_of_said(said, task, setting, run=opened.name)
                found.items += items_of_said(said, task, setting, run=opened.name)
                for problem in (s.problem for s in said if s.problem is not None):
                    refused[problem] = refused.get(problem, 0) + 1
        if refused:
            found.notes.append(f"{PREFIX}{name}: {sum(refused.values())} items refused, as in: {next(iter(refused))}")
    return _finished(found, opened.name, asking, prepared, new_tokens)


def refuse_prompts(prepared: Prepared, title: str) -> None:
    """Refuse what is text, of a run that reads the tasks' ids.

    Raises:
        ConfigError: naming it.
    """
    prompts = [name for name in prepared if name in PROMPTS]
    if prompts:
        raise ConfigError(
            [
                f"--tasks {PREFIX}{name}: is text, and {title} reads the ids of tasks; ask {PREFIX}needle and the like"
                for name in prompts
            ]
        )


def evaluate_ids(model: Model, run: Run, title: str, asking: OwnAsking, prepared: Prepared) -> Found:
    """A run that was trained on the tasks' ids, asked in them: at its multiples of the length of training unless stated.

    Raises:
        ValueError: a length, or a model, that cannot be asked.
    """
    found = Found([], [], [], ["asked in the ids of the tasks, on which it was trained"])
    lengths = asking.lengths
    if lengths is None:
        found.notes += left_out(model, run)
        lengths = tuple(
            t * run.train.seq_len for t in run.ask.times if why_not(model, run, t * run.train.seq_len) is None
        )
    reasons = [why_not(model, run, length) for length in lengths] or [why_not(model, run, run.train.seq_len)]
    if problem := next((reason for reason in reasons if reason), None):
        raise ValueError(f"{title}: cannot be asked: {problem}")
    for name in prepared:
        data, task = run.data, open_task(name)
        for length in lengths:
            reader = reader_of(reaching(model, length), run.resolved_objective)
            for depth in asking.depths:
                knobs = Knobs(length, depth, asking.distractors, asking.hardness)
                if name in data.names:
                    knobs = Knobs(
                        length,
                        data.depth if depth is None else depth,
                        data.distractors if asking.distractors is None else asking.distractors,
                        data.hardness if asking.hardness is None else asking.hardness,
                    )
                made = [task.item(knobs, index) for index in range(asking.limit)]
                items = [hidden(item) for item in made] if isinstance(model, Encoder) else made
                answers = ask_items(reader, items)
                found.rows += rows_of(answers, task, knobs, run=title, step=0)
                found.rows += choice_rows(choices(reader, items), items, task, knobs, run=title, step=0)
                counted = {"items": len(items), "items_refused": 0}
                found.rows += [
                    Row(title, 0, "tasks", metric, float(n), "items", task=name, length=length, depth=knobs.depth)
                    for metric, n in counted.items()
                ]
                found.items += items_of(answers, knobs, run=title, step=0)
    return _finished(found, title, asking, prepared, None)


def _finished(found: Found, title: str, asking: OwnAsking, prepared: Prepared, new_tokens: int | None) -> Found:
    stated = {"distractors": asking.distractors, "hardness": asking.hardness}
    if any(value is not None for value in stated.values()):
        found.notes.append(
            "our tasks with " + ", ".join(f"{knob}={value}" for knob, value in stated.items() if value is not None)
        )
    found.records = list(_records(found.rows))
    found.about = {
        "model": title,
        "notes": found.notes,
        "packages": {package: version(package) for package in ("gatelab", "torch")},
        "gatelab": {
            "tasks": list(prepared),
            "lengths": sorted({row.length for row in found.rows}),
            "depths": list(asking.depths),
            "limit": asking.limit,
            **stated,
            "layout": asking.layout,
            "haystack": None if asking.haystack is None else str(asking.haystack),
            "new_tokens": new_tokens,
        },
    }
    return found


def _records(rows: Iterable[Row]) -> Iterable[dict[str, object]]:
    """A line a score: what guessing and blind copying score beside it, and what was counted."""
    groups: dict[tuple[str, int, float | None], dict[str, float]] = {}
    for row in rows:
        groups.setdefault((row.task, row.length, row.depth), {})[row.metric] = row.value
    for (task, length, depth), of in groups.items():
        for metric in [m for m in _SCORES if m in of] or ["none"]:
            is_choice = metric == "choice"
            yield {
                "task": f"{PREFIX}{task}",
                "metric": metric,
                "length": length,
                "depth": depth,
                "value": of.get(metric),
                "chance": of.get("choice_chance" if is_choice else "answer_chance"),
                "copying": None if is_choice else of.get("answer_floor"),
                "margin": of.get("choice_margin") if is_choice else of.get("answer_margin"),
                "items": int(of["items"]),
                "refused": int(of["items_refused"]),
                "tied": of.get("choice_ties" if is_choice else "answer_ties"),
                "not finite": of.get("choice_nan" if is_choice else "answer_nan"),
            }
