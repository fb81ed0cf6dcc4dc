"""Settings and best rates: cells that differ in the learning rate alone are one, and every arm stands at its own best."""

from math import nan

import numpy as np
import pytest

from gatelab.analysis.best_rate import at_best, settings
from gatelab.analysis.paired import Outcome
from gatelab.analysis.student import estimate, p_two_sided

CELLS = ["toy lr0.001", "toy lr0.004", "toy lr0.016", "other"]
RATES = {
    "toy lr0.001": ("toy", 1e-3),
    "toy lr0.004": ("toy", 4e-3),
    "toy lr0.016": ("toy", 16e-3),
    "other": ("other", 1e-3),
}
LOSSES = {  # the baseline is best at 4e-3, the gate at 1e-3
    "none": {"toy lr0.001": 3.0, "toy lr0.004": 2.0, "toy lr0.016": 2.5, "other": 1.0},
    "gate": {"toy lr0.001": 1.5, "toy lr0.004": 1.9, "toy lr0.016": 4.0, "other": 1.1},
}


def outcomes(losses=LOSSES, seeds=(0, 1, 2), lost=()):
    out = []
    for arm, cells in losses.items():
        for cell, loss in cells.items():
            for seed in seeds:
                status = "diverged" if (cell, arm, seed) in lost else "done"
                out.append(Outcome(cell, arm, seed, "val_loss", nan if status != "done" else loss + seed / 10, status))
                out.append(Outcome(cell, arm, seed, "massive_max", 100 * loss, status))
    return out


def test_cells_that_differ_in_the_rate_alone_are_one_setting_with_a_name_of_their_own():
    found = settings(CELLS, RATES)
    assert [(s.name, list(s.cells)) for s in found] == [("toy", [1e-3, 4e-3, 16e-3]), ("other", [1e-3])]


@pytest.mark.parametrize(
    ("cells", "rates", "names"),
    [
        (
            ["a 0.001", "b 0.002"],
            {"a 0.001": ("x", 1e-3), "b 0.002": ("x", 2e-3)},
            ["a 0.001 to b 0.002"],
        ),  # nothing in common
        (["p", "q"], {"p": ("x", 1e-3), "q": ("x", 1e-3)}, ["p", "q"]),  # one rate twice: each stands alone
        (["p", "q"], {}, ["p", "q"]),  # rates that must not be compared
        (
            ["0.001", "0.002"],
            {"0.001": ("x", 1e-3), "0.002": ("x", 2e-3)},
            ["0.001 to 0.002"],
        ),  # nothing is left of the name
        (["s1 lr1", "s1 lr4"], {"s1 lr1": ("x", 1.0), "s1 lr4": ("x", 4.0)}, ["s1"]),  # a rate that stands in it twice
    ],
)
def test_names_fall_back_to_those_of_the_first_and_the_last_cell(cells, rates, names):
    assert [s.name for s in settings(cells, rates)] == names


def test_each_arm_stands_at_its_own_best_rate():
    found = at_best(outcomes(), settings(CELLS, RATES), baseline="none")
    assert found.best == {
        ("toy", "none"): "toy lr0.004", ("toy", "gate"): "toy lr0.001", ("other", "none"): "other", ("other", "gate"): "other",
    }  # fmt: skip
    of = {(o.cell, o.arm, o.seed, o.metric): o.value for o in found.outcomes}
    assert of["toy", "gate", 1, "val_loss"] == pytest.approx(1.6)
    assert of["toy", "none", 1, "massive_max"] == 200, "all metrics are those of the rate that is best by the loss"
    assert found.notes == []


def test_the_largest_rate_costs_what_it_does_over_the_baselines_best():
    found = at_best(outcomes(), settings(CELLS, RATES), baseline="none")
    costs = {(o.cell, o.arm, o.seed): o.value for o in found.outcomes if o.metric == "rate_cost"}
    assert costs == {
        ("toy", arm, s): pytest.approx(cost) for arm, cost in (("none", 0.5), ("gate", 2.1)) for s in range(3)
    }


def test_a_rate_at_which_a_run_is_lost_is_no_candidate_and_is_named():
    found = at_best(outcomes(lost=[("toy lr0.001", "gate", 2)]), settings(CELLS, RATES), baseline="none")
    assert found.best["toy", "gate"] == "toy lr0.004"
    assert found.notes == ["gate in toy: the best of the rates without 0.001, where not all its runs are done"]
    lost = [(c, "gate", 2) for c in CELLS[:3]]
    found = at_best(outcomes(lost=lost), settings(CELLS, RATES), baseline="none")
    assert ("toy", "gate") not in found.best
    assert "gate in toy: no learning rate at which all its runs are done" in found.notes


def test_a_run_that_diverged_at_the_largest_rate_stays_in_the_cost_with_its_state():
    found = at_best(outcomes(lost=[("toy lr0.016", "gate", 0)]), settings(CELLS, RATES), baseline="none")
    (lost,) = [o for o in found.outcomes if o.metric == "rate_cost" and o.status != "done"]
    assert (lost.arm, lost.seed, lost.status) == ("gate", 0, "diverged")
    assert found.lost["toy", "gate", "rate_cost"] == [0]
    assert found.notes[-1].startswith("gate in toy at the largest rate: seed 0 diverged")


def test_a_rate_that_is_refused_is_not_said_to_lack_runs():
    found = at_best(outcomes(), settings(CELLS, RATES), baseline="none", refused={("toy lr0.001", "gate")})
    assert found.best["toy", "gate"] == "toy lr0.004" and found.notes == []


def test_refused_comparisons_are_left_out():
    found = at_best(
        outcomes(), settings(CELLS, RATES), baseline="none", refused={("toy lr0.001", "gate"), ("other", "gate")}
    )
    assert found.best["toy", "gate"] == "toy lr0.004" and ("other", "gate") not in found.best


def test_an_arm_of_one_rate_is_not_held_to_a_baseline_of_three():
    losses = {**LOSSES, "gate": {"toy lr0.001": 3.1, "other": 1.1}}  # +0.1 at its rate, +1.1 beside the baseline's best
    found = at_best(outcomes(losses), settings(CELLS, RATES), baseline="none")
    assert [s.name for s in found.settings] == CELLS
    assert found.best["toy lr0.001", "gate"] == found.best["toy lr0.001", "none"] == "toy lr0.001"
    at = {(o.cell, o.arm): o.value for o in found.outcomes if o.metric == "val_loss" and o.seed == 0}
    assert at["toy lr0.001", "gate"] - at["toy lr0.001", "none"] == pytest.approx(0.1)


def test_arms_of_every_rate_are_joined_and_one_of_a_single_rate_stands_alone_beside_the_baseline():
    static = {"static": {"toy lr0.001": 3.1, "other": 1.2}}
    found = at_best(outcomes(LOSSES | static), settings(CELLS, RATES), baseline="none")
    joined, alone, other = found.settings
    assert (joined.name, joined.arms, list(joined.cells)) == ("toy", {"none", "gate"}, [1e-3, 4e-3, 16e-3])
    assert (alone.name, alone.arms, other.arms) == ("toy lr0.001", {"none", "static"}, None)
    assert {key: cell for key, cell in found.best.items() if key[0] != "other"} == {
        ("toy", "none"): "toy lr0.004", ("toy", "gate"): "toy lr0.001",
        ("toy lr0.001", "none"): "toy lr0.001", ("toy lr0.001", "static"): "toy lr0.001",
    }  # fmt: skip
    assert {(o.cell, o.arm) for o in found.outcomes if o.metric == "rate_cost"} == {("toy", "none"), ("toy", "gate")}
    assert found.notes == ["toy: static stands alone at each rate, as not planned at all of them"]


def test_a_cell_that_stands_alone_has_not_the_name_of_the_joined_ones():
    found = settings(["toy", "toy lr0.004"], {"toy": ("kind", 1e-3), "toy lr0.004": ("kind", 4e-3)})
    losses = {arm: {"toy": 2.0, "toy lr0.004": 1.0} for arm in ("none", "gate")} | {"static": {"toy": 3.0}}
    best = at_best(outcomes(losses), found, baseline="none")
    assert [s.name for s in best.settings] == ["toy to toy lr0.004", "toy"]
    assert best.best["toy to toy lr0.004", "none"] == "toy lr0.004" and best.best["toy", "none"] == "toy"
    read = [(o.cell, o.arm, o.seed) for o in best.outcomes if o.metric == "val_loss"]
    assert len(read) == len(set(read))


def test_where_no_gate_is_planned_at_every_rate_the_rates_stand_alone():
    losses = LOSSES | {"gate": {"toy lr0.001": 1.5, "toy lr0.004": 1.9}, "static": {"toy lr0.016": 3.1}}
    found = at_best(outcomes(losses), settings(CELLS[:3], RATES), baseline="none")
    assert [s.name for s in found.settings] == CELLS[:3]
    assert found.notes == ["toy: its rates stand alone, as no gate is planned at each"]


def test_where_the_baseline_is_best_at_the_largest_rate_nothing_larger_was_run():
    losses = {arm: {"toy lr0.001": 2.0, "toy lr0.004": 1.0} for arm in ("none", "gate")}
    found = at_best(outcomes(losses), settings(CELLS[:2], RATES), baseline="none")
    assert all(o.metric != "rate_cost" for o in found.outcomes)


def false_alarms(rng, n_seeds, gap, n_studies, n_rates=3):
    """Of studies without any effect, whose rates differ by `gap` standard deviations of a pair: (seen at the best rates, seen of
    what the largest rate costs, the mean of that)."""
    rates = {f"toy lr{4**i}": ("toy", float(4**i)) for i in range(n_rates)}
    found, seen, costs = settings(list(rates), rates), {"val_loss": [], "rate_cost": []}, []
    means = gap * np.abs(np.arange(n_rates) - n_rates // 2)
    for _ in range(n_studies):
        common = means + rng.normal(size=(n_seeds, 1)) + rng.normal(size=(n_seeds, n_rates))
        losses = {arm: common + rng.normal(size=common.shape) for arm in ("none", "gate")}
        read = [
            Outcome(cell, arm, seed, "val_loss", float(losses[arm][seed, i]))
            for arm in losses for i, cell in enumerate(rates) for seed in range(n_seeds)
        ]  # fmt: skip
        at = {(o.arm, o.seed, o.metric): o.value for o in at_best(read, found, baseline="none").outcomes}
        for metric in seen:
            d = [at["gate", s, metric] - at["none", s, metric] for s in range(n_seeds) if ("gate", s, metric) in at]
            if d:
                seen[metric].append(p_two_sided(estimate(d)) < 0.05)
                costs += [np.mean(d)] if metric == "rate_cost" else []
    return np.mean(seen["val_loss"]), np.mean(seen["rate_cost"]), np.mean(costs)


@pytest.mark.parametrize("gap", [0, 4])
def test_the_choice_of_the_best_rate_makes_no_false_alarms(gap):
    at_the_best, of_costs, mean = false_alarms(np.random.default_rng(gap), 5, gap, 400)
    assert at_the_best <= 0.07 and of_costs <= 0.09
    assert mean < 0.05, "where rates are equally good the baseline's luck at its best makes the cost look smaller"
