"""Tasks as a stream: sequences are items, targets are what is asked, and training never sees what is held out."""

import numpy as np
import pytest

from gatelab.config import Answers, BigramBackcopy, ConfigError, Continuation, Run, Tasks, validate
from gatelab.data import IGNORED, DataError, check_lengths, objective_batch, open_source
from gatelab.tasks import TASKS, VOCAB_SIZE, Knobs, open_task

T = 96


@pytest.mark.parametrize("name", TASKS)
def test_a_heldout_sequence_is_the_item_that_evaluation_asks(name: str):
    batch = open_source(Tasks(names=(name,))).heldout_batch(1, 3, T)
    for row in range(3):
        item = open_task(name).item(Knobs(length=T), 3 + row)
        assert tuple(batch.inputs_BT[row].tolist()) == item.tokens
        (asked,) = np.nonzero(batch.targets_BT[row] != IGNORED)
        assert tuple(asked.tolist()) == item.asked
        assert tuple(batch.targets_BT[row][asked].tolist()) == item.answer


@pytest.mark.parametrize("name", TASKS)
def test_with_all_targets_every_token_predicts_the_next_and_the_answer_is_among_them(name: str):
    source = open_source(Tasks(names=(name,), targets="all"))
    batch = source.train_batch(0, 0, 4, T)
    asked = open_source(Tasks(names=(name,))).train_batch(0, 0, 4, T)
    is_asked = asked.targets_BT != IGNORED
    assert np.array_equal(batch.targets_BT[is_asked], asked.targets_BT[is_asked])
    others = ~is_asked[:, :-1]
    assert np.array_equal(batch.targets_BT[:, :-1][others], batch.inputs_BT[:, 1:][others])
    assert (batch.targets_BT != IGNORED).sum() >= 4 * (T - 1)


def test_tasks_of_a_mixture_take_turns_and_keep_their_items():
    names = ("needle", "bracket", "track")
    source = open_source(Tasks(names=names, hardness=1))
    assert source.domains == names and source.vocab_size == VOCAB_SIZE and source.bos_id == 0
    batch = source.train_batch(5, 2, 7, T)  # sequences 14 … 20
    for row, r in enumerate(range(14, 21)):
        item = open_task(names[r % 3]).item(Knobs(length=T, hardness=1, seed=5, split="train"), r // 3)
        assert tuple(batch.inputs_BT[row].tolist()) == item.tokens
        assert set(batch.domain_BT[row].tolist()) == {r % 3}


def test_rows_do_not_depend_on_how_they_are_cut_into_batches_and_seeds_differ():
    source = open_source(Tasks(names=("needle", "cite"), shortest=70, stage=5))
    whole = source.train_batch(1, 0, 24, 200)
    for size in (1, 3, 8):
        for step in range(24 // size):
            part = slice(step * size, (step + 1) * size)
            found = source.train_batch(1, step, size, 200)
            assert np.array_equal(found.inputs_BT, whole.inputs_BT[part])
            assert np.array_equal(found.targets_BT, whole.targets_BT[part])
    both = source.train_batches([1, 2], 0, 24, 200)
    assert np.array_equal(both.inputs_BT[:24], whole.inputs_BT)
    assert not np.array_equal(both.inputs_BT[24:], whole.inputs_BT)


def test_lengths_grow_by_stages_and_what_is_left_is_not_predicted():
    source = open_source(Tasks(names=("needle",), shortest=16, stage=4, targets="all"))
    batch = source.train_batch(0, 0, 20, 60)
    lengths = [16] * 4 + [32] * 4 + [60] * 12
    for row, length in enumerate(lengths):
        assert (batch.targets_BT[row, length:] == IGNORED).all() and (batch.inputs_BT[row, length:] == 0).all()
        assert (batch.targets_BT[row, :length] != IGNORED).all() and (batch.inputs_BT[row, 1:length] != 0).all()
    assert (source.heldout_batch(0, 2, 60).targets_BT != IGNORED).all()


def test_no_item_of_training_is_held_out():
    source = open_source(Tasks(names=("bracket",), hardness=2))
    train = {row.tobytes() for seed in range(3) for row in source.train_batch(seed, 0, 300, 40).inputs_BT}
    heldout = {row.tobytes() for row in source.heldout_batch(0, 300, 40).inputs_BT}
    assert len(train) == 900 and len(heldout) == 300 and not train & heldout


def test_a_stream_is_never_too_short_and_goes_on_from_anywhere():
    source = open_source(Tasks())
    check_lengths(source, 10**6)
    assert source.heldout_sequences(T) is None and source.digest == ""
    assert not np.array_equal(source.train_batch(0, 10**9, 1, T).inputs_BT, source.train_batch(0, 0, 1, T).inputs_BT)


def test_an_encoder_reads_the_text_and_a_decoder_says_the_answer():
    source = open_source(Tasks(names=("needle",), hardness=3))
    batch = objective_batch(source, Continuation(share=0.9), 0, 0, 4, 100)
    assert batch.inputs_BT.shape == (4, 90) and batch.decoder_inputs_BT.shape == (4, 11)
    assert (batch.targets_BT != IGNORED).sum(axis=1).tolist() == [3] * 4


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Tasks(names=("nedle",)), "data.names=nedle: no task 'nedle'.*did you mean 'needle'"),
        (Tasks(names=("bracket",), depth=0.5), "bracket: depth=0.5.*leave depth out"),
        (Tasks(names=("needle",), hardness=99), "needle: hardness=99 .tokens of the value.: expected 1 to 8"),
    ],
)
def test_what_no_task_takes_is_refused_when_the_source_is_opened(data: Tasks, says: str):
    with pytest.raises(DataError, match=says):
        open_source(data)


def test_a_sequence_too_short_for_an_item_is_refused_with_what_would_do():
    with pytest.raises(DataError, match=r"train.seq_len=20: cite: .* take a length of at least 68"):
        open_source(Tasks(names=("cite",))).train_batch(0, 0, 2, 20)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Tasks(names=("needle", "cite")), r"^train.seq_len=40: cite: length=40 .* take a length of at least 68"),
        (Tasks(shortest=3), r"^data.shortest=3: needle: length=3 .* take a length of at least 6"),
        (Tasks(shortest=48), r"^data.shortest=48: items grow up to train.seq_len=40; take at most as many tokens"),
    ],
)
def test_lengths_without_room_are_refused_before_any_run(data: Tasks, says: str):
    with pytest.raises(DataError, match=says):
        check_lengths(open_source(data), 40)
    check_lengths(open_source(Tasks(names=("needle", "bracket"), shortest=20)), 40)


@pytest.mark.parametrize("names", ["", "needle,needle"])
def test_names_must_be_different_and_some(names: str):
    with pytest.raises(ConfigError, match=r"data.names"):
        validate(Run, {"data": {"kind": "tasks", "names": names.split(",") if names else []}})


def test_on_the_command_line_names_are_joined_by_commas():
    assert validate(Run, {"data": {"kind": "tasks", "names": "needle,track"}}).data.names == ("needle", "track")


def test_an_encoder_reads_masks_in_the_place_of_what_is_asked():
    source = open_source(Tasks(names=("needle",), hardness=3))
    plain, batch = source.train_batch(0, 0, 4, 60), objective_batch(source, Answers(), 0, 0, 4, 60)
    assert np.array_equal(batch.targets_BT, plain.targets_BT)
    assert (batch.inputs_BT[:, -2:] == VOCAB_SIZE).all() and np.array_equal(
        batch.inputs_BT[:, :-2], plain.inputs_BT[:, :-2]
    )
    with pytest.raises(DataError, match="every token of this data is; take data=tasks"):
        objective_batch(open_source(BigramBackcopy()), Answers(), 0, 0, 2, 8)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"model": {"arch": "encoder"}, "data": "tasks"}, "set objective=answers, or data.targets=all"),
        ({"model": {"arch": "encoder-decoder"}, "data": "tasks"}, "set objective=continuation, or data.targets=all"),
        ({"model": {"arch": "encoder"}, "objective": "answers"}, "this data asks nothing; set data=tasks"),
    ],
)
def test_an_objective_that_asks_something_else_than_the_data_is_refused(run: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        validate(Run, run)
