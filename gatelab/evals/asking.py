"""What a run on tasks is asked (`config.ask`): each of its tasks, at multiples of the length of training and at eleven depths.

Notable: several pieces stand side by side at a depth and are strewn in training, so of a task that has them, means over all items
are of strewn ones, and others are asked beside for what is told by depth. Items are the same for every run, so those of common
lengths are made once a process. A member of a stack is asked by itself, of weights that are a view of the stack's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from ..config import Run, Tasks
from ..models.model import Model
from ..record import Item, Row
from ..tasks import Knobs, TaskError, TaskItem, open_task
from ..tasks.metrics import N_BINS
from ..tasks.task import LONGEST
from .answers import Answer, items_of, load_rows, rows_of
from .reach import reaching
from .tasks import Reader, ask_items, hidden, loads_of, reader_of

# Tokens of the items that are kept from one look to the next: of many tasks and lengths so many each, of few four times as many;
# more are made anew.
_KEPT = 2**18
_BY_DEPTH = ("exact_match", "answer_margin")
# Objectives in which an answer is predicted where it is asked.
_ASKABLE = ("next-token", "answers", "continuation")


def asked(model: Model, run: Run, *, fingerprint: str, step: int, is_whole: bool) -> tuple[list[Row], list[Item]]:
    """Rows of source `tasks` and items, of every task of the run's data.

    Args:
        is_whole: at all of `run.ask.times` and in every `stretch`; else at the length of training alone, and nothing beside.
    """
    rows: list[Row] = []
    items: list[Item] = []
    times = [t for t in run.ask.times if is_whole or t == 1]
    lengths = [run.train.seq_len * t for t in times if why_not(model, run, run.train.seq_len * t) is None]
    for length in lengths:
        for stretch in run.ask.stretch if length > run.train.seq_len else ("none",):
            trained = run.train.seq_len if stretch == "yarn" else None
            reader = reader_of(reaching(model, length, trained=trained), run.resolved_objective)
            for name in run.data.names:
                if _no_room(run.data, name, length) is not None:
                    continue
                knobs = _knobs(run.data, name, length)
                made = _questions(name, knobs, run.ask.items, run.resolved_objective.kind)
                answers = ask_items(reader, made if is_whole else made[: run.ask.items])
                where = {} if trained is None else {"intervention": stretch, "dose": length / trained}
                found = _rows(answers, knobs, run.ask.items, fingerprint=fingerprint, step=step)
                if is_whole and length == run.train.seq_len:
                    found += _by_load(reader, name, knobs, run, fingerprint, step)
                rows += [replace(row, **where) for row in found]
                items += list(_items(answers, knobs, run.ask.items, where, run=fingerprint, step=step))
    return rows, items


def left_out(model: Model, run: Run) -> list[str]:
    """What is asked of the run and cannot be, a sentence a reason."""
    lengths = [run.train.seq_len * t for t in run.ask.times]
    reasons: dict[str, list[int]] = {}
    for length in lengths:
        if (reason := why_not(model, run, length)) is not None:
            reasons.setdefault(reason, []).append(length)
            continue
        for name in run.data.names:
            if (reason := _no_room(run.data, name, length)) is not None:
                reasons.setdefault(reason, []).append(length)
    return [f"not asked at {', '.join(f'{n:,}' for n in many)} tokens: {reason}" for reason, many in reasons.items()]


def why_not(model: Model, run: Run, length: int) -> str | None:
    """Why items of a length are not asked of a run; None where they are."""
    objective = run.resolved_objective
    if objective.kind not in _ASKABLE:
        return f"the objective {objective.kind!r} does not say answers where they are asked"
    longest = max(n for n in objective.lengths(length) if n is not None)
    if model.config.positions == "learned" and longest > model.config.max_seq_len:
        return f"learned positions for {model.config.max_seq_len} tokens (model.max_seq_len)"
    if length > LONGEST:
        return f"an item has at most {LONGEST:,} tokens"
    return None


@lru_cache(maxsize=1024)
def _no_room(data: Tasks, name: str, length: int) -> str | None:
    """Why a task has no items of a length: where all is pieces, a long one has more than there are ids."""
    knobs = _knobs(data, name, length)
    try:
        open_task(name).item(replace(knobs, depth=_depth(name, knobs, 0, 1)), 0)
    except TaskError as error:
        return f"{name}: {error}"
    return None


def _knobs(data: Tasks, name: str, length: int) -> Knobs:
    return Knobs(length, **data.knobs_of(name).stated())


def _depth(name: str, knobs: Knobs, index: int, n_items: int) -> float | None:
    """Where item `index` has its evidence: as stated; else one piece at eleven depths in turn, and several strewn, those that are
    asked beside the first `n_items` at eleven depths in turn."""
    if not _is_spread(name, knobs):
        return knobs.depth
    at = index - n_items if _is_strewn(name, knobs) else index
    return at % N_BINS / (N_BINS - 1) if at >= 0 else None


def _is_spread(name: str, knobs: Knobs) -> bool:
    return knobs.depth is None and open_task(name).has_depth


@lru_cache(maxsize=1024)
def _is_strewn(name: str, knobs: Knobs) -> bool:
    """Whether a depth would put several pieces side by side that are strewn without one."""
    return _is_spread(name, knobs) and open_task(name).item(knobs, 0).n_together > 1


def _n_beside(name: str, knobs: Knobs, n_items: int) -> int:
    """How many items are asked beside `n_items`, for what is told by depth: half as many, of each depth one at least."""
    return max(n_items // 2, min(n_items, N_BINS)) if _is_strewn(name, knobs) else 0


def headline(name: str, knobs: Knobs, n_items: int) -> tuple[TaskItem, ...]:
    """Items 0 … n_items − 1 as a run is asked them, those that its means over all items are of: their evidence lies as it does in
    training, one piece at eleven depths in turn and several strewn, but where the knobs state a depth."""
    return _numbered(name, knobs, range(n_items), n_items)


def _numbered(name: str, knobs: Knobs, indices: range, n_items: int) -> tuple[TaskItem, ...]:
    task = open_task(name)
    return tuple(task.item(replace(knobs, depth=_depth(name, knobs, i, n_items)), i) for i in indices)


def questions(run: Run, name: str, length: int) -> Sequence[TaskItem]:
    """The items of a task and length that a run is asked, by number; from `run.ask.items` on those that are asked beside."""
    return _questions(name, _knobs(run.data, name, length), run.ask.items, run.resolved_objective.kind)


def _questions(name: str, knobs: Knobs, n_items: int, objective: str) -> Sequence[TaskItem]:
    n_tokens = n_items * knobs.length
    make = _kept_items if n_tokens <= _KEPT else _kept_long_items if n_tokens <= 4 * _KEPT else _made_items
    items = make(name, knobs, n_items)
    return [hidden(item) for item in items] if objective == "answers" else items


def _made_items(name: str, knobs: Knobs, n_items: int) -> tuple[TaskItem, ...]:
    return _numbered(name, knobs, range(n_items + _n_beside(name, knobs, n_items)), n_items)


_kept_items = lru_cache(maxsize=32)(_made_items)
_kept_long_items = lru_cache(maxsize=4)(_made_items)


def _rows(answers: Sequence[Answer], knobs: Knobs, n_items: int, *, fingerprint: str, step: int) -> list[Row]:
    """Means over the first `n_items`; and by depth, with the coordinates `bin` and `depth`, over those that have evidence there."""
    task = open_task(answers[0].item.task)
    rows = rows_of(answers[:n_items], task, knobs, run=fingerprint, step=step)
    if not _is_spread(task.name, knobs):
        return rows
    placed = answers[n_items:] if _is_strewn(task.name, knobs) else answers
    for b in range(N_BINS):
        own = [a for a in placed[b::N_BINS] if a.item.evidence]
        at_depth = replace(knobs, depth=b / (N_BINS - 1))
        found = rows_of(own, task, at_depth, run=fingerprint, step=step) if own else []
        rows += [replace(row, bin=b) for row in found if row.metric in _BY_DEPTH]
    return rows


def _by_load(reader: Reader, name: str, knobs: Knobs, run: Run, fingerprint: str, step: int) -> list[Row]:
    """Rows of the numbers of pairs at which a task is asked too."""
    task, kind = open_task(name), run.resolved_objective.kind
    return [
        row
        for at in loads_of(task, knobs)
        for row in load_rows(
            ask_items(reader, _questions(name, at, run.ask.items, kind)), task, at, run=fingerprint, step=step
        )
    ]


def _items(
    answers: Sequence[Answer], knobs: Knobs, n_items: int, where: dict, *, run: str, step: int
) -> Iterator[Item]:
    """The answers as records from which `Task.item` makes the item again, so that spans of distractors, of which there may be
    hundreds, need not be kept; `is_beside` in those that no mean over all items counts."""
    for i, item in enumerate(items_of(answers, knobs, run=run, step=step)):
        task = open_task(item.task)
        made_of = {
            "index": item.item,
            "asked_depth": _depth(task.name, knobs, i, n_items),
            "distractors": knobs.distractors,
            "hardness": knobs.hardness,
        }
        kept = {k: v for k, v in item.factors.items() if k != "distractors"}
        kept |= {"is_beside": True} if i >= n_items else {}
        yield replace(item, factors={**kept, **where, "knobs": made_of})
