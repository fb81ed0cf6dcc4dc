"""Keys of several tokens that are alike: each token of a key is shared by as many other keys as can be."""

import numpy as np

from .draws import DrawRows, Draws
from .vocabulary import KEYS, N_KEYS


def grid_keys(draws: Draws, n: int, n_tokens: int) -> list[tuple[int, ...]]:
    """`n` different keys of `n_tokens`: points of the smallest grid that has so many, with a key token a line.

    With one token the keys are n different tokens; with two, any two of them agree in one token about as often as √n
    lines allow, so that no token alone says which key it is.
    """
    m = side(n, n_tokens)
    lines = [[KEYS + t for t in draws.distinct(m, N_KEYS)] for _ in range(n_tokens)]
    points = draws.distinct(n, m**n_tokens)
    return [tuple(lines[p][point // m**p % m] for p in range(n_tokens)) for point in points]


def grid_key_rows(draws: DrawRows, n: int, n_tokens: int) -> list[np.ndarray]:
    """`grid_keys` of many items: a column (B, n) for each token of the keys."""
    m = side(n, n_tokens)
    lines_BM = [KEYS + draws.distinct(m, N_KEYS) for _ in range(n_tokens)]
    points_BN = draws.distinct(n, m**n_tokens)
    return [np.take_along_axis(lines_BM[p], points_BN // m**p % m, axis=1) for p in range(n_tokens)]


def side(n: int, n_tokens: int) -> int:
    """The smallest m with m ** n_tokens ≥ n."""
    m = 1
    while m**n_tokens < n:
        m += 1
    return m
