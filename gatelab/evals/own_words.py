"""Gatelab's own tasks asked of a model in the words of its tokenizer: rows, items, and a line a score.

Notable: a run that was trained on the tasks' own ids is asked in them instead (own_ids.py).
"""

from dataclasses import replace
from math import isfinite

from ..models.external import External
from ..tasks import Knobs, open_task
from ..tasks.in_words import words_of
from ..tasks.papers import PaperQuestions
from ..tasks.prompt import PromptTask
from .found import Found
from .harness.external import passes_of
from .harness.tokens import Tokens
from .measures import EVIDENCE, TEXTS
from .own_across import ByItem, by_depth, by_length
from .own_asking import LENGTH, PREFIX, PROMPTS, OwnAsking, Prepared, asked_in
from .own_evidence import by_evidence
from .own_found import add, by_item, finished, note_refused
from .own_lines import lines_of
from .own_posed import noise_of, posed_in_words
from .own_reading import by_reading
from .own_rows import items_of_said, rows_of_said, untrained_rows
from .own_text import Progress, ask_prompts, asked_again, check_length
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
    passes = passes_of(opened.model)
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
    fresh = passes_of(untrained(opened.model, seed)) if is_answered and beside.is_made(opened.model) else None
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
                scores[depth] = by_item(
                    (s.index, s.scores(task.metric) | ({"choice_margin": s.margin} if isfinite(s.margin) else {}))
                    for s in said
                    if s.prompt is not None
                )
                found.rows += rows
                found.records += lines_of(rows)
                found.items += items_of_said(said, task, at[depth], run=opened.name)
            add(found, by_depth(opened.name, name, length, scores))
    add(found, by_length(found.rows))
    texts = [name for name in prepared if name in TEXTS]
    if texts:
        by_reading(found, passes.asked, tokens, opened.name, asking, texts, progress)
    note_refused(found)
    return finished(found, opened.name, asking, prepared, new_tokens)


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


def _task(name: str, knobs: Knobs, length: int, depth: float | None) -> PromptTask:
    return PROMPTS[name] if name in PROMPTS else words_of(open_task(name), knobs, length=length, depth=depth)
