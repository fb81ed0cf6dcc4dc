"""What the rows of source `tasks` say of a run, and of an arm over its seeds: accuracy by length, solved or not, when.

Notable: lengths are told as multiples of the shortest that a run is asked, which is that of its training. A task is solved in
a seed or it is not, so seeds are counted; a seed that never gets there is censored, not slow, and has no number of steps.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

from ..store import StudyFolder
from ..study.metrics import SOLVED, STUDY_METRICS
from ..tasks.metrics import MIN_LENGTHS, effective_length, guessing
from .digest import digest
from .shares import exact_interval

N_BINS = 11  # of depth
_MIDDLE = (4, 5, 6)
# What else an answer is worth, on the page beside its accuracy.
MORE = (
    "copied_from_start", "edit_similarity", "answer_precision", "answer_recall", "answer_f1", "answer_exact",
    "citation_precision", "citation_recall", "citation_f1", "context_answers", "memory_answers", "memorization_ratio",
    "error_neighbour", "error_other_value", "error_elsewhere", "first_error", "sentence_recall", "query_accuracy",
)  # fmt: skip
_NAMES = (
    "exact_match", "answer_margin", "answer_floor", "answer_chance", "answer_ties", "answer_nan", *MORE,
    *(f"{metric}_{end}" for metric in MORE for end in ("chance", "floor")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One mean over items. `times` is the length over that of training; `bin` the depth's, of `sentence_recall` the sentence's
    number, of `query_accuracy` how many pairs there are, None: of all items; `stretch` how positions were stretched."""

    cell: str
    arm: str
    seed: int
    step: int
    task: str
    metric: str
    times: int
    bin: int | None
    stretch: str
    value: float


def task_rows(folder: StudyFolder) -> list[TaskRow]:
    """The rows of source `tasks` of a study, of every step; none where it asks nothing."""
    found = digest(folder).execute(
        """SELECT cell, arm, seed, step, task, metric, length, min(length) OVER (PARTITION BY run), bin,
                  coalesce(intervention, 'none'), value
           FROM task_rows WHERE list_contains($1, metric) AND length IS NOT NULL AND task IS NOT NULL
           ORDER BY ALL""",
        [list(_NAMES)],
    )
    return [
        TaskRow(cell, arm, seed, step, task, metric, round(length / shortest), b, stretch, value)
        for cell, arm, seed, step, task, metric, length, shortest, b, stretch, value in found.fetchall()
    ]


Key = tuple[str, str, int]  # cell, arm, seed


def last_rows(rows: Iterable[TaskRow]) -> dict[Key, list[TaskRow]]:
    """Each run's rows of the last step at which it was asked."""
    of_run: dict[Key, list[TaskRow]] = defaultdict(list)
    for row in rows:
        of_run[row.cell, row.arm, row.seed].append(row)
    out = {}
    for key, own in of_run.items():
        last = max(r.step for r in own)
        out[key] = [r for r in own if r.step == last]
    return out


def final_values(rows: Iterable[TaskRow]) -> dict[tuple[str, str, int, str], float]:
    """{(cell, arm, seed, study metric): value} at each run's last asking: means over its tasks, positions as trained."""
    out = {}
    for key, own in last_rows(rows).items():
        for name in (n for n, s in STUDY_METRICS.items() if s.of == "tasks"):
            what, _, times = name.removesuffix("x").partition("@")
            value = _value(what, [r for r in own if r.times == int(times) and r.stretch == "none"])
            if value is not None:
                out[(*key, name)] = value
    return out


def _value(what: str, rows: Sequence[TaskRow]) -> float | None:
    if what == "task_u_index":
        accuracy = {(r.task, r.bin): r.value for r in rows if r.metric == "exact_match" and r.bin is not None}
        values = [u_index({b: v for (t, b), v in accuracy.items() if t == task}) for task, _ in accuracy]
        values = [v for v in values if v is not None]
    else:
        metric = {"task_accuracy": "exact_match", "task_margin": "answer_margin"}[what]
        values = [r.value for r in rows if r.metric == metric and r.bin is None]
    return fmean(values) if values else None


def u_index(by_bin: dict[int, float]) -> float | None:
    """The mean of the first and the last bin less that of the middle three; None where one of these is missing."""
    if not {0, *_MIDDLE, N_BINS - 1} <= set(by_bin):
        return None
    return (by_bin[0] + by_bin[N_BINS - 1]) / 2 - fmean(by_bin[b] for b in _MIDDLE)


@dataclass(frozen=True, slots=True)
class Solved:
    """`k` of an arm's `n` runs have an accuracy of at least `SOLVED`; `low` to `high` covers the true share."""

    cell: str
    arm: str
    task: str
    times: int
    stretch: str
    k: int
    n: int
    low: float
    high: float


def solved(rows: Iterable[TaskRow], *, done: set[Key] | None = None, confidence: float = 0.95) -> list[Solved]:
    """Shares of seeds, by cell, arm, task, length and stretch; of runs in `done` (None: of all)."""
    values: dict[tuple, list[float]] = defaultdict(list)
    for key, own in last_rows(rows).items():
        for r in own:
            if r.metric == "exact_match" and r.bin is None and (done is None or key in done):
                values[r.cell, r.arm, r.task, r.times, r.stretch].append(r.value)
    out = []
    for key, found in values.items():
        k, n = sum(v >= SOLVED for v in found), len(found)
        out.append(Solved(*key, k, n, *exact_interval(k, n, confidence)))
    return out


Told = tuple[str, str, str, str]  # cell, arm, task, stretch


Asking = tuple[Key, str, int, str]  # of a run: task, times, stretch


def effective_lengths(
    rows: Iterable[TaskRow], *, done: set[Key] | None = None, lows: Mapping[Asking, float] = MappingProxyType({})
) -> dict[Told, dict[int, int | None]]:
    """{…: {seed: the longest multiple of the length of training at which accuracy is at least 85% of the best at the three
    shortest}}, each less what guessing scores there (`guessing`), None where that best is not above it; of runs in `done` (None:
    of all) that were asked at three lengths or more.

    Args:
        lows: the lower ends of the accuracies' intervals, where they are known; the best's has to be above guessing too.
    """
    out: dict[Told, dict[int, int | None]] = {}
    for key, own in last_rows(rows).items():
        if done is not None and key not in done:
            continue
        asked = [r for r in own if r.metric == "exact_match" and r.bin is None]
        beside = {(r.metric, r.task, r.times, r.stretch): r.value for r in own if r.bin is None}
        for task, stretch in dict.fromkeys((r.task, r.stretch) for r in asked):
            # At the length of training there is nothing to stretch.
            meant = [r for r in asked if r.task == task and (r.stretch == stretch or r.times == 1)]
            by_times = {r.times: r.value for r in meant}
            if len(by_times) < MIN_LENGTHS:
                continue
            guesses, ends = {}, {}
            for r in meant:
                where = (task, r.times, r.stretch)
                guess = guessing(beside.get(("answer_chance", *where)), beside.get(("answer_floor", *where)))
                guesses |= {} if guess is None else {r.times: guess}
                ends |= {r.times: lows[key, *where]} if (key, *where) in lows else {}
            out.setdefault((key[0], key[1], task, stretch), {})[key[2]] = effective_length(by_times, guesses, ends)
    return out


@dataclass(frozen=True, slots=True)
class Reached:
    """Steps after which each seed of an arm was first asked and had `SOLVED` right at the length of training.

    `steps`: by seed; None is censored: not within its training, of `until` steps. `median`: over all seeds, a censored one
    being later than every other; None where that is the middle one, so that it is known only to lie beyond `until`.
    """

    cell: str
    arm: str
    task: str
    steps: dict[int, int | None]
    until: int
    median: float | None
    low: float  # exact interval of the share that got there
    high: float

    @property
    def k(self) -> int:
        """Seeds that got there."""
        return sum(s is not None for s in self.steps.values())


def reached(rows: Iterable[TaskRow], *, done: set[Key] | None = None, confidence: float = 0.95) -> list[Reached]:
    """Steps to `SOLVED`, by cell, arm and task; of runs in `done` (None: of all), whose last asking ends their training."""
    curves: dict[tuple[str, str, str], dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        is_meant = r.metric == "exact_match" and r.bin is None and r.times == 1 and r.stretch == "none"
        if is_meant and (done is None or (r.cell, r.arm, r.seed) in done):
            curves[r.cell, r.arm, r.task][r.seed][r.step] = r.value
    out = []
    for key, of_seed in curves.items():
        steps = {
            seed: next((step for step in sorted(curve) if curve[step] >= SOLVED), None)
            for seed, curve in sorted(of_seed.items())
        }
        k, n = sum(s is not None for s in steps.values()), len(steps)
        until = max(step for curve in of_seed.values() for step in curve)
        out.append(Reached(*key, steps, until, _median(list(steps.values())), *exact_interval(k, n, confidence)))
    return out


def _median(steps: Sequence[int | None]) -> float | None:
    ordered = sorted(math.inf if s is None else s for s in steps)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return middle if math.isfinite(middle) else None


def sooner(arm: Reached, baseline: Reached) -> tuple[int, int, int]:
    """Of the seeds that both have: in how many the arm got there sooner, in how many later, and in how many neither is known:
    both at once, or both not."""
    pairs = [(arm.steps[s], baseline.steps[s]) for s in arm.steps.keys() & baseline.steps.keys()]
    known = [(math.inf if a is None else a, math.inf if b is None else b) for a, b in pairs]
    return sum(a < b for a, b in known), sum(a > b for a, b in known), sum(a == b for a, b in known)
