"""Loss spikes in a finished curve, by two rules and by both. NumPy only."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

WINDOW = 201
_PIECE = 4096


def rolling_median(values: NDArray[np.float64], window: int = WINDOW) -> NDArray[np.float64]:
    """Median of the `window` values up to and including each one; the first window − 1 use what there is."""
    return _over_windows(values, window, lambda part_NW: np.median(part_NW, axis=-1))


def rolling_mad(values: NDArray[np.float64], window: int = WINDOW) -> NDArray[np.float64]:
    """Median absolute deviation of the same values from their median."""

    def mad(part_NW: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.median(np.abs(part_NW - np.median(part_NW, axis=-1, keepdims=True)), axis=-1)

    return _over_windows(values, window, mad)


def spikes_above_median(losses: NDArray[np.float64], height: float = 0.1) -> int:
    """Steps with a loss more than `height` nats above the rolling median of 201 steps (the paper's released curves:
    123 of 9,851 without a gate, 0 of 19,774 with one). The first 201 steps, where the loss still falls, do not count."""
    losses = losses[np.isfinite(losses)]
    if len(losses) <= WINDOW:
        return 0
    return int((losses - rolling_median(losses) > height)[WINDOW:].sum())


def spikes_by_mad(losses: NDArray[np.float64], k: float = 7.0, hits: int = 3) -> int:
    """Steps more than `k` robust deviations (1.4826 MAD of the window's residuals) above the rolling median, counted
    only when there are at least `hits`: one alone is a false alarm in a third of clean curves. The residuals' own median
    is taken off for the MAD: while the loss falls, all of them lie below the rolling median, which comes late."""
    losses = losses[np.isfinite(losses)]
    if len(losses) <= WINDOW:
        return 0
    return _counted(_beyond(losses - rolling_median(losses), k), hits)


def spikes_by_both(losses: NDArray[np.float64], height: float = 0.1, k: float = 7.0, hits: int = 3) -> int:
    """Steps that both rules see, where there are at least `hits` of them. Apart neither tells a spike: batches of few answers
    scatter by more than 0.1 nats, and in a task that is solved 7 deviations are the rounding of losses of 1e-7."""
    losses = losses[np.isfinite(losses)]
    if len(losses) <= WINDOW:
        return 0
    residual = losses - rolling_median(losses)
    return _counted((residual > height) & _beyond(residual, k), hits)


def _beyond(residual: NDArray[np.float64], k: float) -> NDArray[np.bool_]:
    return residual > k * 1.4826 * rolling_mad(residual)


def _counted(is_spike: NDArray[np.bool_], hits: int) -> int:
    found = int(is_spike[WINDOW:].sum())
    return found if found >= hits else 0


def _over_windows(
    values: NDArray[np.float64], window: int, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    out = np.empty_like(values)
    head = min(window - 1, len(values))
    for i in range(head):
        out[i] = statistic(values[: i + 1])
    # In pieces, because each window is copied.
    for i in range(head, len(values), _PIECE):
        part = values[i - window + 1 : i + _PIECE]
        out[i : i + _PIECE] = statistic(np.lib.stride_tricks.sliding_window_view(part, window))
    return out
