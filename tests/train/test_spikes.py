"""Planted spikes are found, clean curves have none."""

import numpy as np
import pytest

from gatelab.train.spikes import WINDOW, rolling_median, spikes_above_median, spikes_by_both, spikes_by_mad


def clean(n: int = 2000, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """A loss that falls as losses do, with noise."""
    return 2 + 6 / np.sqrt(1 + np.arange(n) / 5) + noise * np.random.default_rng(seed).normal(size=n)


def planted(at: tuple[int, ...], height: float = 0.5, **kind: float) -> np.ndarray:
    losses = clean(**kind)
    for i in at:
        losses[i] += height
    return losses


def test_the_median_is_that_of_the_last_window() -> None:
    values = np.random.default_rng(0).normal(size=30)
    expected = [np.median(values[max(0, i - 6) : i + 1]) for i in range(30)]
    assert np.array_equal(rolling_median(values, 7), expected)
    assert np.array_equal(rolling_median(values[:4], 7), expected[:4])


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_curve_has_no_spike(seed: int) -> None:
    assert spikes_above_median(clean(seed=seed)) == 0 and spikes_by_mad(clean(seed=seed)) == 0


def test_every_planted_spike_is_found() -> None:
    losses = planted((900, 1300, 1301, 1700))
    assert spikes_above_median(losses) == 4 and spikes_by_mad(losses) == 4 and spikes_by_both(losses) == 4


def test_a_spike_below_the_height_is_found_by_the_deviation_rule_alone() -> None:
    losses = planted((1200, 1500, 1800), height=0.09, noise=0.002)
    assert spikes_above_median(losses) == 0 and spikes_by_mad(losses) == 3 and spikes_by_both(losses) == 0


def test_batches_that_scatter_are_seen_by_the_height_alone() -> None:
    losses = clean(noise=0.15)
    assert spikes_above_median(losses) > 100 and spikes_by_both(losses) == 0


def test_a_solved_task_has_no_spike_though_its_rounding_and_its_first_batches_pass_a_threshold_each() -> None:
    """Losses scatter by 0.15 nats until step 800 and fall to 1e-7, where one in fifty is ten times as large."""
    draw = np.random.default_rng(0)
    learning = 2 + 0.15 * draw.normal(size=800)
    solved = 1e-7 * np.exp(0.3 * draw.normal(size=1200)) * np.where(np.arange(1200) % 50 == 7, 10, 1)
    losses = np.concatenate([learning, np.geomspace(1.5, 1e-7, 200), solved])
    assert spikes_above_median(losses) > 50 and spikes_by_mad(losses) > 15 and spikes_by_both(losses) == 0
    for i in (1500, 1700, 1900):
        losses[i] = 0.3
    assert spikes_by_both(losses) == 3


def test_a_step_counts_once_both_rules_see_that_very_step() -> None:
    losses = np.concatenate(
        [planted((900, 1300, 1700), height=0.09, noise=0.002), 2 + 0.15 * np.sin(np.arange(1000) * 2.4)]
    )
    assert spikes_above_median(losses) > 100 and spikes_by_mad(losses) >= 3 and spikes_by_both(losses) == 0


def test_fewer_than_three_hits_count_as_none_by_the_deviation_rule() -> None:
    for rule in (spikes_by_mad, spikes_by_both):
        assert rule(planted((600, 1400))) == 0 and rule(planted((600, 1000, 1400))) == 3


def test_a_slow_divergence_is_seen_by_both_rules() -> None:
    losses = clean()
    losses[1500:] += np.linspace(0, 3, 500)
    assert spikes_above_median(losses) > 300 and spikes_by_mad(losses) > 3 and spikes_by_both(losses) >= 3


@pytest.mark.parametrize("seed", range(20))
def test_slow_divergences_on_noisy_curves_are_mostly_seen_by_the_deviation_rule(seed: int) -> None:
    losses = clean(seed=seed, noise=0.02)
    losses[1000:] += np.linspace(0, 2, 1000)
    assert spikes_by_mad(losses) >= 3


def test_the_first_window_does_not_count() -> None:
    assert spikes_above_median(planted((50, 200))) == 0
    assert spikes_above_median(planted((WINDOW,))) == 1


@pytest.mark.parametrize("n", [0, 1, WINDOW])
def test_a_curve_no_longer_than_the_window_has_none(n: int) -> None:
    assert spikes_above_median(clean(n)) == spikes_by_mad(clean(n)) == spikes_by_both(clean(n)) == 0


def test_what_follows_a_divergence_does_not_count() -> None:
    losses = planted((900, 1300, 1700))
    ended = np.append(losses, [np.inf, np.nan, np.nan])
    assert spikes_above_median(ended) == spikes_above_median(losses) == 3
    assert spikes_by_mad(ended) == spikes_by_mad(losses) == 3
    assert spikes_by_both(ended) == spikes_by_both(losses) == 3
