"""Shares of runs, with intervals that cover at least what they state."""

from math import nan

import numpy as np
import pytest

from gatelab.analysis import Outcome, exact_interval, shares
from gatelab.analysis.shares import p_changes
from gatelab.record import Metric

SINK = Metric("first_token_mass", "fraction", "neutral", "first-token mass", bimodal=True, threshold=0.5)
LOSS = Metric("val_loss", "nats", "lower-is-better", "held-out loss")


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(3, 3, 0.2924, 1.0), (0, 3, 0.0, 0.7076), (1, 3, 0.0084, 0.9057), (5, 8, 0.2449, 0.9148)],
)
def test_exact_intervals_have_their_textbook_values(k, n, low, high):
    assert exact_interval(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [3, 8])
def test_the_interval_covers_every_true_share_at_least_as_often_as_it_says(n):
    from scipy.stats import binom

    ends = [exact_interval(k, n, 0.9) for k in range(n + 1)]
    for true in np.linspace(0.01, 0.99, 50):
        assert sum(binom.pmf(k, n, true) for k in range(n + 1) if ends[k][0] <= true <= ends[k][1]) >= 0.9


@pytest.mark.parametrize(("k", "n"), [(4, 3), (-1, 3), (0, 0)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match=f"k={k} of n={n}"):
        exact_interval(k, n)


def test_shares_count_finished_runs_above_the_threshold_in_every_arm():
    values = {"none": [0.95, 0.9, 0.97], "gated": [0.05, 0.8, 0.5]}
    outcomes = [Outcome("toy", arm, s, SINK.name, v) for arm, vs in values.items() for s, v in enumerate(vs)]
    outcomes += [
        Outcome("toy", "gated", 3, SINK.name, 0.99, "diverged"),
        Outcome("toy", "gated", 4, SINK.name, nan),
        Outcome("toy", "lost", 0, SINK.name, nan, "failed"),
        Outcome("toy", "none", 0, LOSS.name, 2.0),
    ]
    rows = shares(outcomes, [LOSS, SINK], arms=["none", "gated", "lost"], cells=["toy"])
    assert [(r.arm, r.metric, r.k, r.n) for r in rows] == [
        ("none", "first_token_mass", 3, 3),
        ("gated", "first_token_mass", 1, 3),
    ]
    assert (rows[1].low, rows[1].high) == exact_interval(1, 3)


def test_changes_have_the_p_of_scipys_exact_binomial_test():
    from scipy.stats import binomtest

    for n in range(1, 41):
        for k in range(n + 1):
            assert p_changes(k, n - k) == pytest.approx(binomtest(k, n).pvalue, rel=1e-12)
    assert p_changes(0, 0) == 1.0
