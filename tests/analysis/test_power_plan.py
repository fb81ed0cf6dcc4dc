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
    assert row.sigma == pytest.approx(np.median([x.std(ddof=1) for x in d])) and row.df == 3
    for effect, level in ((row.alone, 0.05), (row.screened, 0.10 / 20), (row.confirmed, 2 * 0.05 / 3)):
        assert power(effect, row.sigma_upper, 5, level) == pytest.approx(0.8, abs=1e-6)
    (other,) = foresee(evidence({"val_loss": cells}), ["val_loss"], seeds=(5,), n_cells=20, n_arms=3)
    assert power(other.screened, row.sigma_upper, 5, 0.10 / 60) == pytest.approx(0.8, abs=1e-6)


def test_cells_that_spread_a_thousand_times_as_much_do_not_make_the_plan():
    """Differences of −s and s, so that a cell's standard deviation is s times the square root of two."""
    cells = {f"c{i}": ([0.0, 0.0], [-s, s]) for i, s in enumerate((0.002, 0.003, 2.0))} | {"even": ([1, 1], [2, 2])}
    (row,) = foresee(evidence({"val_loss": cells}), ["val_loss"], seeds=(5,))
    assert row.sigma == pytest.approx(0.003 * 2**0.5) and row.n_spreading == 3
    assert (row.sigma_low, row.sigma_high) == pytest.approx((0.002 * 2**0.5, 2 * 2**0.5))
    # The 20% quantile of χ² with one degree of freedom.
    assert row.sigma_upper == pytest.approx(row.sigma / 0.06418475466730159**0.5)


def test_the_upper_bound_covers_the_spread_of_four_pilots_in_five():
    rng = np.random.default_rng(1)
    studies = (evidence({"val_loss": {"c0": pairs(rng, 3, 0)}}) for _ in range(500))
    uppers = [foresee(study, ["val_loss"], seeds=(5,))[0].sigma_upper for study in studies]
    assert np.mean(np.array(uppers) >= 1) == pytest.approx(0.8, abs=3 * (0.16 / 500) ** 0.5)


@pytest.mark.parametrize("sigmas", [(0.003, 0.02, 2.0), (1.0,) * 12])
def test_the_upper_bound_covers_that_of_the_median_cell(sigmas):
    rng = np.random.default_rng(2)
    studies = (evidence({"val_loss": {f"c{i}": pairs(rng, 3, 0, s) for i, s in enumerate(sigmas)}}) for _ in range(200))
    uppers = np.array([foresee(study, ["val_loss"], seeds=(5,))[0].sigma_upper for study in studies])
    assert np.mean(uppers >= np.median(sigmas)) >= 0.8 - 3 * (0.16 / 200) ** 0.5
    assert np.median(uppers) < 3 * np.median(sigmas)


def test_a_pilot_without_spread_plans_nothing():
    assert foresee(evidence({"val_loss": {"c0": ([1, 2, 3], [2, 3, 4])}}), ["val_loss"]) == []
