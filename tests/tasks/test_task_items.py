"""Items: the sampler makes what the definition makes; evidence is where it is said to be, and the tokens alone answer."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from task_solvers import LEARNERS, SOLVERS

from gatelab.tasks import TASKS, VOCAB_SIZE, Knobs, TaskBatch, TaskError, TaskItem, open_task
from gatelab.tasks.options import N_OPTIONS, chance_of, options_of
from gatelab.tasks.vocabulary import BOS, NONE, kind_of, word

LENGTH = 260
ALL = [(name, hardness) for name in TASKS for hardness in open_task(name).levels]
CHANGES = [
    {},
    {"depth": 0.0},
    {"depth": 0.37},
    {"depth": 1.0},
    {"distractors": 0},
    {"distractors": 2},
    {"split": "train"},
]


def spans(pairs_E2: np.ndarray) -> tuple[tuple[int, int], ...]:
    return tuple((start, end) for start, end in pairs_E2.tolist() if end)


@pytest.mark.parametrize(
    ("name", "hardness", "changes"),
    [(name, h, c) for name, h in ALL for c in CHANGES if "depth" not in c or open_task(name).has_depth],
)
def test_the_sampler_makes_what_the_definition_makes(name: str, hardness: int, changes: dict):
    task = open_task(name)
    knobs = Knobs(length=LENGTH, hardness=hardness, seed=3, **changes)
    batch = task.batch(knobs, 5, 3)
    assert batch.tokens_BT.dtype == batch.asked_BA.dtype == batch.answer_BA.dtype == np.int64
    for i in range(3):
        item = task.item(knobs, 5 + i)
        assert item.tokens == tuple(batch.tokens_BT[i].tolist())
        assert item.asked == tuple(batch.asked_BA[i].tolist())
        assert item.answer == tuple(batch.answer_BA[i].tolist())
        assert item.evidence == spans(batch.evidence_BE2[i])
        assert item.distractors == spans(batch.distractors_BE2[i])
        assert item.depth == batch.depth_B[i] or (item.depth is None and np.isnan(batch.depth_B[i]))


@pytest.mark.parametrize("length", [70, 71, 128, 515])
@pytest.mark.parametrize("name", TASKS)
def test_the_sampler_makes_what_the_definition_makes_at_any_length(name: str, length: int):
    task, knobs = open_task(name), Knobs(length=length)
    batch = task.batch(knobs, 0, 2)
    assert [task.item(knobs, i).tokens for i in range(2)] == [tuple(t) for t in batch.tokens_BT.tolist()]


@pytest.mark.parametrize(("name", "hardness"), ALL)
def test_the_tokens_alone_give_the_answer(name: str, hardness: int):
    task, knobs = open_task(name), Knobs(length=LENGTH, hardness=hardness)
    items = [task.item(knobs, i) for i in range(12)]
    if name in LEARNERS:
        # So many that none of the facts, or of the 256 names, is left out.
        n_facts = {"conflict": 32 << hardness - 1, "associate": 256}[name]
        short = Knobs(length=20, hardness=hardness, split="train")
        solve = LEARNERS[name](list(items_of(task.batch(short, 0, 24 * n_facts), name)))
    else:
        solve = SOLVERS[name]
    for item in items:
        assert tuple(solve(item)) == item.answer


def items_of(batch: TaskBatch, name: str) -> Iterator[TaskItem]:
    for i in range(len(batch.tokens_BT)):
        yield TaskItem(
            name, i, tuple(batch.tokens_BT[i].tolist()), tuple(batch.asked_BA[i].tolist()),
            tuple(batch.answer_BA[i].tolist()), spans(batch.evidence_BE2[i]), (), None, 0.0,
        )  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_an_item_begins_with_bos_fills_its_length_and_goes_on_with_its_answer(name: str):
    task = open_task(name)
    for i in range(6):
        item = task.item(Knobs(length=LENGTH), i)
        assert len(item.tokens) == LENGTH and item.tokens[0] == BOS and item.tokens.count(BOS) == 1
        assert min(item.tokens) >= 0 and max(item.tokens + item.answer) < VOCAB_SIZE
        assert len(item.asked) == len(item.answer) and list(item.asked) == sorted(set(item.asked))
        if name != "mqar":
            assert item.asked[-1] == LENGTH - 1
            said = dict(zip(item.asked, item.answer, strict=True))
            assert all(item.tokens[p + 1] == said[p] for p in item.asked if p + 1 < LENGTH)
        else:
            assert not any(
                item.tokens[p + 1] == a for p, a in zip(item.asked, item.answer, strict=True) if p + 1 < LENGTH
            )


@pytest.mark.parametrize("name", [n for n in TASKS if open_task(n).has_depth])
def test_evidence_stands_at_the_depth_that_is_asked_for_and_anywhere_else(name: str):
    task = open_task(name)
    h = task.default_hardness
    for depth in (0.0, 0.3, 0.5, 1.0):
        items = [task.item(Knobs(length=LENGTH, depth=depth), i) for i in range(6)]
        found = [item for item in items if item.evidence]
        assert found
        for item in found:
            # Of the latest of several, the others stand before it.
            room = 0.08 * (1 + h) if name == "identifier" else 0.04
            assert abs(item.depth - depth) <= room
            first, last = item.evidence[0][0], item.evidence[-1][1]
            assert (first == 1) == (depth == 0) or name == "identifier"
            assert depth < 1 or last > LENGTH * 0.75
    free = [task.item(Knobs(length=LENGTH), i).depth for i in range(40)]
    free = [d for d in free if d is not None]
    assert min(free) < 0.35 and max(free) > 0.65 and min(free) >= 0 and max(free) <= 1


@pytest.mark.parametrize("name", TASKS)
def test_evidence_and_distractors_do_not_overlap_and_the_question_is_neither(name: str):
    for i in range(4):
        item = open_task(name).item(Knobs(length=LENGTH), i)
        taken = [p for start, end in item.evidence + item.distractors for p in range(start, end)]
        assert len(taken) == len(set(taken)) and min(taken, default=1) >= 1 and max(taken, default=0) < LENGTH


@pytest.mark.parametrize("name", TASKS)
def test_an_item_is_a_function_of_its_number_and_streams_are_apart(name: str):
    task, knobs = open_task(name), Knobs(length=LENGTH)
    assert task.item(knobs, 2) == task.item(knobs, 2)
    others = [task.item(knobs, 3), task.item(Knobs(length=LENGTH, seed=1), 2)]
    others.append(task.item(Knobs(length=LENGTH, split="train"), 2))
    assert len({item.tokens for item in [task.item(knobs, 2), *others]}) == 4
    assert np.array_equal(task.batch(knobs, 0, 7).tokens_BT[4:], task.batch(knobs, 4, 3).tokens_BT)


@pytest.mark.parametrize("name", TASKS)
def test_a_choice_has_eight_options_of_one_shape_the_items_own_lures_first(name: str):
    item = open_task(name).item(Knobs(length=LENGTH), 0)
    options = options_of(item)
    assert len(options) == len(set(options)) == N_OPTIONS and options[0] == item.answer
    assert set(options[1:]) <= set(item.rivals) or set(item.rivals) <= set(options[1:])
    assert {len(o) for o in options} == {len(item.answer)} and item.answer not in item.rivals
    assert 0 <= item.floor <= 1 and 0 < chance_of(item) < 0.01


def test_one_bracket_has_but_four_options():
    item = open_task("bracket").item(Knobs(length=30, hardness=1), 0)
    assert len(options_of(item)) == 4 and chance_of(item) == item.floor == 1 / 4


@pytest.mark.parametrize(
    ("name", "distractors", "floor"), [("needle", 0, 1), ("needle", 4, 1 / 5), ("track", 3, 1 / 4), ("find", 7, 1 / 8)]
)
def test_copying_blindly_scores_the_floor(name: str, distractors: int, floor: float):
    item = open_task(name).item(Knobs(length=LENGTH, distractors=distractors), 0)
    kind, n = kind_of(item.answer[0])
    body = [t for t in item.tokens if kind <= t < kind + n]
    assert item.floor == floor == body.count(item.answer[0]) / len(body)


@pytest.mark.parametrize("distractors", [0, 7])
def test_of_absent_the_floor_is_what_saying_none_always_scores(distractors: int):
    items = [open_task("absent").item(Knobs(length=LENGTH, distractors=distractors), i) for i in range(400)]
    assert {item.floor for item in items} == {1 / 2}
    assert np.mean([item.answer == (NONE,) for item in items]) == pytest.approx(1 / 2, abs=0.05)


def test_of_a_key_of_two_tokens_neither_alone_says_which_it_is():
    item = open_task("multikey").item(Knobs(length=200, hardness=2), 0)
    key = item.tokens[item.asked[0] - 1 : item.asked[0] + 1]
    assert item.tokens.count(key[0]) > 3 and item.tokens.count(key[1]) > 3


def test_half_of_absent_is_absent_and_half_of_conflict_is_not_said():
    absent = open_task("absent").batch(Knobs(length=64), 0, 2000)
    assert 0.45 < np.mean(absent.answer_BA[:, 0] == 8) < 0.55
    assert np.array_equal(absent.answer_BA[:, 0] == 8, absent.evidence_BE2[:, 0, 1] == 0)
    conflict = open_task("conflict").batch(Knobs(length=64), 0, 2000)
    assert 0.45 < np.mean(conflict.evidence_BE2[:, 0, 1] == 0) < 0.55


def test_hops_are_followed_from_end_to_end_and_other_chains_are_as_long():
    item = open_task("track").item(Knobs(length=LENGTH, hardness=4, distractors=2), 0)
    assert len(item.evidence) == 5 and len(item.distractors) == 10
    assert sum(1024 <= t < 2048 for t in item.tokens) == 3


def test_the_walk_of_brackets_never_closes_what_is_not_open_and_goes_no_deeper_than_its_limit():
    for h in (1, 4, 12):
        item = open_task("bracket").item(Knobs(length=200, hardness=h), 0)
        depth, deepest = 0, 0
        for t in item.tokens:
            depth += (32 <= t < 36) - (36 <= t < 40 and depth < 10**6)
            assert depth >= 0
            deepest = max(deepest, depth)
        assert h <= deepest <= h + 4


def test_keys_come_again_sooner_at_hardness_1_than_at_3():
    def gap(hardness: int) -> float:
        batch = open_task("mqar").batch(Knobs(length=512, hardness=hardness), 0, 200)
        return batch.asked_BA.mean()

    assert gap(1) < 0.6 * gap(3)


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(TaskError, match=r"no task 'nedle'.*did you mean 'needle'"):
        open_task("nedle")


@pytest.mark.parametrize(
    ("name", "knobs", "says"),
    [
        ("needle", Knobs(length=5), "has room for 0 pieces of 3 tokens .* take a length of at least 6$"),
        ("cite", Knobs(length=60), "take a length of at least 68, or lower distractors"),
        ("track", Knobs(length=LENGTH, hardness=9), "hops from a name to a name.*expected 1 to 8"),
        ("bracket", Knobs(length=LENGTH, depth=0.5), "no one place; leave depth out"),
        ("needle", Knobs(length=LENGTH, depth=1.5), "depth=1.5: expected 0 .the beginning. to 1"),
        ("needle", Knobs(length=LENGTH, distractors=-1), "distractors=-1: expected 0 or more"),
        ("needle", Knobs(length=1), "length=1: expected 2 to 1,048,576 tokens"),
        ("aggregate", Knobs(length=30), "too few for a difference"),
        ("bracket", Knobs(length=10, distractors=9), "take a length of at least 27"),
        ("multikey", Knobs(length=6000), "asks for 2998 different tokens of a kind of which the vocabulary has 2048"),
        ("cite", Knobs(length=9000, distractors=950), "asks for 951 different tokens"),
    ],
)
def test_what_has_no_room_is_refused_with_what_would_have(name: str, knobs: Knobs, says: str):
    for make in (open_task(name).item, lambda k, i: open_task(name).batch(k, i, 1)):
        with pytest.raises(TaskError, match=says):
            make(knobs, 0)


@pytest.mark.parametrize("name", TASKS)
def test_the_least_length_that_an_error_names_is_enough(name: str):
    task = open_task(name)
    try:
        task.item(Knobs(length=3), 0)
    except TaskError as error:
        if found := re.search(r"at least (\d+)", str(error)):
            least = int(found[1])
            task.item(Knobs(length=least), 0)
            with pytest.raises(TaskError):
                task.item(Knobs(length=least - 1), 0)


def test_every_id_but_a_mark_has_a_word_of_its_own():
    tokens = [8, *range(32, 40), *range(64, VOCAB_SIZE)]
    assert len({word(t) for t in tokens}) == len(tokens)
    with pytest.raises(ValueError, match="token 1 has no word"):
        word(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": "x"}, "length='x': expected a whole number"),
        ({"length": 64.0}, r"length=64\.0: expected a whole number"),
        ({"hardness": "x"}, "hardness='x': expected a whole number or None"),
        ({"distractors": 1.5}, r"distractors=1\.5: expected a whole number or None"),
        ({"seed": None}, "seed=None: expected a whole number"),
        ({"depth": "0.5"}, r"depth='0\.5': expected a number from 0 to 1, or None"),
        ({"split": "test"}, "split='test': expected 'eval' or 'train'"),
    ],
)
def test_a_knob_of_another_type_is_told(changes: dict, message: str):
    with pytest.raises(TaskError, match=f"^needle: {message}"):
        open_task("needle").item(Knobs(**{"length": 64} | changes), 0)


def test_items_are_counted_from_0():
    task = open_task("needle")
    with pytest.raises(TaskError, match=r"^needle: item=-1: expected a whole number from 0"):
        task.item(Knobs(length=64), -1)
    with pytest.raises(TaskError, match=r"^needle: first=-1: expected a whole number from 0"):
        task.batch(Knobs(length=64), -1, 2)
    with pytest.raises(TaskError, match=r"^needle: n=-2: expected a whole number from 0"):
        task.batch(Knobs(length=64), 0, -2)


def test_items_are_the_same_on_every_machine():
    item = open_task("track").item(Knobs(length=16, hardness=1, distractors=0), 0)
    assert (item.tokens, item.answer) == PINNED


PINNED = ((0, 120, 86, 91, 3, 2865, 1991, 123, 92, 110, 3, 3735, 2865, 80, 2, 3735), (1991,))


@pytest.mark.parametrize("hardness", [1, 2, 3])
def test_brackets_have_as_many_options_as_there_are_up_to_eight(hardness: int):
    for index in range(6):
        item = open_task("bracket").item(Knobs(length=40, hardness=hardness), index)
        options = options_of(item)
        assert len(set(options)) == len(options) == min(8, 4**hardness) and options[0] == item.answer
