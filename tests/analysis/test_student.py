"""The t machinery against scipy where scipy has it, and against planted truth where it has not."""

import re
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest

from gatelab.analysis.student import (
    Estimate,
    Prior,
    detectable_effect,
    discovery_levels,
    estimate,
    fit_prior,
    interval,
    moderate,
    p_equivalent,
    p_two_sided,
    power,
    q_values,
)


def draws(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_p_and_interval_are_those_of_scipys_paired_t_test():
    from scipy.stats import ttest_rel

    a, b = draws(0, 2, 5)
    theirs, ours = ttest_rel(a, b), estimate(a - b)
    assert p_two_sided(ours) == pytest.approx(theirs.pvalue)
    assert interval(ours, 0.9) == pytest.approx(tuple(theirs.confidence_interval(0.9)))


def test_equivalence_is_the_worse_of_two_one_sided_tests():
    from scipy.stats import ttest_1samp

    d = 0.3 + draws(1, 6)
    sides = [ttest_1samp(d, -0.8, alternative="greater").pvalue, ttest_1samp(d, 0.8, alternative="less").pvalue]
    assert p_equivalent(estimate(d), 0.8) == pytest.approx(max(sides))


def test_equivalence_at_5_percent_means_that_the_90_percent_interval_is_inside_the_bound():
    for d in 0.2 + 0.3 * draws(2, 200, 4):
        e = estimate(d)
        low, high = interval(e, 0.90)
        assert (p_equivalent(e, 0.6) < 0.05) == (low > -0.6 and high < 0.6)


@pytest.mark.parametrize("n", [3, 5])
def test_interval_covers_the_truth_in_95_percent_of_studies(n):
    covered = [low <= 0.7 <= high for low, high in (interval(estimate(0.7 + d), 0.95) for d in draws(3, 4000, n))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.011)  # three standard errors


@pytest.mark.parametrize("n", [3, 5])
def test_equivalence_is_wrongly_claimed_at_the_bound_in_at_most_5_percent(n):
    claimed = np.mean([p_equivalent(estimate(1 + 0.2 * d), 1.0) < 0.05 for d in draws(4, 4000, n)])
    assert 0.03 < claimed < 0.061


@pytest.mark.parametrize("n", [3, 5, 10])
def test_a_detectable_effect_is_found_in_80_percent_of_studies(n):
    effect = detectable_effect(2.0, n, alpha=0.05, power=0.8)
    found = [p_two_sided(estimate(effect + 2.0 * d)) < 0.05 for d in draws(5, 4000, n)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)


def test_power_is_scipys_noncentral_t_where_that_has_an_answer():
    from scipy.stats import nct, t

    for n, alpha, effect in [(3, 0.05, 1.0), (3, 0.001, 5.0), (5, 0.05, 0.4), (20, 0.01, 0.8), (300, 0.05, 0.2)]:
        cut, shift = t.ppf(1 - alpha / 2, n - 1), effect * sqrt(n)
        both_sides = nct.sf(cut, n - 1, shift) + nct.sf(cut, n - 1, -shift)
        assert power(effect, 1.0, n, alpha) == pytest.approx(both_sides, abs=2e-6)


def test_power_of_no_effect_is_the_level():
    assert power(0.0, 1.0, 3, 0.05) == pytest.approx(0.05, abs=1e-6)


def test_detectable_effect_inverts_power_even_for_two_pairs_at_a_tiny_level():
    for n, alpha in [(2, 1e-5), (3, 0.0125), (50, 0.05)]:
        assert power(detectable_effect(0.3, n, alpha, 0.9), 0.3, n, alpha) == pytest.approx(0.9, abs=1e-6)


def test_the_table_of_detectable_effects_in_the_documentation_is_true():
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    rows = re.findall(r"^\| (\d+) pairs((?: \| [\d.]+)+) \|$", text, flags=re.MULTILINE)
    assert [int(n) for n, _ in rows] == [3, 5, 10]
    for n, cells in rows:
        printed = [float(c) for c in cells.split("|")[1:]]
        assert printed == [round(detectable_effect(1.0, int(n), alpha), 2) for alpha in (0.10, 0.05, 0.01)]


def test_borrowed_degrees_of_freedom_make_smaller_effects_detectable():
    assert detectable_effect(1.0, 3, df=20) < 0.65 * detectable_effect(1.0, 3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"sigma": 0.0, "n": 3}, "sigma=0.0"),
        ({"sigma": float("nan"), "n": 3}, "sigma=nan"),
        ({"sigma": 1.0, "n": 1}, "n=1"),
        ({"sigma": 1.0, "n": 3, "alpha": 1.0}, "alpha=1.0"),
        ({"sigma": 1.0, "n": 3, "power": 0.01}, "power=0.01"),
    ],
)
def test_impossible_questions_about_power_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        detectable_effect(**arguments)


def test_equal_variances_give_a_prior_of_infinite_weight():
    prior = fit_prior([0.25] * 12, [2] * 12)
    assert prior == Prior(inf, pytest.approx(0.25))


def test_variances_that_differ_only_by_sampling_share_one_prior_worth_much():
    variances = draws(6, 4000, 4).var(axis=1, ddof=1)
    prior = fit_prior(variances, [3] * 4000)
    assert prior.df > 40
    assert prior.variance == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("d0", "s0"), [(4.0, 0.1), (12.0, 3.0)])
def test_a_planted_prior_is_recovered(d0, s0):
    rng = np.random.default_rng(7)
    truth = s0**2 * d0 / rng.chisquare(d0, size=20000)
    df = rng.integers(4, 12, size=20000)
    prior = fit_prior(truth * rng.chisquare(df) / df, df)
    assert prior.df == pytest.approx(d0, rel=0.12)
    assert prior.variance == pytest.approx(s0**2, rel=0.05)


def test_fitting_a_prior_survives_cells_without_any_spread():
    prior = fit_prior([0.0, *draws(8, 11, 3).var(axis=1, ddof=1)], [2] * 12)
    assert 0 < prior.df < inf
    assert prior.variance > 0
    assert fit_prior([0.0] * 7 + [1.0] * 5, [2] * 12).df == 0


def test_a_prior_of_no_weight_leaves_plain_t():
    plain = [estimate(d) for d in draws(9, 4, 3)]
    assert moderate(plain, Prior(0.0, 5.0)) == plain


def test_moderation_is_the_weighted_mean_of_the_variances():
    cells = [Estimate(0.1, 2.0, 3, 2), Estimate(0.1, 1.0, 3, 2), *[Estimate(0.0, 1.0, 3, 2)] * 8]
    first = moderate(cells, Prior(6.0, 1.0))[0]
    assert first.sigma**2 == pytest.approx((6 * 1.0 + 2 * 4.0) / 8)
    assert first.df == 8


def test_an_infinite_prior_sets_every_variance_and_no_more_degrees_than_there_are():
    cells = [estimate(d) for d in draws(10, 10, 3)]
    assert {(e.sigma, e.df) for e in moderate(cells, Prior(inf, 4.0))} == {(2.0, 20)}


def test_moderation_finds_effects_that_plain_t_misses_at_three_seeds_and_keeps_the_false_share():
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(11)
    found = {"plain": [0, 0], "moderated": [0, 0]}
    for _ in range(12):
        sigma = np.sqrt(8 / rng.chisquare(8, size=160))
        shift = np.where(np.arange(160) < 8, 2.5, 0) * sigma
        plain = [estimate(d) for d in shift[:, None] + sigma[:, None] * rng.normal(size=(160, 3))]
        prior = fit_prior([e.sigma**2 for e in plain], [e.df for e in plain])
        for name, cells in (("plain", plain), ("moderated", moderate(plain, prior))):
            seen = false_discovery_control([p_two_sided(e) for e in cells]) <= 0.10
            found[name][0] += int(seen[:8].sum())
            found[name][1] += int(seen[8:].sum())
    true, false = found["moderated"]
    assert true > 0.35 * 12 * 8 > 3 * found["plain"][0]
    assert false / (true + false) < 0.15


def test_a_test_is_a_discovery_exactly_when_its_p_is_within_its_level():
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(12)
    for m in (1, 2, 7, 30):
        for _ in range(20):
            p = rng.uniform(size=m) ** 3
            within = p <= np.array(discovery_levels(p, 0.1))
            assert (within == (false_discovery_control(p) <= 0.1)).all()


def test_q_values_are_scipys_to_the_last_bit():
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(3)
    for n in (1, 2, 5, 40, 333):
        p = rng.uniform(size=n) ** 3
        assert list(q_values(p)) == list(false_discovery_control(p))
    tied = [0.5, 0.01, 0.5, 1.0, 0.0, 0.01]
    assert list(q_values(tied)) == list(false_discovery_control(tied))
