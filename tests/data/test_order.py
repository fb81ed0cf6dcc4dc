import math

import numpy as np
import pytest

from gatelab.data.order import HELDOUT, ORDER, TRAIN, epoch_starts, permuted, spread_starts, uniform_rows

KEYS = np.arange(1, 7, dtype=np.uint64)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permuted_is_a_permutation(n):
    assert sorted(permuted(np.arange(n), n, KEYS)) == list(range(n))


def test_permutations_look_random_and_differ_by_key():
    n = 2000
    first, second = permuted(np.arange(n), n, KEYS), permuted(np.arange(n), n, KEYS + np.uint64(1))
    for order in (first, second):
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.1
        assert np.mean(np.abs(np.diff(order)) == 1) < 0.01
    assert np.mean(first == second) < 0.01


def test_each_number_may_have_a_permutation_of_its_own():
    keys = np.arange(600, dtype=np.uint64).reshape(6, 100)
    alone = [permuted(np.array([i]), 100, keys[:, i])[0] for i in range(100)]
    assert permuted(np.arange(100), 100, keys).tolist() == alone


def test_permuted_place_does_not_depend_on_the_others_asked_for():
    together = permuted(np.arange(100), 100, KEYS)
    assert [permuted(np.array([i]), 100, KEYS)[0] for i in range(100)] == together.tolist()


@pytest.mark.parametrize(("n_tokens", "seq_len", "span"), [(1003, 10, 10), (1003, 10, 11), (17, 5, 6), (10, 10, 10)])
def test_epoch_holds_every_window_once_and_windows_do_not_overlap(n_tokens, seq_len, span):
    n_windows = max(1, (n_tokens - span) // seq_len)
    for epoch in range(3):
        starts = np.sort(epoch_starts([4], epoch * n_windows, n_windows, n_tokens, seq_len, span)[0])
        assert starts[0] >= 0 and starts[-1] + span <= n_tokens
        assert np.all(np.diff(starts) == seq_len)
        assert n_tokens - n_windows * seq_len - (span - seq_len) < 2 * seq_len


def start_alone(seed, number, n_tokens, seq_len, span):
    """Of one window, in Python's numbers."""
    n_windows = max(1, (n_tokens - span) // seq_len)
    slack = min(n_tokens - span - (n_windows - 1) * seq_len, seq_len - 1)
    epoch, index = divmod(number, n_windows)
    place = np.array([0, epoch, 0, 0], np.uint64)
    generator = np.random.Philox(key=np.array([seed % 2**64, ORDER], np.uint64), counter=place)
    offset, *keys = generator.random_raw(7).tolist()
    side = math.ceil(math.sqrt(n_windows))
    while True:
        left, right = divmod(index, side)
        for key in keys:
            left, right = right, (left + splitmix(right ^ key) % side) % side
        index = left * side + right
        if index < n_windows:
            return offset % (slack + 1) + index * seq_len


def splitmix(word):
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


@pytest.mark.parametrize(
    ("n_tokens", "seq_len", "span"), [(10, 10, 10), (17, 5, 6), (203, 10, 10), (1003, 10, 11), (70_001, 8, 9)]
)
@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 24), (96, 8), (777, 150), (10**9, 5)])
def test_starts_of_many_seeds_are_those_of_each_window_alone(n_tokens, seq_len, span, first, count):
    seeds = [5, 0, -1, 2**64 - 2, 5]
    found = epoch_starts(seeds, first, count, n_tokens, seq_len, span)
    wanted = [
        [start_alone(seed, number, n_tokens, seq_len, span) for number in range(first, first + count)] for seed in seeds
    ]
    assert found.dtype == np.int64 and found.tolist() == wanted


def test_epochs_and_seeds_differ_in_order_and_offset():
    def epoch(seed, number):
        return epoch_starts([seed], number * 99, 99, 1003, 10, 11)[0]

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0)]
    for i, left in enumerate(orders):
        for right in orders[i + 1 :]:
            assert np.mean(left // 10 == right // 10) < 0.1
    assert len({int(epoch(0, number).min()) for number in range(40)}) > 5


def test_samples_do_not_depend_on_how_they_are_batched():
    whole = epoch_starts([3, 8], 0, 60, 203, 10, 10)  # three epochs and a bit
    pieces = [epoch_starts([3, 8], first, 7, 203, 10, 10) for first in range(0, 56, 7)]
    assert np.concatenate(pieces, axis=1).tolist() == whole[:, :56].tolist()


@pytest.mark.parametrize("n_windows", [1, 2, 3, 10, 89, 100])
def test_heldout_windows_come_once_each_and_any_few_are_spread_evenly(n_windows):
    starts = spread_starts(np.arange(n_windows), n_windows * 8, 8, 8)
    assert sorted(starts) == [8 * k for k in range(n_windows)]
    half = np.sort(starts[: max(1, n_windows // 2)])
    assert np.diff(half, append=n_windows * 8, prepend=-8).max() <= 8 * 6


def test_uniform_rows_are_uniform_addressed_and_apart():
    rows = uniform_rows(0, TRAIN, 0, 300, 50)
    assert rows.min() >= 0 and rows.max() < 1
    assert abs(rows.mean() - 0.5) < 0.01 and abs(rows.std() - 12**-0.5) < 0.01
    assert np.array_equal(uniform_rows(0, TRAIN, 7, 3, 50), rows[7:10])
    for other in (uniform_rows(1, TRAIN, 0, 300, 50), uniform_rows(0, HELDOUT, 0, 300, 50)):
        assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 0.03


def test_random_bits_are_the_same_on_every_machine():
    assert (uniform_rows(5, TRAIN, 2, 1, 3)[0] * 2**32).astype(np.int64).tolist() == PINNED_BITS
    assert epoch_starts([5], 0, 4, 1003, 10, 11)[0].tolist() == PINNED_STARTS


PINNED_BITS = [878681361, 302132523, 2407300162]
PINNED_STARTS = [96, 136, 596, 556]
