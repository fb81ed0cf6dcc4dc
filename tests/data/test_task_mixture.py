"""Items of a mixture are made ahead, and nothing but time tells: each row is its item, whatever was asked for before."""

from collections.abc import Iterator

import numpy as np
import pytest

from gatelab.config import Tasks
from gatelab.data import IGNORED, Batch, DataError, TaskSource, tasks
from gatelab.tasks import TASKS, Knobs, Task, open_task

ALL = Tasks(names=tuple(TASKS))
OWN = Tasks(
    names=("needle", "cite", "track"),
    distractors=2,
    knobs={"cite": {"distractors": 1, "depth": 0.5}, "track": {"hardness": 1, "distractors": 4}},
)
STAGED = Tasks(names=("needle", "cite", "track"), shortest=70, stage=37, targets="all")
# Step by step; on from the middle; back, the same again, far away, and on from there.
STEPS = [*range(8), 40, 41, 42, 3, 3, 4, 10**9, 10**9 + 1, 5]


def defined(config: Tasks, seed: int, step: int, batch_size: int, seq_len: int) -> Iterator[tuple[list[int], ...]]:
    """Inputs, targets and domain of each row, by the definition of its item."""
    n = len(config.names)
    lengths = [config.shortest or seq_len]
    while lengths[-1] < seq_len:
        lengths.append(min(2 * lengths[-1], seq_len))
    for r in range(step * batch_size, (step + 1) * batch_size):
        length = lengths[min(r // config.stage, len(lengths) - 1)]
        name = config.names[r % n]
        knobs = config.knobs_of(name)
        of_item = Knobs(length, knobs.depth, knobs.distractors, knobs.hardness, seed=seed, split="train")
        item = open_task(name).item(of_item, r // n)
        targets = [*item.tokens[1:], IGNORED] if config.targets == "all" else [IGNORED] * length
        for at, token in zip(item.asked, item.answer, strict=True):
            targets[at] = token
        rest = seq_len - length
        yield [*item.tokens, *[0] * rest], [*targets, *[IGNORED] * rest], [r % n] * seq_len


def arrays(batch: Batch) -> tuple[np.ndarray, ...]:
    return batch.inputs_BT, batch.targets_BT, batch.domain_BT


def is_defined(batch: Batch, *of: object) -> None:
    for found, wanted in zip(arrays(batch), zip(*defined(*of), strict=True), strict=True):
        np.testing.assert_array_equal(found, wanted)


def kept_bytes(source: TaskSource) -> int:
    return sum(made.items_N2T.nbytes for made in source._ahead.values())


@pytest.mark.parametrize(
    ("config", "batch_size", "seq_len"),
    [(ALL, 7, 72), (ALL, 20, 72), (STAGED, 10, 150), (STAGED, 40, 150), (OWN, 7, 72)],
)
def test_every_row_is_its_item_in_whatever_order_steps_are_asked_for(config: Tasks, batch_size: int, seq_len: int):
    source = TaskSource(config)
    for step in STEPS:
        is_defined(source.train_batch(3, step, batch_size, seq_len), config, 3, step, batch_size, seq_len)


def test_a_knob_of_its_own_that_a_task_does_not_take_is_refused():
    with pytest.raises(DataError, match=r"data\.names=needle,mqar: mqar: hardness=9 .*expected 1 to 3"):
        TaskSource(Tasks(names=("needle", "mqar"), knobs={"mqar": {"hardness": 9}}))
    # Of all it would be refused: the evidence of mqar has no one place.
    TaskSource(Tasks(names=("needle", "mqar"), knobs={"needle": {"depth": 0.5}}))


def test_seeds_lengths_and_sizes_in_turns_do_not_disturb_each_other():
    source = TaskSource(STAGED)
    for step in (0, 1, 2, 3, 7, 8, 9, 10):
        for seed, batch_size, seq_len in ((0, 10, 150), (5, 10, 150), (0, 10, 100), (0, 4, 150)):
            is_defined(source.train_batch(seed, step, batch_size, seq_len), STAGED, seed, step, batch_size, seq_len)
        heldout, anew = (of.heldout_batch(step, 6, 150) for of in (source, TaskSource(STAGED)))
        for found, wanted in zip(arrays(heldout), arrays(anew), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_two_sources_and_the_seeds_of_a_stack_read_what_a_new_source_reads():
    pair = TaskSource(ALL), TaskSource(ALL.model_copy(update={"hardness": 2}))
    for step in (0, 1, 2, 3, 17, 18):
        for source in pair:
            found = arrays(source.train_batches([4, 0, 9], step, 8, 80))
            wanted = arrays(TaskSource(source.config).train_batches([4, 0, 9], step, 8, 80))
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_batch_is_a_copy():
    source = TaskSource(ALL)
    first, again = source.train_batch(0, 2, 8, 80), source.train_batch(0, 2, 8, 80)
    kept = [array.copy() for array in arrays(again)]
    for array in arrays(first):
        array[:] = 1
    for step in range(2, 40):
        source.train_batch(0, step, 8, 80)
    for array, own in zip(arrays(again), kept, strict=True):
        np.testing.assert_array_equal(array, own)
    is_defined(source.train_batch(0, 2, 8, 80), ALL, 0, 2, 8, 80)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Task and items of every call of a sampler."""
    seen, own = [], Task.batch

    def batch(task: Task, knobs: Knobs, first: int, n: int) -> object:
        seen.append((task.name, n))
        return own(task, knobs, first, n)

    monkeypatch.setattr(Task, "batch", batch)
    return seen


def test_each_step_makes_a_batch_of_one_task_and_each_task_has_its_turn(calls: list[tuple[str, int]]):
    source, batch_size, n = TaskSource(ALL), 30, len(ALL.names)
    source.train_batch(0, 100, batch_size, 80)
    assert sorted(name for name, _ in calls) == sorted(ALL.names) and max(k for _, k in calls) == batch_size
    calls.clear()
    for step in range(101, 101 + 2 * n):
        source.train_batch(0, step, batch_size, 80)
        assert len(calls) == step - 100
    assert {calls[i : i + n].count((name, batch_size)) for i in (0, n) for name in ALL.names} == {1}
    source.train_batch(0, 100 + 2 * n, batch_size, 80)  # as another arm of the seed asks for it again
    assert len(calls) == 2 * n


def test_of_several_seeds_each_call_makes_more_and_each_step_has_as_many_calls(calls: list[tuple[str, int]]):
    source, batch_size, seeds, n = TaskSource(ALL), 32, [7, 3, 11, 0], len(ALL.names)
    source.train_batches(seeds, 0, batch_size, 80)
    assert len(calls) == len(seeds) * n and max(k for _, k in calls) <= 4 * batch_size  # nothing is made twice
    for step in range(1, 1 + 4 * n):
        calls.clear()
        found = source.train_batches(seeds, step, batch_size, 80)
        assert [k for _, k in calls] == [4 * batch_size]
    for i, seed in enumerate(seeds):
        rows = slice(i * batch_size, (i + 1) * batch_size)
        own = Batch(*(array[rows] for array in (found.inputs_BT, found.targets_BT)), domain_BT=found.domain_BT[rows])
        is_defined(own, ALL, seed, step, batch_size, 80)


def test_no_item_is_made_for_a_stage_that_has_ended(calls: list[tuple[str, int]]):
    names = ("needle", "track")
    TaskSource(Tasks(names=names, shortest=80)).train_batch(0, 0, 4, 80)
    assert calls == [("needle", 4), ("track", 2)]  # until it is their turn again
    calls.clear()
    TaskSource(Tasks(names=names, shortest=40, stage=6)).train_batch(0, 0, 4, 80)
    assert calls == [("needle", 3), ("track", 2)]


@pytest.mark.parametrize(("room", "n_seeds", "makes_ahead"), [(2**24, 4, True), (60_000, 2, True), (60_000, 12, False)])
def test_what_is_kept_has_bounded_room_and_many_seeds_share_it(
    room: int, n_seeds: int, makes_ahead: bool, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, int]]
):
    monkeypatch.setattr(tasks, "_ROOM", room)
    names, seeds = ("needle", "track", "cite", "find"), list(range(n_seeds))
    source = TaskSource(Tasks(names=names))
    for step in range(30):
        batch = source.train_batches(seeds, step, 40, 80)
        assert kept_bytes(source) <= room
    wanted = TaskSource(Tasks(names=names)).train_batches(seeds, 29, 40, 80)
    np.testing.assert_array_equal(batch.inputs_BT, wanted.inputs_BT)
    assert (len(calls) < 30 * n_seeds * len(names)) == makes_ahead == bool(source._ahead)


def test_of_one_task_nothing_is_kept():
    source = TaskSource(Tasks())
    for step in range(3):
        source.train_batch(0, step, 5, 60)
    assert not source._ahead


def test_a_refusal_leaves_nothing_behind():
    source = TaskSource(Tasks(names=("needle", "cite")))
    for _ in range(2):
        with pytest.raises(DataError, match=r"train.seq_len=40: cite: .* take a length of at least 68"):
            source.train_batch(0, 0, 4, 40)
    is_defined(source.train_batch(0, 0, 4, 80), source.config, 0, 0, 4, 80)
