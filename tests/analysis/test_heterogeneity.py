"""Effects over cells against scipy: balanced designs have known tests on cell means. And false alarms where cells differ."""

import numpy as np
import pytest
from scipy import stats
from simulated import evidence, pairs

from gatelab.analysis.both_ways import over_cells_and_seeds
from gatelab.analysis.heterogeneity import dependences, fit, left_out, pooled

SIZES = {"a": 1, "b": 1, "c": 2, "d": 2, "e": 4, "f": 4}


def study(rng, slope=0.0, between=0.0, n=4):
    """Six cells of three sizes; differences change by `slope` a doubling, and by `between` for other reasons."""
    means = {c: slope * np.log2(size) + rng.normal(0, between) for c, size in SIZES.items()}
    return evidence({"val_loss": {c: pairs(rng, n, mean) for c, mean in means.items()}})


def differences(e):
    return {c: dict(enumerate(e.pairs("val_loss", c, "gated").differences)) for c in SIZES}


def test_pooling_counts_each_cell_once_and_says_how_much_they_differ():
    e = study(np.random.default_rng(0), between=2)
    d = [np.array(list(x.values())) for x in differences(e).values()]
    found, means = pooled(e, "val_loss", "gated"), [x.mean() for x in d]
    alone = stats.ttest_1samp(means, 0)
    assert (found.effect, found.p) == pytest.approx((np.mean(means), alone.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(alone.confidence_interval()))
    assert found.p_between == pytest.approx(stats.f_oneway(*d).pvalue)
    assert found.within == pytest.approx(np.mean([x.var(ddof=1) for x in d]) ** 0.5)
    assert found.between == pytest.approx((np.var(means, ddof=1) - found.within**2 / 4) ** 0.5)
    assert (found.n_cells, found.n_pairs) == (6, 24)


def test_what_a_seed_does_to_all_cells_is_part_of_the_pooled_interval():
    """500 studies of six cells whose five seeds move all cells alike by as much as a pair's own noise: over cells alone 37%
    would be significant."""
    rng = np.random.default_rng(8)

    def p():
        seeds = rng.normal(size=5)
        cells = {c: (np.zeros(5), seeds + rng.normal(size=5)) for c in "abcdef"}
        return pooled(evidence({"val_loss": cells}), "val_loss", "gated").p

    assert np.mean([p() < 0.05 for _ in range(500)]) <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5


def test_a_mean_over_cells_and_seeds_is_as_sure_as_the_less_sure_of_the_two():
    cells_alike = {c: {s: x + 0.01 * i for s, x in enumerate((-1.0, 0.0, 2.0, 3.0))} for i, c in enumerate("abc")}
    found = over_cells_and_seeds(cells_alike)
    assert (found.n, found.df, found.mean) == (4, 3, pytest.approx(1.01))
    assert found.sigma == pytest.approx(np.std([-1, 0, 2, 3], ddof=1))
    seeds_alike = {str(x): {s: x + 0.01 * s for s in range(4)} for x in (0.0, 1.0, 5.0)}
    assert over_cells_and_seeds(seeds_alike).sigma == pytest.approx(np.std([0, 1, 5], ddof=1))
    apart = {c: {i: float(i), i + 9: 2.0} for i, c in enumerate("abc")}  # no seed in common
    assert over_cells_and_seeds(apart).n == 3


def test_a_factor_of_kinds_is_tested_against_cells_as_in_an_analysis_of_their_means():
    groups = differences(study(np.random.default_rng(1), slope=1, between=0.5))
    means = {c: np.mean(list(d.values())) for c, d in groups.items()}
    kinds = {c: f"kind {size}" for c, size in SIZES.items()}
    (found,) = fit(groups, {"kind": kinds})
    expected = stats.f_oneway(*([means[c] for c in SIZES if kinds[c] == k] for k in dict.fromkeys(kinds.values())))
    assert (found.f, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.df, found.df_error, found.against) == (2, 3, "cells")
    assert [x.effect for x in found.levels] == pytest.approx(
        [np.mean([means[a], means[b]]) for a, b in ("ab", "cd", "ef")]
    )
    assert np.isnan(found.slope)


def test_a_number_has_a_slope_a_doubling_as_a_regression_of_cell_means_has():
    groups = differences(study(np.random.default_rng(2), slope=1, between=0.5))
    (found,) = fit(groups, {"model.n_layers": SIZES})
    line = stats.linregress([np.log2(SIZES[c]) for c in groups], [np.mean(list(d.values())) for d in groups.values()])
    own = {c: np.mean(list(d.values())) for c, d in groups.items()}
    levels = [np.array([own[c] for c in pair]) for pair in ("ab", "cd", "ef")]
    square = sum(((x - x.mean()) ** 2).sum() for x in levels) / 3
    x = np.log2([SIZES[c] for c in groups])
    half = stats.t.ppf(0.975, 3) * (square / ((x - x.mean()) ** 2).sum()) ** 0.5
    assert (found.slope, found.slope_low, found.slope_high) == pytest.approx(
        (line.slope, line.slope - half, line.slope + half)
    )
    assert found.p == pytest.approx(stats.f_oneway(*levels).pvalue) and (found.df, found.df_error) == (2, 3)
    beyond = sum(
        2 * (v.mean() - line.intercept - line.slope * at) ** 2 for v, at in zip(levels, (0, 1, 2), strict=True)
    )
    assert found.p_bend == pytest.approx(stats.f.sf(beyond / square, 1, 3))


def bent(rng, effects, n=64, sigma=0.01):
    """Cells of one learning rate each with the effects of their pairs."""
    return {f"lr{i}": dict(enumerate(rng.normal(effect, sigma, n))) for i, effect in enumerate(effects)}


def test_an_effect_that_bends_with_a_number_is_told_level_by_level():
    """Three rates, +0.010, −0.005 and +0.012: a line through them misses the middle one, by 0.016, in every study."""
    rng, truth, rates = np.random.default_rng(11), (0.010, -0.005, 0.012), {"lr0": 5e-4, "lr1": 2e-3, "lr2": 8e-3}
    found = [fit(bent(rng, truth), {"optim.lr": rates})[0] for _ in range(200)]
    held = np.array([[x.low < t < x.high for x, t in zip(d.levels, truth, strict=True)] for d in found]).mean(axis=0)
    assert (np.abs(held - 0.95) <= 3 * (0.05 * 0.95 / 200) ** 0.5).all(), held
    assert all(d.p < 1e-6 and d.p_bend < 1e-6 for d in found)
    assert found[0].slope == pytest.approx(0.0005, abs=0.002), "a doubling tells next to nothing"
    assert [(c.start, c.end) for c in found[0].changes] == [
        ("0.0005", "0.002"),
        ("0.0005", "0.008"),
        ("0.002", "0.008"),
    ]
    assert found[0].changes[0].effect == pytest.approx(-0.015, abs=0.006)


def test_changes_are_paired_differences_of_levels_and_numbers_stand_in_order():
    groups = {"c": {0: 2.0, 1: 3.5, 2: 4.0}, "a": {0: 1.0, 1: 2.0, 2: 4.0}}
    (found,) = fit(groups, {"size": {"a": 1, "c": 2}})
    (change,) = found.changes
    alone = stats.ttest_rel(list(groups["c"].values()), list(groups["a"].values()))
    assert (change.start, change.end, change.effect) == ("1", "2", pytest.approx(0.8333333))
    assert (change.low, change.high) == pytest.approx(tuple(alone.confidence_interval()))
    assert found.furthest == pytest.approx(max(abs(change.low), abs(change.high)))
    assert np.isnan(found.p_bend) and found.slope == pytest.approx(change.effect)


def test_cells_in_which_most_runs_are_lost_are_in_no_mean_and_no_test():
    rng = np.random.default_rng(12)
    good = {c: pairs(rng, 5, 0.1, 0.01) for c in "abcd"}
    awful = {c: pairs(rng, 5, 30, 20) for c in "efghi"}
    rates = {c: 2.0**i for i, c in enumerate("abcdefghi")}
    lost = {(c, "none"): "none 5 of 5" for c in "efg"} | {("h", "gated"): "gated 3 of 5", ("i", "none"): "none 4 of 5"}
    both, alone = evidence({"val_loss": good | awful}, lost=lost), evidence({"val_loss": good})
    found = pooled(both, "val_loss", "gated")
    assert dict(found.left_out) == {c: why for (c, _), why in lost.items()}
    assert (found.effect, found.p) == (pytest.approx(0.1, abs=0.02), pooled(alone, "val_loss", "gated").p)
    ours, theirs = (dependences(e, {"optim.lr": rates}, ["val_loss"])[0] for e in (both, alone))
    assert ours.p == theirs.p and len(ours.levels) == 4 and list(ours.left_out) == list("efghi")
    # Diverging is what such a cell is about.
    states = {c: ([0.0] * 5, [1.0, 0, 1, 1, 0]) for c in "ef"}
    assert not left_out(evidence({"unstable": states}, lost=lost), "unstable", "gated")


def test_cells_in_which_most_runs_are_lost_set_no_variance_of_others_and_keep_their_own():
    rng = np.random.default_rng(14)
    good = {f"c{i}": pairs(rng, 4, 0.1, 0.01) for i in range(11)}
    awful = {f"d{i}": pairs(rng, 4, 30, 20) for i in range(4)}
    lost = {("d0", "none"): "none 4 of 4"} | {(f"d{i}", "gated"): "gated 3 of 4" for i in (1, 2, 3)}
    both, alone = evidence({"val_loss": good | awful}, lost=lost), evidence({"val_loss": good})
    prior = both.prior("val_loss", "gated")
    assert prior == alone.prior("val_loss", "gated") and prior.variance < 0.001
    assert prior != evidence({"val_loss": good | awful}).prior("val_loss", "gated")
    assert [both.estimate("val_loss", c, "gated") for c in good] == [
        alone.estimate("val_loss", c, "gated") for c in good
    ]
    for cell, (base, gated) in awful.items():
        e = both.estimate("val_loss", cell, "gated")
        assert (e.sigma, e.df) == (pytest.approx(np.std(gated - base, ddof=1)), 3)
    fewer = {c: v for c, v in good.items() if c in ("c0", "c1")} | awful
    assert evidence({"val_loss": fewer | good}, lost=lost).prior("val_loss", "gated") == prior
    assert evidence({"val_loss": fewer}, lost=lost).prior("val_loss", "gated") is None
    # Known from other runs, as in a confirmation, it is not for a lost cell either.
    known = evidence({"val_loss": good | awful}, lost=lost, priors={("gated", "val_loss"): prior})
    assert known.estimate("val_loss", "d0", "gated") == both.estimate("val_loss", "d0", "gated")
    assert known.estimate("val_loss", "c0", "gated").df == pytest.approx(prior.df + 3)


def test_two_crossed_factors_are_told_apart_and_unequal_seeds_do_not_matter():
    """Known: size adds 2 a doubling, norm adds nothing, a seed of its own adds 5 to every cell that has it."""
    rng = np.random.default_rng(3)
    cells = {(size, norm): 2 * np.log2(size) for size in (1, 2, 4, 8) for norm in ("pre", "post")}
    groups = {
        f"{size}{norm}": {s: mean + 5 * (s == 0) + rng.normal(0, 0.1) for s in range(3 + (size == 8))}
        for (size, norm), mean in cells.items()
    }
    by = {"size": {f"{s}{n}": s for s, n in cells}, "norm": {f"{s}{n}": n for s, n in cells}}
    size, norm = fit(groups, by)
    assert size.slope == pytest.approx(2, abs=0.1) and size.p < 1e-4
    assert norm.p > 0.01


def test_few_cells_are_tested_against_seeds_and_say_so():
    groups = {"a": {0: 1.0, 1: 2.0, 2: 4.0}, "c": {0: 2.0, 1: 3.5, 2: 4.0}}
    (found,) = fit(groups, {"size": {"a": 1, "c": 2}})
    paired = stats.ttest_rel(list(groups["a"].values()), list(groups["c"].values()))
    assert found.against == "seeds" and found.p == pytest.approx(paired.pvalue)


def test_cells_without_spread_have_no_test():
    groups = {c: {s: float(d) for s, d in enumerate((1, 2, 4))} for c in ("a", "c")}
    (found,) = fit(groups, {"size": {"a": 1, "c": 2}})
    assert np.isnan(found.p) and found.notes == ["no spread is left to test against"]


def test_a_sign_that_flips_with_size_is_seen():
    rng = np.random.default_rng(4)
    cells = {c: pairs(rng, 5, {1: 3, 2: 0, 4: -3}[size], 0.5) for c, size in SIZES.items()}
    (found,) = dependences(evidence({"val_loss": cells}), {"size": SIZES}, ["val_loss"])
    assert found.flips and found.q < 0.05 and found.slope == pytest.approx(-3, abs=0.5)


def test_factors_that_differ_alike_are_one_and_aliased_ones_are_not_tested():
    groups = differences(study(np.random.default_rng(5)))
    width = {c: 64 * size for c, size in SIZES.items()}
    (found,) = fit(groups, {"layers": SIZES, "width": width})
    assert found.factor == "layers = width"
    split = {c: "small" if size == 1 else "large" for c, size in SIZES.items()}
    kinds = {c: f"kind {size}" for c, size in SIZES.items()}
    coarse, fine = fit(groups, {"split": split, "kind": kinds})
    assert coarse.notes == ["split cannot be told from the other factors in these cells"] and np.isnan(coarse.p)
    assert fine.notes


def test_cells_that_differ_for_other_reasons_do_not_make_a_factor_significant():
    """400 studies whose cells differ by twice a pair's spread, by no factor: 5% false alarms; against seeds it would be most."""
    rng = np.random.default_rng(6)
    p = [dependences(study(rng, between=2), {"size": SIZES}, ["val_loss"])[0].p for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_nothing_is_pooled_over_half_of_the_cells_two_versions_or_regimes():
    rng = np.random.default_rng(7)
    cells = {c: pairs(rng, 3, 0) for c in "abcd"}
    some = evidence({"val_loss": {c: cells[c] for c in "ab"}, "value_drain": cells})
    assert pooled(some, "val_loss", "gated") is None
    versions = evidence({"val_loss": {c: pairs(rng, 3, 0) for c in "ab"}}, not_pooled="two versions")
    assert pooled(versions, "val_loss", "gated") is None
    mass = {c: ([0.6, 0.6, 0.6], [0.6, 0.1, 0.1]) for c in "ab"}
    assert pooled(evidence({"first_token_mass": mass}), "first_token_mass", "gated") is None
