"""Spreads: Pitman and Morgan's test against the correlation it is, its interval against itself, and false alarms."""

import numpy as np
import pytest
from scipy import stats
from simulated import evidence

from gatelab.analysis.dispersion import ALL_CELLS, dispersions, over_seeds


def test_the_test_is_the_correlation_of_sums_and_differences():
    rng = np.random.default_rng(0)
    a = rng.normal(size=9)
    b = 0.5 * a + 2 * rng.normal(size=9)
    found = over_seeds([(a, b, range(len(a)))])
    assert found.p == pytest.approx(stats.pearsonr(a + b, b - a).pvalue)
    assert found.ratio == pytest.approx(b.std() / a.std())


def test_the_interval_holds_the_ratios_that_the_test_would_not_reject():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=7), 3 * rng.normal(size=7)
    found = over_seeds([(a, b, range(len(a)))])
    for edge in (found.low, found.high):
        assert over_seeds([(a, b / edge, range(len(a)))]).p == pytest.approx(0.05)
    assert found.low < found.ratio < found.high


def test_cells_of_other_scales_pool_without_false_alarms():
    """1,000 studies of six cells of five seeds, whose scales are 1 to 10,000."""
    rng = np.random.default_rng(2)
    p = [
        over_seeds([(*(10.0**k * rng.normal(size=(2, 5))), range(5)) for k in (0, 1, 2, 3, 4, 4)]).p
        for _ in range(1000)
    ]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.parametrize("shared", [0.5, 0.9])
def test_what_a_seed_does_to_all_cells_alike_makes_no_false_alarms(shared):
    """1,000 studies of six cells of five seeds; of each arm's variance a share is its seeds' in all cells. Pitman and Morgan's
    test alone would give 16% and 45%."""
    rng = np.random.default_rng(4)

    def study():
        both = shared**0.5 * rng.normal(size=(2, 1, 5)) + (1 - shared) ** 0.5 * rng.normal(size=(2, 6, 5))
        return [(*pair, range(5)) for pair in both.transpose(1, 0, 2)]

    p = [over_seeds(study()).p for _ in range(1000)]
    assert np.mean(np.array(p) < 0.05) <= 0.05


def test_over_cells_the_interval_holds_one_where_p_is_above_5_percent():
    rng = np.random.default_rng(5)
    is_inside = []
    for ratio in np.tile((1.0, 1.5, 2.0, 3.0), 25):
        found = over_seeds([(rng.normal(size=6), ratio * rng.normal(size=6), range(6)) for _ in range(5)])
        assert found.low < found.ratio < found.high
        is_inside.append((found.low < 1 < found.high, found.p > 0.05))
    # Where the ratios that are not rejected are two stretches, the interval holds both and what is between.
    assert all(inside >= kept for inside, kept in is_inside)
    assert sum(inside == kept for inside, kept in is_inside) >= 95


def test_a_gate_that_doubles_the_spread_over_seeds_is_seen_over_cells_and_seldom_in_one():
    rng = np.random.default_rng(3)
    cells = {f"c{i}": (rng.normal(size=5), 3 * rng.normal(size=5)) for i in range(8)}
    found = dispersions(evidence({"val_loss": cells, "first_token_mass": cells}), ["val_loss", "first_token_mass"], {})
    assert {s.reading for s in found} == {"val_loss"}  # the mass is bimodal: its spread is that of the regimes
    (together,) = (s for s in found if s.cell == ALL_CELLS)
    assert together.q < 0.05 and together.low < 3 < together.high and together.n_pairs == 40


def test_a_spread_over_heads_is_a_paired_ratio():
    ln = np.log([[1.0, 2.0, 4.0], [2.0, 4.4, 7.6]])
    (found,) = dispersions(evidence({"mass_spread_heads": {"c0": ln}}), [], {"mass_spread_heads": "heads"})
    assert (found.over, found.n_pairs) == ("heads", 3)
    assert found.ratio == pytest.approx((2 * 2.2 * 1.9) ** (1 / 3)) and found.low < 2 < found.high


@pytest.mark.parametrize("b", [[1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 4.0, 6.0, 8.0, 10.0]])
def test_a_constant_arm_or_a_multiple_of_the_baseline_has_no_test(b):
    assert over_seeds([(np.arange(1.0, 6), np.array(b), range(5))]) is None


def test_three_seeds_of_one_cell_are_too_few():
    assert over_seeds([(np.array([1.0, 2, 4]), np.array([1.0, 5, 3]), range(3))]) is None
