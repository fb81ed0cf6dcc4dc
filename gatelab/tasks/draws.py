"""Counter-based random numbers, twice: of one item in pure Python, and of many items at once in NumPy, bit for bit equal.

Notable: the generator is Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), whose
words NumPy guarantees. Each call of an item draws at a counter of its own, so item i is the same whichever items are
made beside it. Everything is made of integers: no rounding can tell the two apart.
"""

import hashlib
from itertools import pairwise

import numpy as np

from .task import TaskError

_M32, _M64 = 2**32 - 1, 2**64 - 1
_PER_BLOCK = 8  # numbers of 32 bits in one block of four words


def key_of(name: str, seed: int) -> tuple[int, int]:
    """The key of a stream: streams of different names or seeds have nothing in common."""
    return seed % 2**64, int.from_bytes(hashlib.sha256(f"gatelab/{name}".encode()).digest()[:8], "little")


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """The four words of 64 bits at a counter."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & _M64, (a >> 64) ^ c3 ^ k1, a & _M64
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _M64, (k1 + 0xBB67AE8584CAA73B) & _M64
    return [c0, c1, c2, c3]


def parts(n_parts: int, n: int) -> list[tuple[int, int]]:
    """(first, size) of each part when 0 … n − 1 is cut into parts of equal size, give or take one.

    Raises:
        TaskError: when some would be empty.
    """
    if n_parts > n:
        raise TaskError(
            f"an item of this length asks for {n_parts} different tokens of a kind of which the vocabulary has {n}; "
            f"lower distractors or length"
        )
    ends = [j * n // n_parts for j in range(n_parts + 1)] if n_parts else []
    return [(first, end - first) for first, end in pairwise(ends)]


class Draws:
    """The random numbers of item `index`: the definition."""

    def __init__(self, key: tuple[int, int], index: int):
        self.key, self.index, self.call = key, index, 0

    def words(self, count: int) -> list[int]:
        """`count` numbers of 32 bits."""
        n_blocks = -(-count // _PER_BLOCK)
        # NumPy counts up before it draws.
        first = self.index * n_blocks + 1
        blocks = [philox(self.key, (first + b, self.call, count, 0)) for b in range(n_blocks)]
        self.call += 1
        return [half for words in blocks for w in words for half in (w & _M32, w >> 32)][:count]

    def many(self, count: int, n: int) -> list[int]:
        """`count` numbers below `n`, with replacement."""
        return [w * n >> 32 for w in self.words(count)]

    def below(self, n: int) -> int:
        """One number below `n`."""
        return self.many(1, n)[0]

    def order(self, n: int) -> list[int]:
        """0 … n − 1 in random order."""
        words = self.words(n)
        return sorted(range(n), key=lambda i: (words[i], i))

    def distinct(self, count: int, n: int) -> list[int]:
        """`count` different numbers below `n` ≥ count: one of each of `count` equal parts, in random order."""
        drawn = [f + (w * size >> 32) for (f, size), w in zip(parts(count, n), self.words(count), strict=True)]
        return [drawn[i] for i in self.order(count)]


class DrawRows:
    """The random numbers of items first … first + n_rows − 1, an item a row: `Draws` at once, int64."""

    def __init__(self, key: tuple[int, int], first: int, n_rows: int):
        self.first, self.n_rows, self.call = first, n_rows, 0
        # One for all calls, set to the counter of each: a new one takes ten times as long.
        self._philox = np.random.Philox(key=np.array(key, np.uint64))
        self._state = self._philox.state

    def words(self, count: int) -> np.ndarray:
        """uint32 (n_rows, count)."""
        n_blocks = -(-count // _PER_BLOCK)
        self._state["state"]["counter"] = np.array([self.first * n_blocks, self.call, count, 0], np.uint64)
        self.call += 1
        self._philox.state = self._state  # whose buffer is empty
        words = self._philox.random_raw(self.n_rows * n_blocks * 4)
        return words.astype("<u8", copy=False).view("<u4").reshape(self.n_rows, n_blocks * _PER_BLOCK)[:, :count]

    def many(self, count: int, n: int) -> np.ndarray:
        """(n_rows, count)"""
        words = self.words(count)
        if n & (n - 1) == 0 and n > 1:  # the same numbers without a product of 64 bits
            return (words >> np.uint32(33 - n.bit_length())).astype(np.int64)
        return (words.astype(np.uint64) * np.uint64(n) >> np.uint64(32)).astype(np.int64)

    def below(self, n: int) -> np.ndarray:
        """(n_rows,)"""
        return self.many(1, n)[:, 0]

    def order(self, n: int) -> np.ndarray:
        """(n_rows, n)"""
        keys = self.words(n).astype(np.uint64) << np.uint64(32) | np.arange(n, dtype=np.uint64)
        keys.sort(axis=1)
        return (keys & np.uint64(_M32)).astype(np.int64)

    def distinct(self, count: int, n: int) -> np.ndarray:
        """(n_rows, count)"""
        first_N, size_N = np.array(parts(count, n), np.uint64).reshape(count, 2).T
        drawn = first_N + (self.words(count).astype(np.uint64) * size_N >> np.uint64(32))
        return np.take_along_axis(drawn.astype(np.int64), self.order(count), axis=1)
