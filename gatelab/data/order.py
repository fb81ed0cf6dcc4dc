"""The order of samples as arithmetic: counter-based random bits, and permutations that need no memory.

Notable: only Philox's raw 64-bit words are used, whose stream NumPy guarantees; the sampling methods on top of them
may change between versions of NumPy, and a run must not.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# Each use has a key space of its own: no two of them ever see the same bits.
TABLE, TRAIN, HELDOUT, ORDER, TRAIN_OBJECTIVE, HELDOUT_OBJECTIVE = range(6)

_ROUNDS = 6


def philox(seed: int, purpose: int, counter: tuple[int, int] = (0, 0)) -> np.random.Philox:
    """A generator at a place: `counter` is (block, row); rows are 2^64 blocks of four words apart."""
    return np.random.Philox(
        key=np.array([seed % 2**64, purpose], np.uint64), counter=np.array([*counter, 0, 0], np.uint64)
    )


def uniform_rows(seed: int, purpose: int, first: int, n_rows: int, n_columns: int) -> np.ndarray:
    """Uniform numbers in [0, 1) with 32 bits, float64, shape (n_rows, n_columns).

    Row r is the same whichever call asks for it as its `first + i`.
    """
    return uniform_rows_of([seed], purpose, first, n_rows, n_columns)


def uniform_rows_of(seeds: Sequence[int], purpose: int, first: int, n_rows: int, n_columns: int) -> np.ndarray:
    """`uniform_rows` of each seed, the rows of one after those of the other."""
    return integer_rows_of(seeds, purpose, first, n_rows, n_columns) * 2.0**-32


def integer_rows_of(seeds: Sequence[int], purpose: int, first: int, n_rows: int, n_columns: int) -> np.ndarray:
    """What `uniform_rows_of` divides by 2³², int64: for those who only compare, or need few of the numbers."""
    blocks = -(-n_columns // 4)
    words = _words(seeds, purpose, (first * blocks, n_columns), n_rows * blocks * 4, n_bits=32)
    return words.view(np.int64).reshape(len(seeds) * n_rows, -1)[:, :n_columns]


def permuted(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Where keyed permutations of 0 … n − 1 send `index`, of shape (N,); one round a key.

    A Feistel network on pairs (left, right) of numbers below ⌈√n⌉, walked until the pair is a number below n again
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

    Args:
        keys: (rounds,), or (rounds, N) where each number has a permutation of its own.
    """
    side = np.uint64(math.isqrt(n - 1) + 1)
    out = index.astype(np.uint64)
    keys = np.broadcast_to(keys.reshape(len(keys), -1), (len(keys), len(out)))
    todo = np.arange(len(out))
    while len(todo):
        left, right = np.divmod(out[todo], side)
        for key in keys[:, todo]:
            left, right = right, (left + _mixed(right ^ key) % side) % side
        out[todo] = left * side + right
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


def epoch_starts(seeds: Sequence[int], first: int, count: int, n_tokens: int, seq_len: int, span: int) -> np.ndarray:
    """First token of each seed's training windows with sample numbers first … first + count − 1; int64, (seeds, count).

    An epoch is every window of one tiling of the text, each once, in permuted order; the tiling starts at an offset
    drawn anew each epoch, so that a text read often is not always cut at the same places. Windows are `seq_len`
    apart and `span` long; an epoch leaves fewer than 2 · seq_len tokens out.
    """
    n_windows = max(1, (n_tokens - span) // seq_len)
    slack = min(n_tokens - span - (n_windows - 1) * seq_len, seq_len - 1)
    epochs, numbers = np.divmod(np.arange(first, first + count), n_windows)
    out = np.empty((len(seeds), count), np.int64)
    for epoch in range(first // n_windows, (first + count - 1) // n_windows + 1):
        here = epochs == epoch
        offset_S, keys_RS = _epoch_words(tuple(seeds), epoch)
        index_SB = np.tile(numbers[here], (len(seeds), 1))
        keys = np.repeat(keys_RS, index_SB.shape[1], axis=1)
        window_SB = permuted(index_SB.ravel(), n_windows, keys).reshape(index_SB.shape)
        out[:, here] = (offset_S % np.uint64(slack + 1)).astype(np.int64)[:, None] + window_SB * seq_len
    return out


def spread_starts(numbers: np.ndarray, n_tokens: int, seq_len: int, span: int) -> np.ndarray:
    """First token of held-out windows: side by side from token 0, visited in golden-ratio strides.

    So the first few lie as evenly over the whole text as many do, and every window comes once before one comes again.
    """
    n_windows = (n_tokens - span) // seq_len + 1
    stride = max(1, round(n_windows * 0.618034))
    while math.gcd(stride, n_windows) > 1:
        stride += 1
    return numbers % n_windows * stride % n_windows * seq_len


# The batches of an epoch ask for the same words one after the other.
@lru_cache(maxsize=64)
def _epoch_words(seeds: tuple[int, ...], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each seed's epoch: a word for its offset, (seeds,), and the keys of its permutation, (rounds, seeds)."""
    words = _words(seeds, ORDER, (0, epoch), 1 + _ROUNDS).T
    words.flags.writeable = False
    return words[0], words[1:]


def _words(seeds: Sequence[int], purpose: int, counter: tuple[int, int], n: int, *, n_bits: int = 64) -> np.ndarray:
    """The first n words of each seed's generator at a place, (seeds, n); of each its upper `n_bits`, as a number."""
    words = np.empty((len(seeds), n), np.uint64)
    # One generator put to each place in turn: making one takes longer than a few sequences' words.
    generator = philox(0, purpose, counter)
    state = generator.state
    for seed, row in zip(seeds, words, strict=True):
        state["state"]["key"][0] = seed % 2**64
        generator.state = state
        np.right_shift(generator.random_raw(n), np.uint64(64 - n_bits), out=row)
    return words


def _mixed(words: np.ndarray) -> np.ndarray:
    """The output function of splitmix64: every bit of a word depends on all of them."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
