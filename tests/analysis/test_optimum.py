"""The best rate of a curve: a planted optimum is found between the rates, at an end there is none, and the interval covers it."""

from math import inf, isnan, log2

import numpy as np
import pytest

from gatelab.analysis.optimum import optimum, seed_losses
from gatelab.analysis.paired import Outcome
from gatelab.report.best_rates import _words

RATES = (0.001, 0.002, 0.004, 0.016)


def bowl(best: float, n: int = 4, noise: float = 0.0, rates=RATES, rng=None) -> dict[float, dict[int, float]]:
    """Losses of n seeds on parabolas over log2 of the rate that are lowest at `best`; seeds differ in height."""
    rng = rng or np.random.default_rng(0)
    height = rng.normal(0, 0.3, n)
    return {r: {s: 2 + height[s] + 0.1 * log2(r / best) ** 2 + noise * rng.normal() for s in range(n)} for r in rates}


def test_an_optimum_between_the_rates_is_exact_without_noise():
    found = optimum(bowl(0.0027))
    assert found.lowest == 0.002 and found.end == "" and found.n == 4
    assert (found.best, found.low, found.high) == pytest.approx((0.0027,) * 3, rel=1e-4)


def test_at_an_end_of_the_range_there_is_none():
    for best, end, lowest in ((0.0001, "low", 0.001), (1.0, "high", 0.016)):
        found = optimum(bowl(best))
        assert (found.lowest, found.end) == (lowest, end) and isnan(found.best)
    assert optimum({0.1: {0: 1.0}, 0.2: {0: 2.0}}) is None


def test_one_seed_and_a_flat_curve_have_no_bounds():
    one = optimum(bowl(0.002, n=1))
    assert one.n == 1 and one.best == pytest.approx(0.002) and (one.low, one.high) == (0, inf)
    rng = np.random.default_rng(3)
    flat = {r: {s: 2 + 1e-4 * (r != 0.002) + rng.normal() * 0.01 * (s > 0) for s in range(3)} for r in RATES[:3]}
    flat[0.002] = {s: x - 0.01 for s, x in flat[0.002].items()}
    assert optimum(flat).high == inf


def test_a_seed_without_a_run_beside_the_lowest_is_left_out():
    losses = bowl(0.002)
    del losses[0.004][3]
    assert optimum(losses).n == 3


def coverage(n: int, noise: float, studies: int) -> tuple[float, float]:
    """Of the optima that three rates bracket, the share whose interval has the true one, and that is not bounded."""
    rng, inside, unbounded, total = np.random.default_rng(n), 0, 0, 0
    for _ in range(studies):
        best = 2.0 ** rng.uniform(-0.9, 0.9)
        found = optimum(bowl(best, n, noise, (0.25, 1.0, 4.0), rng))
        if not found.end and not isnan(found.best):
            total += 1
            inside += found.low <= best <= found.high
            unbounded += found.high == inf
    return inside / total, unbounded / total


@pytest.mark.parametrize(("n", "noise"), [(3, 0.02), (5, 0.1), (16, 0.1)])
def test_the_interval_has_the_true_optimum_in_nineteen_of_twenty(n, noise):
    assert 0.93 <= coverage(n, noise, 600)[0] <= 0.98


def test_what_is_said_names_the_optimum_and_its_interval():
    levels, means = RATES[:3], {0.001: 2.0, 0.002: 1.0, 0.004: 3.0}
    assert _words(0.001, levels, means) == "0.001: 2.0000 (an end of the range)"
    said = _words(0.002, levels, means, optimum(bowl(0.0021, noise=0.01, rates=levels)))
    assert said.startswith("0.002: 1.0000; optimum at 0.0022 (0.00") and said.endswith(", 4 seeds)")
    one = _words(0.002, levels, means, optimum(bowl(0.0021, n=1, rates=levels)))
    assert one == "0.002: 1.0000; optimum at 0.0021, one seed"
    assert _words(None, levels, means) == "not known: a level is missing"


def test_losses_are_of_finished_runs_and_the_seeds_that_findings_tell():
    from types import SimpleNamespace

    findings = [SimpleNamespace(metric="val_loss", cell="a", seeds=[0, 1])]
    runs = [Outcome("a", "none", s, "val_loss", 1.0 + s, "done" if s != 1 else "diverged") for s in range(3)]
    assert seed_losses(runs, findings) == {("a", "none"): {0: 1.0}}
