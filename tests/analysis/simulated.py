"""Studies whose truth is known, as evidence: values by cell, arm and seed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gatelab.analysis import Outcome
from gatelab.analysis.anomalies import READINGS, UNSTABLE, Evidence

METRICS = {name: r.metric for name, r in READINGS.items()} | {"unstable": UNSTABLE}


def outcomes(reading: str, arm: str, values: Sequence[float], cell: str = "c0", first: int = 0) -> list[Outcome]:
    return [Outcome(cell, arm, first + i, reading, float(v)) for i, v in enumerate(values)]


def evidence(
    readings: Mapping[str, Mapping[str, tuple[Sequence[float] | None, Sequence[float]]]], **settings: Any
) -> Evidence:
    """{reading: {cell: (baseline's values by seed, or None; the gate's)}}."""
    found = []
    for reading, by_cell in readings.items():
        for cell, (base, gated) in by_cell.items():
            found += [] if base is None else outcomes(reading, "none", base, cell)
            found += outcomes(reading, "gated", gated, cell)
    cells = list(dict.fromkeys(cell for by_cell in readings.values() for cell in by_cell))
    return Evidence(found, METRICS, "none", ["gated"], cells, **settings)


Noise = Callable[[np.random.Generator, int], np.ndarray]  # so many differences of mean 0 and standard deviation 1


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def pairs(
    rng: np.random.Generator, n: int, mean: float, sigma: float = 1.0, noise: Noise = normal
) -> tuple[np.ndarray, np.ndarray]:
    """Baseline and gated values of n seeds whose differences are normal, or as `noise` has them; seeds differ by more than arms
    do."""
    base = rng.normal(0, 3 * sigma, n)
    return base, base + mean + sigma * noise(rng, n)
