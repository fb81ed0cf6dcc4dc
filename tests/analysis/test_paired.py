"""Runs become pairs, and no run disappears on the way."""

import subprocess
import sys
from math import inf, isnan, nan

import numpy as np
import pytest

from gatelab.analysis import Outcome, pairing_gain
from gatelab.analysis.paired import Outcomes
from gatelab.record import Metric

LOSS = Metric("val_loss", "nats", "lower-is-better", "held-out loss")
GATE = Metric("gate_mean", "fraction", "neutral", "gate mean")


def outcomes(arm, values, metric="val_loss", cell="stdlib", status="done"):
    return [Outcome(cell, arm, seed, metric, value, status) for seed, value in enumerate(values)]


def pairs(*groups):
    return Outcomes([o for group in groups for o in group]).pairs("stdlib", "gated", "none", LOSS)


def test_differences_are_arm_minus_baseline_of_the_same_seed_in_any_order():
    found = pairs(outcomes("gated", [1.0, 2.0, 3.0])[::-1], outcomes("none", [1.5, 2.0, 1.0]))
    assert found.seeds == [0, 1, 2]
    assert found.differences.tolist() == [-0.5, 0.0, 2.0]
    assert found.excluded == []


@pytest.mark.parametrize(
    ("outcome", "clause"),
    [
        (Outcome("stdlib", "gated", 2, "val_loss", 9.0, "diverged"), "seed 2 of gated diverged"),
        (Outcome("stdlib", "gated", 2, "val_loss", nan, "failed"), "seed 2 of gated failed"),
        (Outcome("stdlib", "gated", 2, "val_loss", nan, "missing"), "seed 2 of gated is missing"),
        (Outcome("stdlib", "gated", 2, "val_loss", nan, "oom"), "seed 2 of gated ran out of memory"),
        (Outcome("stdlib", "gated", 2, "val_loss", nan, "skipped"), "seed 2 of gated ended as skipped"),
        (Outcome("stdlib", "gated", 2, "val_loss", nan), "seed 2 of gated has no value"),
        (Outcome("stdlib", "gated", 2, "val_loss", inf), "seed 2 of gated gave inf"),
        (Outcome("stdlib", "gated", 7, "val_loss", 1.0), "seed 2 of gated has no value"),
    ],
)
def test_a_run_without_a_usable_value_is_left_out_and_named(outcome, clause):
    found = pairs(outcomes("none", [1.0, 1.0, 1.0]), outcomes("gated", [0.9, 0.8]), [outcome])
    assert found.seeds == [0, 1]
    assert clause in found.excluded


def test_a_run_that_makes_no_pair_is_left_out_with_its_reason():
    why = "seed 1 is of two versions of the code (none: a; gated: b)"
    apart = [Outcome("stdlib", "gated", 1, "val_loss", 0.5, unpaired=why)]
    found = pairs(outcomes("none", [1.0, 1.0, 1.0]), outcomes("gated", [0.9]), apart)
    assert found.seeds == [0] and found.excluded == [why, "seed 2 of gated has no value"]
    lost = [Outcome("stdlib", "gated", 0, "val_loss", nan, "diverged", unpaired=why)]
    assert pairs(outcomes("none", [1.0]), lost).excluded == ["seed 0 of gated diverged"]


def test_a_run_that_diverged_before_its_first_evaluation_is_said_to_have_diverged():
    table = Outcomes(
        [
            *outcomes("none", [2.0, 2.1]),
            *outcomes("gated", [1.9]),
            Outcome("stdlib", "gated", 1, "massive_max", 1e9, "diverged"),
        ]
    )
    assert table.pairs("stdlib", "gated", "none", LOSS).excluded == ["seed 1 of gated diverged"]


def test_both_sides_of_a_lost_pair_are_named():
    found = pairs(outcomes("none", [nan], status="failed"), outcomes("gated", [nan], status="diverged"))
    assert found.excluded == ["seed 0 of none failed", "seed 0 of gated diverged"]


def test_one_run_with_two_values_is_refused():
    with pytest.raises(ValueError, match="two outcomes for val_loss of seed 0 of none in stdlib"):
        Outcomes([*outcomes("none", [1.0]), *outcomes("none", [2.0])])


def test_an_arm_is_not_measured_on_what_its_finished_runs_do_not_have():
    table = Outcomes([*outcomes("none", [1.0]), *outcomes("gated", [1.0]), *outcomes("gated", [0.3], "gate_mean")])
    assert table.measured("stdlib", "gated", GATE)
    assert not table.measured("stdlib", "none", GATE)


def test_an_arm_that_never_finished_is_measured_on_what_its_cell_has():
    table = Outcomes([*outcomes("none", [1.0]), *outcomes("gated", [nan], status="failed")])
    assert table.measured("stdlib", "gated", LOSS)
    assert not table.measured("stdlib", "gated", GATE)


def gain(**values):
    groups = [o for arm, numbers in values.items() for o in outcomes(arm, numbers)]
    return pairing_gain(Outcomes(groups), LOSS, baseline="none", arms=["none", "gated"], cells=["stdlib"])


def test_a_refused_comparison_has_no_pairing_gain():
    rows = [*outcomes("none", [1.0, 2.0]), *outcomes("gated", [1.5, 2.2])]
    asked = {"baseline": "none", "arms": ["none", "gated"], "cells": ["stdlib"]}
    assert len(pairing_gain(Outcomes(rows), LOSS, **asked)) == 1
    assert pairing_gain(Outcomes(rows), LOSS, **asked, refused={("stdlib", "gated"): "refused: two versions"}) == []


def test_pairing_gain_is_the_variance_of_unrelated_runs_over_that_of_pairs():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=400)
    none, gated = (shared + 0.5 * rng.normal(size=400) for _ in range(2))
    (row,) = gain(none=none, gated=gated)
    assert row.gain == pytest.approx(5.0, rel=0.15)  # (2 * 1.25) / (2 * 0.25)
    assert row.correlation == pytest.approx(0.8, abs=0.05)
    assert row.variance_unpaired == pytest.approx(none.var(ddof=1) + gated.var(ddof=1))
    assert row.n == 400


def test_pairing_that_does_not_work_shows_no_gain():
    none, gated = np.random.default_rng(1).normal(size=(2, 400))
    (row,) = gain(none=none, gated=gated)
    assert row.gain == pytest.approx(1.0, abs=0.15)


def test_two_pairs_have_no_correlation_and_one_has_no_row():
    (row,) = gain(none=[1.0, 2.0], gated=[1.1, 2.3])
    assert isnan(row.correlation)
    assert row.gain > 10
    assert gain(none=[1.0], gated=[1.1]) == []


def test_the_analysis_starts_without_torch_and_without_scipy():
    check = "import sys, gatelab.analysis; print([m for m in ('torch', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"
