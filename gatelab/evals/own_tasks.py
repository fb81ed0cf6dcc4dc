"""Gatelab's own tasks asked of a model, in words or as ids: rows, items, and a line a score.

Notable: a run that was trained on the tasks' own ids is asked in them, anything else in the words of its tokenizer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import isfinite
from statistics import fmean
from typing import Any

from torch import nn

from ..config import ConfigError, Run
from ..models.decoder import Decoder
from ..models.encoder import Encoder
from ..models.external import External
from ..models.model import Model
from ..record import Item, Row
from ..tasks import Knobs, Task, TaskItem, open_task
from ..tasks.guesses import floor_with_evidence
from ..tasks.metrics import Verdict
from ..tasks.papers import PaperQuestions
from ..tasks.prompt import PromptTask, words_of
from ..tasks.vocabulary import NONE
from .asking import headline, left_out, why_not
from .deletion import TASK_NOISE
from .found import Found
from .harness.external import ExternalPasses
from .harness.own import OwnPasses
from .harness.passes import Passes
from .harness.tokens import Tokens
from .measures import EVIDENCE, TEXTS
from .own_across import ByItem, by_depth, by_length
from .own_asking import LENGTH, PREFIX, PROMPTS, OwnAsking, Prepared, asked_in
from .own_evidence import by_evidence
from .own_lines import MAIN, abstention_rows, lines_of, with_interval
from .own_posed import noise_of, posed_in_ids, posed_in_words
from .own_reading import by_reading
from .own_text import Progress, ask_prompts, asked_again, check_length, items_of_said, rows_of_said, untrained_rows
from .reach import reaching
from .tasks import (
    Answer,
    Reader,
    ask_items,
    choice_rows,
    choices,
    hidden,
    items_of,
    load_rows,
    loads_of,
    reader_of,
    rows_of,
    scores_of,
)
from .untrained import ITEMS, Untrained, untrained


def evaluate_text(
    opened: External,
    asking: OwnAsking,
    prepared: Prepared,
    *,
    batch_size: int = 8,
    new_tokens: int | None = None,
    seed: int = 0,
    progress: Progress = lambda what, n, total: None,
) -> Found:
    """A language model asked in words, in its own tokens; `seed` is that of the untrained one beside it.

    Raises:
        ValueError: a model that predicts no next token, or has too few positions.
        TaskError: a length that no item can have.
    """
    passes = _passes(opened.model)
    tokens = Tokens(opened.tokenizer, passes.n_ids)
    said_of_chat = f"as a turn of the user, chat template {tokens.chat_rule}" if asking.chat else "no chat template"
    found = Found([], [], [], [f"{tokens.rule}; {said_of_chat}", *opened.notes])
    if passes.max_tokens is None:
        found.notes.append("the model does not say how many positions it has, so every length is asked")
    if asking.keys is None or not set(prepared) <= set(TEXTS):
        asking = _with_lengths(asking, passes.max_tokens, found)
    found.notes += [
        f"{PREFIX}{name}: {held.n_left_out} of {held.n_left_out + len(held)} questions left out, whose evidence is no paragraph"
        for name, held in ((name, base.held) for name, base in prepared.items())
        if isinstance(held, PaperQuestions) and held.n_left_out
    ]
    found.notes += [
        f"{PREFIX}{name}: the pairs of the file in --data-dir, {1 + len(base.held[0].others)} in its first item, and none drawn"
        for name, base in prepared.items()
        if base.held and asked_in(name).startswith("middle/kv")
    ]
    knobs = Knobs(distractors=asking.distractors, hardness=asking.hardness)
    beside = Untrained(seed, asking.untrained)
    is_answered = any(name not in EVIDENCE and name not in TEXTS for name in prepared)
    fresh = _passes(untrained(opened.model, seed)) if is_answered and beside.is_made(opened.model) else None
    if is_answered and (note := beside.note(opened.model)):
        found.notes.append(note)
    for name, base in prepared.items():
        n_items = min(asking.limit, len(base.held)) if base.held else asking.limit
        for length in () if name in TEXTS else asking.lengths or ():
            tasks = {depth: _task(asked_in(name), knobs, length, depth) for depth in asking.depths}
            at = {depth: replace(base, length=length, depth=depth) for depth in asking.depths}
            if name in EVIDENCE:
                posed = {
                    depth: posed_in_words(
                        tokens, passes.max_tokens, task, at[depth], n_items, chat=asking.chat, progress=progress
                    )
                    for depth, task in tasks.items()
                }
                by_evidence(found, opened.model, noise_of(tokens), posed, opened.name, name, length, progress)
                continue
            scores: dict[float | None, dict[str, ByItem]] = {}
            for depth, task in tasks.items():
                said = ask_prompts(
                    passes, tokens, task, at[depth], n_items, batch_size=batch_size, new_tokens=new_tokens,
                    chat=asking.chat, progress=progress,
                )  # fmt: skip
                rows = rows_of_said(said, task, at[depth], run=opened.name)
                if fresh is not None:
                    writes = bool(beside.is_whole)
                    again = asked_again(
                        fresh, tokens, task, said if writes else said[:ITEMS], batch_size=batch_size, writes=writes,
                        progress=progress,
                    )  # fmt: skip
                    rows += untrained_rows(again, task, at[depth], run=opened.name, writes=writes)
                scores[depth] = _by_item(
                    (s.index, s.scores(task.metric) | ({"choice_margin": s.margin} if isfinite(s.margin) else {}))
                    for s in said
                    if s.prompt is not None
                )
                found.rows += rows
                found.records += lines_of(rows)
                found.items += items_of_said(said, task, at[depth], run=opened.name)
            _add(found, by_depth(opened.name, name, length, scores))
    _add(found, by_length(found.rows))
    texts = [name for name in prepared if name in TEXTS]
    if texts:
        by_reading(found, passes.asked, tokens, opened.name, asking, texts, progress)
    _note_refused(found)
    return _finished(found, opened.name, asking, prepared, new_tokens)


def _with_lengths(asking: OwnAsking, max_tokens: int | None, found: Found) -> OwnAsking:
    """With lengths stated: the model's positions where none are asked for and it has fewer than LENGTH, which is noted.

    Raises:
        ValueError: a length beyond the positions.
    """
    if asking.lengths is not None:
        for length in asking.lengths:
            check_length(f"{PREFIX}{asking.names[0]}", length, max_tokens)
        return asking
    length = LENGTH if max_tokens is None else min(LENGTH, max_tokens)
    if length < LENGTH:
        found.notes.append(f"asked at {length} tokens, all that the model has positions for, no --lengths being given")
    return replace(asking, lengths=(length,))


def _passes(model: nn.Module) -> Passes:
    return OwnPasses(model) if isinstance(model, Decoder) else ExternalPasses(model)


def _by_item(scores: Iterable[tuple[int, dict[str, float]]]) -> dict[str, ByItem]:
    """{metric: {item: score}}"""
    out: dict[str, ByItem] = {}
    for index, of in scores:
        for metric, value in of.items():
            out.setdefault(metric, {})[index] = value
    return out


def _add(found: Found, more: tuple[list[Row], list[dict[str, Any]]]) -> None:
    found.rows += more[0]
    found.records += more[1]


def _task(name: str, knobs: Knobs, length: int, depth: float | None) -> PromptTask:
    return PROMPTS[name] if name in PROMPTS else words_of(open_task(name), knobs, length=length, depth=depth)


def _note_refused(found: Found) -> None:
    """A sentence a task of which items were refused, with the first reason."""
    reasons: dict[str, list[str]] = {}
    for item in found.items:
        if "refused" in item.factors:
            reasons.setdefault(item.task, []).append(item.factors["refused"])
    for name, said in reasons.items():
        n = f"{len(said)} items" if len(said) > 1 else "1 item"
        found.notes.append(f"{PREFIX}{name}: {n} refused, as in: {said[0]}")


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
            _add(found, by_depth(title, name, length, scores))
    _add(found, by_length(found.rows))
    _note_refused(found)
    return _finished(found, title, asking, prepared, None)


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
    scores = _by_item(
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


def _finished(found: Found, title: str, asking: OwnAsking, prepared: Prepared, new_tokens: int | None) -> Found:
    stated = {"distractors": asking.distractors, "hardness": asking.hardness}
    if any(value is not None for value in stated.values()):
        found.notes.append(
            "our tasks with " + ", ".join(f"{knob}={value}" for knob, value in stated.items() if value is not None)
        )
    found.about = {
        "model": title,
        "notes": found.notes,
        "packages": {package: version(package) for package in ("gatelab", "torch")},
        "gatelab": {
            "tasks": list(prepared),
            "lengths": sorted({row.length for row in found.rows if row.length is not None}),
            "depths": list(asking.depths),
            "limit": asking.limit,
            **stated,
            "layout": asking.layout,
            "haystack": None if asking.haystack is None else str(asking.haystack),
            "new_tokens": new_tokens,
            "chat": asking.chat,
            "text": asking.text,
            "window": asking.window,
            "keys": None if asking.keys is None else str(asking.keys),
            "untrained": asking.untrained,
        },
    }
    return found
