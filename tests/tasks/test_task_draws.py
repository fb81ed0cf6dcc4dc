"""The random numbers of items: Philox as NumPy has it, the same one by one and many at once, and fair."""

import numpy as np
import pytest

from gatelab.tasks import TaskError
from gatelab.tasks.draws import DrawRows, Draws, key_of, parts, philox

KEY = key_of("a test", 7)


def test_philox_in_pure_python_is_numpys():
    for key, counter in [
        ((0, 0), (0, 0, 0, 0)),
        (KEY, (2**63, 5, 2**64 - 2, 11)),
        ((2**64 - 1, 3), (9, 2**64 - 1, 0, 1)),
    ]:
        generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
        next_counter = (counter[0] + 1, *counter[1:])
        assert philox(key, next_counter) == [int(w) for w in generator.random_raw(4)]


@pytest.mark.parametrize(
    "draw",
    [
        lambda d: d.words(1), lambda d: d.words(8), lambda d: d.words(9), lambda d: d.many(17, 64),
        lambda d: d.many(17, 1000), lambda d: d.many(3, 1), lambda d: d.many(0, 5), lambda d: d.below(2),
        lambda d: d.order(0), lambda d: d.order(1), lambda d: d.order(100), lambda d: d.distinct(0, 9),
        lambda d: d.distinct(9, 9), lambda d: d.distinct(30, 2048),
    ],
)  # fmt: skip
def test_many_items_draw_what_each_draws(draw):
    rows = draw(DrawRows(KEY, 3, 5))
    assert rows.tolist() == [np.array(draw(Draws(KEY, i))).tolist() for i in range(3, 8)]


def test_calls_items_names_and_seeds_have_nothing_in_common():
    draws = Draws(KEY, 0)
    seen = [
        draws.words(8), draws.words(8), draws.words(9)[:8], Draws(KEY, 1).words(8), Draws(key_of("a test", 8), 0).words(8),
        Draws(key_of("another", 7), 0).words(8),
    ]  # fmt: skip
    assert len({w for words in seen for w in words}) == 48


def test_every_order_is_as_likely_as_another():
    orders, counts = np.unique(DrawRows(KEY, 0, 24_000).order(4), axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts - 1000).max() < 5 * 1000**0.5


def test_distinct_numbers_are_different_and_each_is_as_likely_as_another():
    drawn = DrawRows(KEY, 0, 20_000).distinct(3, 10)
    assert all(len(set(row)) == 3 for row in drawn[:500].tolist())
    for column in drawn.T:
        share = np.bincount(column, minlength=10) / len(column)
        # A part holds 3 or 4 of the 10 numbers, so its own are drawn with 1/9 or 1/12.
        assert np.abs(share[:6] - 1 / 9).max() < 0.012
        assert np.abs(share[6:] - 1 / 12).max() < 0.012


def test_parts_cover_everything_once_and_more_of_them_than_numbers_are_refused():
    assert parts(3, 10) == [(0, 3), (3, 3), (6, 4)]
    assert parts(0, 10) == []
    with pytest.raises(TaskError, match="asks for 11 different tokens of a kind of which the vocabulary has 10"):
        parts(11, 10)


def test_the_stream_is_the_same_on_every_machine():
    assert Draws(key_of("pinned", 1), 2).many(6, 1000) == PINNED


PINNED = [465, 112, 834, 60, 942, 492]
