"""The power plan against the t test's own power, and how often a pilot's upper bound covers the truth."""

import numpy as np
import pytest
from simulated import evidence, pairs

from gatelab.analysis import power
from gatelab.analysis.foresight import foresee


def test_the_effects_of_the_plan_are_seen_with_eighty_percent_power():
    rng = np.random.default_rng(0)
    cells = {f"c{i}": pairs(rng, 4, 0, 0.02) for i in range(4)}
    (row,) = foresee(evidence({"val_loss": cells}), ["val_loss"], seeds=(5,), n_cells=20, n_claims=3)
    d = [evidence({"val_loss": cells}).pairs("val_loss", c, "gated").differences for c in cells]
    assert row.sigma == pytest.approx(np.mean([x.var(ddof=1) for x in d]) ** 0.5) and row.df == 12
    for effect, level in ((row.alone, 0.05), (row.screened, 0.10 / 20), (row.confirmed, 2 * 0.05 / 3)):
        assert power(effect, row.sigma_upper, 5, level) == pytest.approx(0.8, abs=1e-6)


def test_the_upper_bound_covers_the_spread_of_four_pilots_in_five():
    rng = np.random.default_rng(1)
    studies = (evidence({"val_loss": {"c0": pairs(rng, 3, 0)}}) for _ in range(500))
    uppers = [foresee(study, ["val_loss"], seeds=(5,))[0].sigma_upper for study in studies]
    assert np.mean(np.array(uppers) >= 1) == pytest.approx(0.8, abs=3 * (0.16 / 500) ** 0.5)


def test_a_pilot_without_spread_plans_nothing():
    assert foresee(evidence({"val_loss": {"c0": ([1, 2, 3], [2, 3, 4])}}), ["val_loss"]) == []
