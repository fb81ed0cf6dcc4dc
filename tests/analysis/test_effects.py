"""From outcomes to findings: planted effects are found, noise is not, and what cannot be tested says so."""

from math import isnan, nan

import numpy as np
import pytest

from gatelab.analysis import Outcome, detectable_effect, effects
from gatelab.record import Metric

LOSS = Metric("val_loss", "nats", "lower-is-better", "held-out loss", equivalence=0.01, primary=True)
ACCURACY = Metric("accuracy", "fraction", "higher-is-better", "accuracy", primary=True)
GATE = Metric("gate_mean", "fraction", "neutral", "gate mean")
PEAK = Metric("massive_max", "", "neutral", "largest activation")
SINK = Metric(
    "first_token_mass", "fraction", "neutral", "first-token mass", bimodal=True, threshold=0.5, event="shows a sink"
)


def outcomes(arm, values, metric=LOSS, cell="stdlib", status="done"):
    return [Outcome(cell, arm, seed, metric.name, float(v), status) for seed, v in enumerate(values)]


def find(*groups, metrics=(LOSS,), arms=("none", "gated"), cells=("stdlib",), **settings):
    flat = [o for group in groups for o in group]
    return effects(flat, metrics, baseline="none", arms=arms, cells=cells, **settings)


def grid(differences, metric=LOSS, base=2.0):
    """One cell a row of `differences`, with seed effects that pairing removes; cells are named c0, c1, …"""
    seeds = np.random.default_rng(99).normal(size=np.shape(differences))
    groups = []
    for i, (row, shift) in enumerate(zip(differences, seeds, strict=True)):
        groups += outcomes("none", base + shift, metric, f"c{i}")
        groups += outcomes("gated", base + shift + row, metric, f"c{i}")
    return groups, [f"c{i}" for i in range(len(differences))]


def test_a_planted_effect_is_found_with_its_size_and_direction():
    (f,) = find(outcomes("none", [2.00, 2.10, 1.95]), outcomes("gated", [1.979, 2.081, 1.928]))
    assert (f.verdict, f.n_pairs, f.seeds) == ("lower", 3, [0, 1, 2])
    assert f.effect == pytest.approx(-0.02067, abs=1e-5)
    assert f.low < f.effect < f.high < 0
    assert f.differences == pytest.approx([-0.021, -0.019, -0.022])
    assert (f.baseline_mean, f.arm_mean) == pytest.approx((2.01667, 1.99600), abs=1e-5)
    assert f.sentence == (
        "stdlib: gated lowers the held-out loss by 0.021 nats"
        " (better; 95% interval 0.017 to 0.024, 3 seeds, q = 0.0018)."
    )


def test_what_is_refused_has_no_number_and_no_part_in_the_family():
    """q, level and shrunken variance of the others are those of a study without it."""
    rng = np.random.default_rng(5)
    groups, cells = grid(rng.normal(-0.02, 0.02, size=(12, 4)))
    late = [o for i, c in enumerate(cells) for o in outcomes("late", [9.0 + i, 8.0, 7.0, 6.5], cell=c)]
    why = {(c, "late"): "refused: seed 0 sees 32 tokens with late and 16 with none; give both as many" for c in cells}
    settings = {"arms": ("none", "gated", "late"), "cells": cells}
    with_it, alone = find(groups, late, refused=why, **settings), find(groups, cells=cells)
    assert [f for f in with_it if f.arm == "gated"] == alone
    refused = [f for f in with_it if f.arm == "late"]
    assert len(refused) == 12 and {f.verdict for f in refused} == {"refused"}
    f = refused[0]
    assert all(isnan(x) for x in (f.p, f.q, f.effect, f.low, f.high, f.arm_mean, f.baseline_mean, f.detectable))
    assert (f.n_pairs, f.seeds, f.differences, f.notes) == (0, [], [], [why["c0", "late"]])
    assert f.sentence == "c0: late is refused: seed 0 sees 32 tokens with late and 16 with none; give both as many."
    counted = find(groups, late, **settings)
    assert [f.q for f in counted if f.arm == "gated"] != [f.q for f in alone]


def test_lost_cells_set_no_variance_of_others_and_keep_their_own():
    """c0 and c1 differ by tens of nats; the other eleven have what they have without them, but for their place in the family."""
    rng = np.random.default_rng(6)
    differences = rng.normal(-0.02, 0.02, size=(13, 4))
    differences[:2] = [[30.0, 1.0, 12.0, 55.0], [-8.0, 40.0, 3.0, 9.0]]
    groups, cells = grid(differences)
    lost = {("c0", "none"): "none 4 of 4", ("c1", "gated"): "gated 3 of 4"}
    found = {f.cell: f for f in find(groups, cells=cells, lost=lost)}
    alone = {f.cell: f for f in find(groups, cells=cells[2:])}
    assert [(found[c].low, found[c].high, found[c].p) for c in alone] == [(f.low, f.high, f.p) for f in alone.values()]
    assert not [n for c in ("c0", "c1") for n in found[c].notes if "shrunk" in n]
    plain = {f.cell: f for f in find(groups, cells=cells[:2])}
    assert [found[c].p for c in plain] == [f.p for f in plain.values()]
    assert found["c2"].p != {f.cell: f for f in find(groups, cells=cells)}["c2"].p


def test_a_refused_exploratory_or_bimodal_metric_has_no_p_either():
    rows = [*outcomes("none", [0.9] * 6, SINK), *outcomes("gated", [0.1] * 6, SINK)]
    (f,) = find(rows, metrics=(SINK,), refused={("stdlib", "gated"): "refused: two versions"})
    assert (f.verdict, f.q) == ("refused", None) and isnan(f.p)


def test_noise_as_large_as_the_effect_is_unclear_and_says_what_could_have_been_seen():
    (f,) = find(outcomes("none", [2.00, 2.10, 1.95]), outcomes("gated", [1.95, 2.16, 1.93]))
    assert f.verdict == "unclear"
    assert "no effect seen at this power" in f.sentence
    spread = np.std([-0.05, 0.06, -0.02], ddof=1)
    assert f.detectable == pytest.approx(detectable_effect(spread, 3, alpha=0.10))
    assert "smallest effect that could have been seen with 80% power is 0.13 nats" in f.sentence


def test_small_differences_inside_the_declared_bound_are_equivalent():
    (f,) = find(outcomes("none", [2.00, 2.10, 1.95]), outcomes("gated", [2.001, 2.099, 1.950]))
    assert f.verdict == "equivalent"
    assert f.p_equivalence < 0.05 < f.p


def test_a_clear_effect_inside_the_bound_is_an_effect_that_says_it_is_inside():
    (f,) = find(outcomes("none", [2.00, 2.10, 1.95]), outcomes("gated", [2.0030, 2.1031, 1.9531]))
    assert f.verdict == "higher"
    assert "(worse; " in f.sentence
    assert "inside the 0.010 nats declared to count as nothing" in f.sentence


def test_without_a_declared_bound_nothing_is_called_equivalent():
    (f,) = find(
        outcomes("none", [0.50, 0.60, 0.55], ACCURACY),
        outcomes("gated", [0.501, 0.599, 0.55], ACCURACY),
        metrics=[ACCURACY],
    )
    assert (f.verdict, f.equivalence, f.p_equivalence) == ("unclear", None, None)


def test_a_secondary_metric_is_judged_by_its_p_and_called_exploratory():
    (f,) = find(outcomes("none", [100, 120, 110], PEAK), outcomes("gated", [161, 179, 172], PEAK), metrics=[PEAK])
    assert (f.verdict, f.q) == ("higher", None)
    assert "exploratory" in f.sentence
    assert "better" not in f.sentence
    assert "worse" not in f.sentence


def test_one_pair_is_untestable_and_says_what_to_do():
    (f,) = find(outcomes("none", [2.0, 2.1]), outcomes("gated", [1.9]))
    assert (f.verdict, f.n_pairs) == ("untestable", 1)
    assert f.effect == pytest.approx(-0.1)
    assert all(map(isnan, (f.low, f.high, f.p, f.q, f.p_equivalence, f.detectable)))
    assert "only one pair of runs finished" in f.sentence
    assert "add seeds" in f.sentence
    assert "seed 1 of gated has no value" in f.sentence


def test_an_arm_that_never_finished_is_a_finding_and_not_a_hole():
    (f,) = find(outcomes("none", [2.0, 2.1]), outcomes("gated", [nan, nan], status="failed"))
    assert (f.verdict, f.n_pairs, f.differences) == ("untestable", 0, [])
    assert isnan(f.effect)
    assert f.notes[:2] == ["seed 0 of gated failed", "seed 1 of gated failed"]


def test_arms_of_which_a_run_diverged_are_not_equivalent():
    none, gated = outcomes("none", [2.0, 2.0, 2.0, 2.0]), outcomes("gated", [2.0, 2.0001, 2.0001, 2.0])
    (same,) = find(none, gated)
    (f,) = find(none, gated[:3], [Outcome("stdlib", "gated", 3, "val_loss", 11.0, "diverged")])
    assert same.verdict == "equivalent"
    assert f.verdict == "unclear" and f.p_equivalence is None


def test_a_diverged_run_is_left_out_counted_and_named():
    diverged = Outcome("stdlib", "gated", 2, "val_loss", 11.0, "diverged")
    (f,) = find(outcomes("none", [2.0, 2.1, 1.9]), outcomes("gated", [1.98, 2.081]), [diverged])
    assert f.n_pairs == 2
    assert f.baseline_mean == pytest.approx(2.05)
    assert "seed 2 of gated diverged" in f.notes
    assert "2 seeds" in f.sentence
    assert f.sentence.endswith("Left out: seed 2 of gated diverged.")


def test_identical_differences_give_no_interval_and_no_p():
    (f,) = find(outcomes("none", [2.0, 2.1, 1.9]), outcomes("gated", [1.7, 1.8, 1.6]))
    assert f.verdict == "untestable"
    assert f.effect == pytest.approx(-0.3)
    assert all(map(isnan, (f.low, f.high, f.p, f.q, f.detectable)))
    assert "lower by exactly 0.30 nats in each of 3 seeds" in f.sentence
    assert "no interval and no p" in f.sentence


def test_equal_arms_are_reported_as_the_same_and_not_as_equivalent():
    same = [2.0, 2.1, 1.9]
    first, second = find(
        outcomes("none", same), outcomes("gated", same), outcomes("other", same), arms=("none", "gated", "other")
    )
    assert first.verdict == second.verdict == "untestable"
    assert first.effect == 0
    assert "gated and none have the same held-out loss in each of 3 seeds" in first.sentence


def test_what_cannot_be_tested_is_not_counted_in_the_family():
    testable = outcomes("none", [2.0, 2.1, 1.95]), outcomes("gated", [1.979, 2.081, 1.928])
    alone = find(*testable)[0]
    beside = find(*testable, outcomes("same", [2.0, 2.1, 1.95]), arms=("none", "gated", "same"))[0]
    assert beside.q == alone.q == alone.p


def test_a_metric_that_one_side_does_not_have_gives_no_finding():
    found = find(
        outcomes("none", [2.0, 2.1]),
        outcomes("gated", [1.9, 2.05]),
        outcomes("gated", [0.3, 0.4], GATE),
        metrics=[LOSS, GATE],
    )
    assert [f.metric for f in found] == ["val_loss"]


def test_nothing_run_yet_gives_no_findings():
    assert find() == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"arms": ("gated",)}, "baseline='none' is not among the arms gated"),
        ({"confidence": 95}, "confidence=95"),
        ({"fdr": 0.0}, "fdr=0.0"),
    ],
)
def test_mistakes_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        find(outcomes("none", [2.0, 2.1]), outcomes("gated", [1.9, 2.05]), **settings)


def test_a_baseline_without_any_outcome_is_refused():
    with pytest.raises(ValueError, match="baseline='none' has no outcome; outcomes exist for gated"):
        find(outcomes("gated", [1.9, 2.05]))


def test_q_values_are_benjamini_hochberg_over_all_primary_cells_arms_and_metrics():
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(0)
    groups = [
        outcomes(arm, 2 + rng.normal(size=4), metric, cell)
        for metric in (LOSS, ACCURACY, PEAK)
        for cell in ("a", "b")
        for arm in ("none", "gated", "other")
    ]
    found = find(*groups, metrics=[LOSS, ACCURACY, PEAK], arms=("none", "gated", "other"), cells=("a", "b"))
    family = [f for f in found if f.primary]
    assert (len(found), len(family)) == (12, 8)
    assert [f.q for f in family] == pytest.approx(list(false_discovery_control([f.p for f in family])))


def test_under_the_null_a_family_makes_a_false_discovery_at_its_rate():
    rng = np.random.default_rng(1)
    alarms = []
    for _ in range(400):
        groups, cells = grid(0.1 * rng.normal(size=(4, 3)))
        alarms.append(any(f.verdict in ("lower", "higher") for f in find(groups, cells=cells, fdr=0.10)))
    assert np.mean(alarms) == pytest.approx(0.10, abs=0.045)  # three standard errors


def test_a_planted_effect_is_found_with_the_power_that_was_predicted():
    rng = np.random.default_rng(2)
    effect = detectable_effect(0.1, 5, alpha=0.05)
    found = 0
    for _ in range(400):
        groups, _ = grid(effect + 0.1 * rng.normal(size=(1, 5)), PEAK)
        (f,) = find(groups, metrics=[PEAK], cells=["c0"])
        found += f.verdict == "higher"
    assert found / 400 == pytest.approx(0.8, abs=0.06)  # three standard errors


def test_the_detectable_effect_is_that_of_the_level_the_family_leaves():
    rng = np.random.default_rng(3)
    groups, cells = grid(0.1 * rng.normal(size=(5, 3)))
    for f in find(groups, cells=cells, fdr=0.10):
        assert f.verdict == "unclear"
        assert f.detectable == pytest.approx(detectable_effect(np.std(f.differences, ddof=1), 3, alpha=0.10 / 5))


def test_a_p_below_5_percent_that_the_family_does_not_support_is_only_a_maybe():
    rng = np.random.default_rng(4)
    groups, cells = grid(np.vstack([[0.10, 0.13, 0.16], 0.1 * rng.normal(size=(6, 3))]))
    f = find(groups, cells=cells)[0]
    assert f.p < 0.05
    assert f.q > 0.10
    assert f.verdict == "unclear"
    assert "c0: gated may raise the held-out loss by 0.13 nats" in f.sentence
    assert "not enough" in f.sentence


def test_a_family_full_of_effects_says_where_one_interval_includes_zero():
    groups, cells = grid([[0.10, 0.101, 0.102], [0.2, 0.201, 0.202], [0.2, 0.31, 0.55]])
    f = find(groups, cells=cells)[2]
    assert f.verdict == "higher"
    assert f.low < 0 < f.high
    assert any("includes zero" in note for note in f.notes)


def test_variances_are_shrunk_across_ten_cells_but_not_across_nine():
    differences = 0.1 * np.random.default_rng(5).normal(size=(10, 3))
    for n_cells, is_moderated in [(9, False), (10, True)]:
        groups, cells = grid(differences[:n_cells])
        found = find(groups, cells=cells)
        assert all(any("shrunk across" in note for note in f.notes) == is_moderated for f in found)
        widths = {round((f.high - f.low) / np.std(f.differences, ddof=1), 6) for f in found}
        assert (len(widths) > 1) == is_moderated


def test_only_cells_of_one_metric_and_one_arm_lend_each_other_variance():
    rng = np.random.default_rng(8)
    cells = [f"c{i}" for i in range(9)]
    groups = [
        outcomes(arm, rng.normal(size=3), metric, cell)
        for metric in (LOSS, PEAK)
        for cell in cells
        for arm in ("none", "gated", "other")
    ]
    found = find(*groups, metrics=[LOSS, PEAK], arms=("none", "gated", "other"), cells=cells)
    assert len(found) == 36
    assert not any("shrunk across" in note for f in found for note in f.notes)


def test_a_cell_without_spread_borrows_variance_and_says_so():
    differences = 0.1 * np.random.default_rng(6).normal(size=(11, 3))
    groups, cells = grid(np.vstack([[0.0, 0.0, 0.0], differences]))
    f = find(groups, cells=cells)[0]
    assert f.verdict == "unclear"
    assert f.low < 0 < f.high
    assert "the differences of all seeds are identical" in f.notes


def test_a_bimodal_metric_comes_with_shares_and_is_never_called_equivalent():
    sink = Metric("first_token_mass", "fraction", "neutral", "first-token mass", 0.1, True, 0.5, event="shows a sink")
    (f,) = find(
        outcomes("none", [0.95, 0.94, 0.96], sink),
        outcomes("gated", [0.951, 0.939, 0.960], sink),
        metrics=[sink],
    )
    assert f.sentence.endswith(
        "Shows a sink in 3 of 3 seeds of none (exact 95% interval 29% to 100%), in 3 of 3 seeds of gated (29% to 100%)."
    )
    assert (f.verdict, f.equivalence) == ("unclear", None)
    assert any("not tested on a bimodal metric" in note for note in f.notes)


def test_the_share_counts_every_finished_run_even_one_that_lost_its_partner():
    (f,) = find(
        outcomes("none", [0.95, 0.94, 0.96], SINK),
        outcomes("gated", [0.05, 0.93], SINK),
        [Outcome("stdlib", "gated", 2, SINK.name, nan, "diverged")],
        metrics=[SINK],
    )
    assert "3 of 3 seeds of none" in f.sentence
    assert "1 of 2 seeds of gated (1% to 99%)" in f.sentence
    assert "2 seeds cannot decide whether gated changes that (exact test, p = 1)" in f.sentence
    assert f.sentence.endswith("Left out: seed 2 of gated diverged.")
    assert any("describes no single run" in note for note in f.notes)


def test_three_seeds_that_all_lose_a_sink_are_not_called_an_effect_and_eight_are():
    def gone(n: int):
        (f,) = find(
            outcomes("none", [0.95 + 0.001 * i for i in range(n)], SINK),
            outcomes("gated", [0.02 + 0.001 * (i % 2) for i in range(n)], SINK),
            metrics=[SINK],
        )
        return f

    few, many = gone(3), gone(8)
    assert (few.verdict, few.p) == ("unclear", 0.25)
    assert isnan(few.low) and isnan(few.high)  # an interval of means would contradict the exact test
    assert "at least 6 seeds that all change the same way would be needed" in few.sentence
    assert (many.verdict, many.p) == ("lower", 2 * 0.5**8)
    assert "fewer such runs than chance explains" in many.sentence


def test_equal_arms_half_in_each_regime_raise_no_more_alarms_than_promised():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(400):
        values = rng.random((2, 3)) < 0.5
        noise = 0.01 * rng.standard_normal((2, 3))
        none, gated = 0.05 + 0.9 * values + noise
        (f,) = find(outcomes("none", list(none), SINK), outcomes("gated", list(gated), SINK), metrics=[SINK])
        alarms += f.verdict in ("lower", "higher") and f.p < 0.01
    assert alarms <= 6  # t alone gives about 3% of 400 even at the 0.1% level


def test_runs_that_all_stay_in_one_regime_are_compared_by_their_means():
    (f,) = find(
        outcomes("none", [0.050, 0.051, 0.049, 0.052], SINK),
        outcomes("gated", [0.020, 0.021, 0.018, 0.022], SINK),
        metrics=[SINK],
    )
    assert f.verdict == "lower"
    assert "lowers the mean first-token mass" in f.sentence


def test_findings_come_cell_by_cell_metric_by_metric_arm_by_arm_as_asked():
    groups = [
        outcomes(arm, np.random.default_rng(7).normal(size=3), metric, cell)
        for cell in ("a", "b", "unasked")
        for metric in (LOSS, PEAK)
        for arm in ("x", "none", "y", "unasked")
    ]
    found = find(*groups, metrics=[PEAK, LOSS], arms=("y", "none", "x"), cells=("b", "a"))
    assert [(f.cell, f.metric, f.arm) for f in found] == [
        (cell, metric, arm) for cell in ("b", "a") for metric in ("massive_max", "val_loss") for arm in ("y", "x")
    ]


def test_differences_of_shares_stay_within_one():
    share = Metric("sink_rate", "share", "neutral", "sink rate")
    (f,) = find(outcomes("none", [0.1, 0.9, 0.2], share), outcomes("gated", [0.9, 0.1, 0.3], share), metrics=[share])
    assert -1 <= f.low < f.high <= 1
    assert isnan(f.detectable) and "no effect of any size" in f.sentence
