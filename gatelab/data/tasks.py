"""Items of tasks as an unlimited stream: each sequence is one item, and its targets are what is asked.

Notable: held-out sequence i of a task is its item i, the one that evaluation asks; training has a stream of its own for
each seed, so no item of it is held out.
"""

import numpy as np

from gatelab.config import Tasks
from gatelab.tasks import VOCAB_SIZE, Knobs, TaskBatch, TaskError, open_task
from gatelab.tasks.vocabulary import BOS

from .batch import IGNORED, Batch, DataError, joined


class TaskSource:
    """Sequence r is item r // n of task r % n, of n; its length is the sequence's, or its stage's on the way there.

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
                task.resolved(self._knobs(2, seed=0, split="eval"))
        except TaskError as error:
            raise DataError(f"data.names={','.join(config.names)}: {error}") from None
        self.description = f"items of {', '.join(config.names)}, an unlimited stream of {VOCAB_SIZE:,} ids"

    def train_batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """The items of a step.

        Raises:
            DataError: when `seq_len`, or the shortest length, has no room for an item.
        """
        first, until = step * batch_size, (step + 1) * batch_size
        lengths = self._lengths(seq_len)
        parts = []
        while first < until:
            stage = min(first // self.config.stage, len(lengths) - 1)
            end = until if stage == len(lengths) - 1 else min(until, (stage + 1) * self.config.stage)
            knobs = self._knobs(lengths[stage], seed=seed, split="train")
            parts.append(self._batch(knobs, first, end - first, seq_len))
            first = end
        return parts[0] if len(parts) == 1 else joined(parts)

    def train_batches(self, seeds: list[int], step: int, batch_size: int, seq_len: int) -> Batch:
        return joined([self.train_batch(seed, step, batch_size, seq_len) for seed in seeds])

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
        c = self.config
        return Knobs(length, c.depth, c.distractors, c.hardness, seed, split)

    def _lengths(self, seq_len: int) -> list[int]:
        """Of the stages, each twice the one before it."""
        lengths = [self.config.shortest or seq_len]
        while lengths[-1] < seq_len:
            lengths.append(2 * lengths[-1])
        return [*lengths[:-1], seq_len]

    def _batch(self, knobs: Knobs, first: int, n: int, seq_len: int) -> Batch:
        n_tasks = len(self.tasks)
        inputs_BT = np.full((n, seq_len), BOS, np.int64)
        targets_BT = np.full((n, seq_len), IGNORED, np.int64)
        domain_BT = np.empty((n, seq_len), np.int8)
        for i, task in enumerate(self.tasks):
            rows = slice((i - first) % n_tasks, n, n_tasks)
            count = len(range(n)[rows])
            if not count:
                continue
            try:
                items = task.batch(knobs, (first + rows.start) // n_tasks, count)
            except TaskError as error:
                knob = "train.seq_len" if knobs.length == seq_len else "data.shortest"
                raise DataError(f"{knob}={knobs.length}: {error}") from None
            inputs_BT[rows, : knobs.length] = items.tokens_BT
            targets_BT[rows, : knobs.length] = self._targets(items)
            domain_BT[rows] = i
        return Batch(inputs_BT, targets_BT, domain_BT=domain_BT)

    def _targets(self, items: TaskBatch) -> np.ndarray:
        if self.config.targets == "all":
            # The last token has none after it but the answer's, which is written below where there is one.
            targets_BT = np.pad(items.tokens_BT[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
        else:
            targets_BT = np.full(items.tokens_BT.shape, IGNORED, np.int64)
        np.put_along_axis(targets_BT, items.asked_BA, items.answer_BA, axis=1)
        return targets_BT
