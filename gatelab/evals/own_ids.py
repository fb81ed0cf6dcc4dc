"""Gatelab's own tasks asked of a run that was trained on them, in their ids: rows, items, and a line a score."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from statistics import fmean

from ..config import ConfigError, Run
from ..models.encoder import Encoder
from ..models.model import Model
from ..record import Item, Row
from ..tasks import Knobs, Task, TaskItem, open_task
from ..tasks.guesses import floor_with_evidence
from ..tasks.metrics import Verdict
from ..tasks.vocabulary import NONE
from .answers import Answer, choice_rows, items_of, load_rows, rows_of, scores_of
from .asking import headline, left_out, why_not
from .deletion import TASK_NOISE
from .found import Found
from .measures import EVIDENCE, TEXTS
from .own_across import ByItem, by_depth, by_length
from .own_asking import PREFIX, PROMPTS, OwnAsking, Prepared, asked_in
from .own_evidence import by_evidence
from .own_found import add, by_item, finished, note_refused
from .own_lines import MAIN, abstention_rows, lines_of, with_interval
from .own_posed import posed_in_ids
from .own_text import Progress
from .reach import reaching
from .tasks import Reader, ask_items, choices, hidden, loads_of, reader_of
from .untrained import Untrained, untrained


def refuse_prompts(prepared: Prepared, title: str) -> None:
    """Refuse what is text, of a run that reads the tasks' ids.

    Raises:
        ConfigError: naming it.
    """
    prompts = [name for name in prepared if asked_in(name) in PROMPTS or name in TEXTS]
    if prompts:
        raise ConfigError(
            [
                f"--tasks {PREFIX}{name}: is text, and {title} reads the ids of tasks; ask {PREFIX}needle and the like"
                for name in prompts
            ]
        )


def evaluate_ids(
    model: Model,
    run: Run,
    title: str,
    asking: OwnAsking,
    prepared: Prepared,
    *,
    progress: Progress = lambda what, n, total: None,
) -> Found:
    """A run that was trained on the tasks' ids, asked in them: at its multiples of the length of training unless stated.

    Raises:
        ValueError: a length, or a model, that cannot be asked.
        ConfigError: --chat, for ids are no words.
    """
    if asking.chat:
        raise ConfigError([f"--chat: {title} reads the ids of tasks, and no words; leave it out"])
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
    beside = Untrained(run.seed, asking.untrained)
    is_answered = any(name not in EVIDENCE for name in prepared)
    fresh = untrained(model, run.seed) if is_answered and beside.is_made(model) else None
    if is_answered and (note := beside.note(model, in_ids=True)):
        found.notes.append(note)
    for name in prepared:
        task = open_task(asked_in(name))
        for length in lengths:
            knobs = [_knobs(run, task, asking, length, depth) for depth in asking.depths]
            if name in EVIDENCE:
                posed = {k.depth: posed_in_ids(task, k, asking.limit) for k in knobs}
                by_evidence(found, reaching(model, length), TASK_NOISE, posed, title, name, length, progress)
                continue
            readers = [reader_of(reaching(m, length), run.resolved_objective) for m in (model, fresh) if m is not None]
            scores: dict[float | None, dict[str, ByItem]] = {}
            for k, depth in zip(knobs, asking.depths, strict=True):
                is_hidden, is_placed = isinstance(model, Encoder), depth is not None
                made = _made(task, k, asking.limit, is_placed=is_placed)
                if not made:
                    found.notes.append(
                        f"{name}: none of {asking.limit} items has evidence at a depth; ask for more (--limit)"
                    )
                    continue
                rows, items, scores[k.depth] = _ask(
                    readers, task, k, made, title, is_hidden=is_hidden, is_placed=is_placed
                )
                if asking.distractors is None:
                    rows += _ask_loads(readers, task, k, asking.limit, title, is_hidden=is_hidden)
                found.rows += rows
                found.records += lines_of(rows)
                found.items += items
            add(found, by_depth(title, name, length, scores))
    add(found, by_length(found.rows))
    note_refused(found)
    return finished(found, title, asking, prepared, None)


def _knobs(run: Run, task: Task, asking: OwnAsking, length: int, depth: float | None) -> Knobs:
    """As asked for; what is not stated, as a run was trained with."""
    data = run.data
    if task.name not in data.names:
        return Knobs(length, depth, asking.distractors, asking.hardness)
    trained = data.knobs_of(task.name)
    return Knobs(
        length,
        trained.depth if depth is None else depth,
        trained.distractors if asking.distractors is None else asking.distractors,
        trained.hardness if asking.hardness is None else asking.hardness,
    )


def _made(task: Task, knobs: Knobs, n_items: int, *, is_placed: bool) -> list[TaskItem]:
    """The items that a run is asked, or, at a depth that is asked for, those that have evidence, beside what copying scores of
    these."""
    made = headline(task.name, knobs, n_items)
    if not is_placed:
        return list(made)
    return [
        replace(item, floor=floor_with_evidence(item.task, item.floor, item.evidence + item.distractors))
        for item in made
        if item.evidence
    ]


def _ask(
    readers: list[Reader],
    task: Task,
    knobs: Knobs,
    made: list[TaskItem],
    run: str,
    *,
    is_hidden: bool,
    is_placed: bool,
) -> tuple[list[Row], list[Item], dict[str, ByItem]]:
    """Of the first reader; the second, where there is one, is the untrained model."""

    def row(metric: str, value: float, unit: str = "share") -> Row:
        return Row(run, 0, "tasks", metric, value, unit, task=task.name, length=knobs.length, depth=knobs.depth)

    items = [hidden(item) for item in made] if is_hidden else made
    answers, chosen = ask_items(readers[0], items), choices(readers[0], items)
    rows = rows_of(answers, task, knobs, run=run, step=0)
    rows += choice_rows(chosen, items, task, knobs, run=run, step=0)
    shares = _shares(answers, chosen, task)
    for metric in shares[0]:
        # The means are there.
        rows += with_interval(row, metric, [s[metric] for s in shares])[1:]
    if task.name == "absent" and not is_placed:
        rows += abstention_rows(row, [(a.given == (NONE,), a.item.answer == (NONE,)) for a in answers])
    rows += [row("items", float(len(items)), "items"), row("items_refused", 0.0, "items")]
    for reader in readers[1:]:
        before = _shares(ask_items(reader, items), choices(reader, items), task)
        rows += [row(f"{metric}_untrained", fmean(s[metric] for s in before)) for metric in before[0]]
    scores = by_item(
        (a.item.index, {m: s[m] for m in MAIN if m in s} | ({"answer_margin": a.margin} if isfinite(a.margin) else {}))
        for a, s in zip(answers, shares, strict=True)
    )
    return rows, items_of(answers, knobs, run=run, step=0), scores


def _shares(answers: Sequence[Answer], chosen: Sequence[Verdict], task: Task) -> list[dict[str, float]]:
    """What each item scores, by metric."""
    return [scores_of(a, task) | {"choice": v.credit} for a, v in zip(answers, chosen, strict=True)]


def _ask_loads(
    readers: list[Reader], task: Task, knobs: Knobs, n_items: int, run: str, *, is_hidden: bool
) -> list[Row]:
    """Items of other numbers of pairs: what is said after each key, with its interval and beside the untrained model."""
    rows: list[Row] = []
    for at in loads_of(task, knobs):
        made = [task.item(at, index) for index in range(n_items)]
        items = [hidden(item) for item in made] if is_hidden else made
        answers = ask_items(readers[0], items)
        rows += load_rows(answers, task, at, run=run, step=0)

        def row(metric: str, value: float, at: Knobs = at) -> Row:
            where = {"task": task.name, "length": at.length, "bin": 1 + at.distractors}
            return Row(run, 0, "tasks", metric, value, "share", **where)

        rows += with_interval(row, "query_accuracy", [scores_of(a, task)["query_accuracy"] for a in answers])[1:]
        for reader in readers[1:]:
            before = [scores_of(a, task)["query_accuracy"] for a in ask_items(reader, items)]
            rows.append(row("query_accuracy_untrained", fmean(before)))
    return rows
