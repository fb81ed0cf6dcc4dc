"""Items of tasks as an unlimited stream: each sequence is one item, and its targets are what is asked.

Notable: held-out sequence i of a task is its item i, the one that evaluation asks; training has a stream of its own for
each seed, so no item of it is held out. Of several tasks each step makes many items of one, those of as many steps as there are
tasks: a call for a few takes more than half as long as one for many, and a device waits for a long step, whatever the mean.
Where several seeds are read in turn, each call makes more, and they take turns at it too.
"""

from dataclasses import dataclass, replace

import numpy as np

from gatelab.config import Tasks
from gatelab.tasks import VOCAB_SIZE, Knobs, TaskBatch, TaskError, open_task
from gatelab.tasks.vocabulary import BOS

from .batch import IGNORED, Batch, DataError, joined

_ROOM = 2**25  # bytes of a source's items that are made ahead, those of all seeds together
_AT_ONCE = 2**14  # tokens of a call above which items take no less time each
_KEPT = np.int16  # holds every id, and IGNORED


@dataclass(frozen=True, slots=True)
class _Made:
    """Items `start` and following of one task: of each its tokens, and its targets."""

    knobs: Knobs
    start: int
    items_N2T: np.ndarray

    def has(self, knobs: Knobs, start: int, stop: int) -> bool:
        return self.start <= start and stop <= self.start + len(self.items_N2T) and self.knobs == knobs

    def of(self, start: int, stop: int) -> np.ndarray:
        return self.items_N2T[start - self.start : stop - self.start]


class TaskSource:
    """Sequence r is item r // n of task r % n, of n; its length is the sequence's, or its stage's on the way there.

    What it keeps of the items to come saves time alone: a batch is a copy, and the same whatever was asked for before.

    Raises:
        DataError: no such task, with the nearest; a knob that one of them does not take.
    """

    vocab_size = VOCAB_SIZE
    digest = ""
    bos_id = BOS
    bytes_per_token = None
    n_train_tokens = None
    n_heldout_tokens = None

    def __init__(self, config: Tasks):
        self.config = config
        self.domains = config.names
        try:
            self.tasks = [open_task(name) for name in config.names]
            for task in self.tasks:
                task.resolved(self._own(task.name, self._knobs(2, seed=0, split="eval")))
        except TaskError as error:
            raise DataError(f"data.names={','.join(config.names)}: {error}") from None
        self._ahead: dict[tuple[int, int], _Made] = {}  # by seed and task
        self._places: dict[int, int] = {}  # of the seeds, in the order in which they came
        self.description = f"items of {', '.join(config.names)}, an unlimited stream of {VOCAB_SIZE:,} ids"

    def train_batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """The items of a step.

        Raises:
            DataError: when `seq_len`, or the shortest length, has no room for an item.
        """
        self._expect([seed])
        return self._train_batch(seed, step, batch_size, seq_len)

    def train_batches(self, seeds: list[int], step: int, batch_size: int, seq_len: int) -> Batch:
        self._expect(seeds)
        return joined([self._train_batch(seed, step, batch_size, seq_len) for seed in seeds])

    def _train_batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        first, until = step * batch_size, (step + 1) * batch_size
        lengths, size = self._lengths(seq_len), self._size(batch_size, seq_len)
        turn = self._places[seed] * size // len(self._places)
        parts = []
        while first < until:
            stage = min(first // self.config.stage, len(lengths) - 1)
            last = None if stage == len(lengths) - 1 else (stage + 1) * self.config.stage
            end = until if last is None else min(until, last)
            knobs = self._knobs(lengths[stage], seed=seed, split="train")
            parts.append(self._batch(knobs, first, end - first, seq_len, size=size, turn=turn, last=last))
            first = end
        return parts[0] if len(parts) == 1 else joined(parts)

    def heldout_batch(self, index: int, batch_size: int, seq_len: int) -> Batch:
        return self._batch(self._knobs(seq_len, seed=0, split="eval"), index * batch_size, batch_size, seq_len)

    def heldout_sequences(self, seq_len: int) -> None:
        """Without end.

        Raises:
            DataError: as `train_batch` does; a shortest length above `seq_len`.
        """
        shortest = self.config.shortest or seq_len
        if shortest > seq_len:
            raise DataError(
                f"data.shortest={shortest}: items grow up to train.seq_len={seq_len}; take at most as many tokens"
            )
        for length in {shortest, seq_len}:
            self._batch(self._knobs(length, seed=0, split="eval"), 0, len(self.tasks), seq_len)

    def _knobs(self, length: int, *, seed: int, split: str) -> Knobs:
        """What the tasks have in common."""
        return Knobs(length, seed=seed, split=split)

    def _own(self, name: str, knobs: Knobs) -> Knobs:
        """With what is stated for a task."""
        return replace(knobs, **self.config.knobs_of(name).stated())

    def _lengths(self, seq_len: int) -> list[int]:
        """Of the stages, each twice the one before it."""
        lengths = [self.config.shortest or seq_len]
        while lengths[-1] < seq_len:
            lengths.append(2 * lengths[-1])
        return [*lengths[:-1], seq_len]

    def _expect(self, seeds: list[int]) -> None:
        """That these are read too; the room is shared out anew."""
        if new := [seed for seed in dict.fromkeys(seeds) if seed not in self._places]:
            self._places |= {seed: len(self._places) + i for i, seed in enumerate(new)}
            self._ahead.clear()

    def _size(self, batch_size: int, seq_len: int) -> int:
        """How many items of a task are made at once: as many as a batch has, or those of several seeds, up to what makes an item
        cheaper; as there is room for; 0 where that is no more than a batch has of each task."""
        n_tasks, of_each, n_seeds = len(self.tasks), -(-batch_size // len(self.tasks)), len(self._places)
        room = _ROOM // (2 * _KEPT().itemsize * seq_len * n_tasks * n_seeds)
        wanted = max(batch_size, min(n_seeds * batch_size, _AT_ONCE // seq_len))
        size = min(wanted, room - of_each)
        return size if size > of_each else 0

    def _batch(
        self, knobs: Knobs, first: int, n: int, seq_len: int, *, size: int = 0, turn: int = 0, last: int | None = None
    ) -> Batch:
        """Sequences first … first + n − 1; with `size` items are kept for those that follow, but for none from `last` on."""
        until, n_tasks = first + n, len(self.tasks)
        both_B2T = np.empty((n, 2, seq_len), _KEPT)
        both_B2T[:, 0, knobs.length :], both_B2T[:, 1, knobs.length :] = BOS, IGNORED
        for i in range(n_tasks):
            start, stop = self._items(i, first, until)
            if start == stop:
                continue
            made = self._ahead.get((knobs.seed, i))
            if made is None or not made.has(knobs, start, stop):
                end = until
                if size:
                    # Tasks take turns, and seeds within them: each has enough until a sequence of its own, `size` items apart.
                    end += (i * size + turn - until) % (n_tasks * size)
                made = self._made(i, knobs, *self._items(i, first, end if last is None else min(end, last)), seq_len)
                if size:
                    self._ahead[knobs.seed, i] = made
            both_B2T[(i - first) % n_tasks :: n_tasks, :, : knobs.length] = made.of(start, stop)
        domain_BT = np.repeat(((first + np.arange(n)) % n_tasks).astype(np.int8), seq_len).reshape(n, seq_len)
        return Batch(both_B2T[:, 0].astype(np.int64), both_B2T[:, 1].astype(np.int64), domain_BT=domain_BT)

    def _items(self, i: int, first: int, until: int) -> tuple[int, int]:
        """Those of task i that are sequences first … until − 1: the first, and the first that is not."""
        n_tasks = len(self.tasks)
        return (first + n_tasks - 1 - i) // n_tasks, (until + n_tasks - 1 - i) // n_tasks

    def _made(self, i: int, knobs: Knobs, start: int, stop: int, seq_len: int) -> _Made:
        try:
            batch = self.tasks[i].batch(self._own(self.tasks[i].name, knobs), start, stop - start)
        except TaskError as error:
            knob = "train.seq_len" if knobs.length == seq_len else "data.shortest"
            raise DataError(f"{knob}={knobs.length}: {error}") from None
        items_N2T = np.empty((stop - start, 2, knobs.length), _KEPT)
        items_N2T[:, 0], items_N2T[:, 1] = batch.tokens_BT, self._targets(batch)
        return _Made(knobs, start, items_N2T)

    def _targets(self, items: TaskBatch) -> np.ndarray:
        if self.config.targets == "all":
            # The last token has none after it but the answer's, which is written below where there is one.
            targets_BT = np.pad(items.tokens_BT[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
        else:
            targets_BT = np.full(items.tokens_BT.shape, IGNORED, np.int64)
        np.put_along_axis(targets_BT, items.asked_BA, items.answer_BA, axis=1)
        return targets_BT
