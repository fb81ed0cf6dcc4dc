"""What the seeds of stored studies do to the paired difference in held-out loss, as noise for simulated ones."""

from functools import cache
from pathlib import Path

import duckdb
import numpy as np
from simulated import Noise

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@cache
def differences(study: str) -> dict[tuple[str, str], np.ndarray]:
    """{(cell, arm): differences from the arm `none` at the last step, seed by seed}, less their mean."""
    found = duckdb.sql(f"""
        WITH last AS (SELECT cell, arm, seed, value FROM '{RESULTS / study / "folder.parquet"}'
            WHERE metric = 'val_loss' AND domain IS NULL AND layer IS NULL AND intervention IS NULL AND split = 'heldout'
            QUALIFY step = max(step) OVER (PARTITION BY cell, arm, seed))
        SELECT a.cell, a.arm, list(a.value::DOUBLE - b.value::DOUBLE ORDER BY a.seed) FROM last a
        JOIN last b ON a.cell = b.cell AND a.seed = b.seed AND a.arm != 'none' AND b.arm = 'none' GROUP BY ALL ORDER BY ALL
    """).fetchall()
    return {(cell, arm): np.array(d) - np.mean(d) for cell, arm, d in found}


def noise_of(study: str, cell: str, arm: str, sign: int = 1) -> Noise:
    """Draws from these differences with replacement, on a scale of their own; a `sign` of −1 turns them round."""
    values = sign * differences(study)[cell, arm] / differences(study)[cell, arm].std()
    return lambda rng, n: rng.choice(values, n)


def skewed(sign: int = 1) -> Noise:
    """Skewness −2.5: few of the 256 seeds gain far more than the others."""
    return noise_of("backcopy-key", "1-layer-bos-lr0.002", "headwise-open", sign)


def as_stored() -> tuple[list[Noise], list[float]]:
    """The 48 cells and arms of the phase diagram: each one's noise, and its standard deviation in nats."""
    found = differences("backcopy-phases")
    return [noise_of("backcopy-phases", *where) for where in found], [float(d.std()) for d in found.values()]
