"""Ladders of learning rates and of widths: planted limits, optima and slopes are found, and what is not inside is not guessed."""

from math import inf, isnan, log2

import numpy as np
import pytest
from planted_archive import losses, planted

from gatelab.analysis.archived import kept
from gatelab.analysis.rate_tests import (
    at_own_rate,
    at_smallest,
    bears_more,
    best_rate,
    borne,
    ladder,
    slope_over_width,
    vertex,
)
from gatelab.analysis.shares import exact_interval
from gatelab.store import StoreError

RATES = [2.0**-k for k in range(8, 0, -1)]
SEEDS = range(12)


def archive(folder, end, arms=("none", "gated"), rates=RATES):
    """`end(arm, rate, seed)`: the loss at the end, or a status; untrained weights have 4."""
    runs = []
    for arm in arms:
        for rate in rates:
            for seed in SEEDS:
                last = end(arm, rate, seed)
                status, rows = ("done", losses(4.0, last)) if not isinstance(last, str) else (last, losses(4.0))
                config = {"optim": {"lr": rate}, "model": {"d_model": 64}}
                runs.append(
                    {"cell": f"lr{rate:g}", "arm": arm, "seed": seed, "config": config, "rows": rows, "status": status}
                )
    return planted(folder, runs)


def bowl(best):
    """Losses on a parabola over log2 of the rate, lowest at `best(arm, seed)`."""
    return lambda arm, rate, seed: 1 + 0.02 * (log2(rate) - best(arm, seed)) ** 2


def test_the_vertex_of_a_parabola_is_exact_and_none_is_made_up():
    assert vertex([0.0, 1.0, 2.0], [(x - 1.3) ** 2 for x in (0.0, 1.0, 2.0)]) == pytest.approx(1.3)
    assert isnan(vertex([0.0, 1.0, 2.0], [1.0, 1.0, 1.0])) and isnan(vertex([0.0, 1.0, 2.0], [2.0, 1.0, inf]))


def test_a_planted_shift_of_the_best_rate_is_found_seed_by_seed(tmp_path):
    seeds = np.random.default_rng(0).normal(-5.0, 0.4, len(SEEDS))
    noise = np.random.default_rng(1).normal(0.0, 0.05, len(SEEDS))
    folder = archive(tmp_path, bowl(lambda arm, s: seeds[s] + (0.7 + noise[s] if arm == "gated" else 0.0)))
    found = best_rate("gated", "none")(folder)
    assert found.value == pytest.approx(0.7 + noise.mean()) and 0 < found.high - found.low < 0.2
    assert found.over == "12 of 12 seeds" and found.unit == "doublings"
    assert best_rate("none")(folder).value == pytest.approx(2 ** seeds.mean())


def test_each_arm_is_at_its_own_best_of_the_rates_that_are_named(tmp_path):
    ends = {("none", 0.25): 2.0, ("none", 0.5): 1.0, ("gated", 0.25): 0.5, ("gated", 0.5): 3.0}
    folder = archive(
        tmp_path, lambda arm, rate, s: ends[arm, rate] + 0.01 * s * (1 + (arm == "gated")), rates=[0.25, 0.5]
    )
    both = ("lr0.25", "lr0.5")
    found = at_own_rate("gated", "none", both)(folder)
    mean = 0.5 - 1.0 + 0.01 * sum(SEEDS) / len(SEEDS)
    assert found.value == pytest.approx(mean) and found.low < mean < found.high
    assert found.over == "12 seeds; best in lr0.25, and without in lr0.5"
    assert at_own_rate("gated", "none", both[1:])(folder).value == pytest.approx(2 + 0.01 * sum(SEEDS) / len(SEEDS))
    with pytest.raises(StoreError, match="no finished run of gated in lr8"):
        at_own_rate("gated", "none", ("lr0.5", "lr8"))(folder)


def test_an_optimum_at_an_end_or_beside_a_lost_run_is_not_one(tmp_path):
    folder = archive(tmp_path, bowl(lambda arm, s: -9.0 if s < 10 else -5.0))
    assert best_rate("gated", "none")(folder).over == "2 of 12 seeds"
    steep = archive(tmp_path / "steep", lambda arm, rate, s: "diverged" if rate > 2.0**-5 else 3 + log2(rate) / 8)
    assert str(best_rate("gated")(steep)) == "0 of 12 seeds have a best rate inside the ladder"


def test_the_largest_rate_that_is_borne_counts_runs_that_diverge_or_end_above_their_untrained_loss(tmp_path):
    def end(arm, rate, seed):
        if arm == "gated":
            return 5.0 if rate > 2.0**-2 else 2.0
        return "diverged" if rate > 2.0**-2 or (rate > 2.0**-3 and seed < 9) else 2.0

    folder = archive(tmp_path, end)
    none = ladder(kept(folder), "none")
    assert none.borne() == 2.0**-3 and none.borne(0) == 2.0**-3 and none.borne(9) == 2.0**-2
    assert none.lost(2.0**-2) == (9, *exact_interval(9, 12)) and none.lost(2.0**-3)[0] == 0
    found = bears_more("gated", "none")(folder)
    assert (found.value, found.low, found.high) == (0.75, *exact_interval(9, 12))
    assert (
        found.over
        == "9 of 12 seeds, a smaller one in 0; 0.25 is borne by all 12 (lost: 0 to 0.26), at 0.5 12 of 12 are lost [0.74, 1.00]"
    )
    assert bears_more("none", "gated")(folder).over.startswith("0 of 12 seeds, a smaller one in 9; 0.125 is borne")
    low, high = exact_interval(9, 12)
    assert str(borne("none")(folder)).endswith(f"at 0.25 9 of 12 are lost [{low:.2f}, {high:.2f}]")


def test_a_rate_that_is_borne_above_one_that_is_not_does_not_count(tmp_path):
    folder = archive(tmp_path, lambda arm, rate, seed: 6.0 if rate == RATES[0] else 2.0)
    assert ladder(kept(folder), "none").borne() == 0.0
    assert str(borne("none")(folder)).startswith("no rate is borne by all, at 0.00390625 12 of 12")
    whole = archive(tmp_path / "whole", lambda arm, rate, seed: 2.0)
    assert str(borne("none")(whole)) == "0.5 is borne by all 12 (lost: 0 to 0.26), the largest that was run"
    short = bears_more("gated", "none")(whole)
    assert isnan(short.value) and short.over.startswith("every seed bears the largest rate with both; 0.5 is borne")
    some = archive(
        tmp_path / "some", lambda arm, rate, seed: 6.0 if arm == "none" and rate == RATES[-1] and seed < 2 else 2.0
    )
    assert bears_more("gated", "none")(some).over.startswith("2 of 2 seeds")


def test_what_a_ladder_lacks_is_said(tmp_path):
    with pytest.raises(StoreError, match="silu has no seed with a finished run at every learning rate"):
        ladder(kept(archive(tmp_path, lambda *_: 2.0)), "silu")
    run = {"cell": "c", "arm": "none", "seed": 0, "config": {"optim": {"lr": 1.0}}, "rows": losses(1.0)[:0]}
    with pytest.raises(StoreError, match="no val_loss at step 0"):
        ladder(kept(planted(tmp_path / "late", [run])), "none")
    twice = [run | {"rows": losses(4.0, 2.0)}, run | {"cell": "d", "rows": losses(4.0, 2.0)}]
    with pytest.raises(StoreError, match="two runs at one learning rate"):
        ladder(kept(planted(tmp_path / "twice", twice)), "none")


def test_a_seed_that_lacks_a_rate_is_left_out(tmp_path):
    folder = archive(tmp_path, lambda arm, rate, seed: "failed" if (rate, seed) == (RATES[2], 3) else 2.0)
    assert ladder(kept(folder), "none").seeds == [s for s in SEEDS if s != 3]


def test_a_planted_slope_over_width_is_found_at_each_arms_own_rate(tmp_path):
    noise = np.random.default_rng(2).normal(0.0, 0.01, (len(SEEDS), 4))
    runs = []
    for i, width in enumerate((32, 64, 128, 256)):
        for factor in (0.5, 1.0, 2.0):
            for arm in ("none", "gated"):
                for seed in SEEDS:
                    # The gate's best rate is twice the other's; away from its best a run is worse by 1.
                    worse = float(factor != (2.0 if arm == "gated" else 1.0))
                    gain = (0.05 * i + noise[seed, i] - 0.02) if arm == "gated" else 0.0
                    config = {"optim": {"lr": factor / width}, "model": {"d_model": width}}
                    rows = losses(4.0, 2 + seed / 10 - gain + worse)
                    runs.append(
                        {
                            "cell": f"width-{width}-lr{factor / width:g}",
                            "arm": arm,
                            "seed": seed,
                            "config": config,
                            "rows": rows,
                        }
                    )
    folder = planted(tmp_path, runs)
    found = slope_over_width("gated", "none")(folder)
    slopes = noise @ np.array([-1.5, -0.5, 0.5, 1.5]) / 5
    assert found.value == pytest.approx(-0.05 - slopes.mean()) and found.low < found.value < found.high < 0
    assert found.over.startswith("4 widths, 12 seeds; ") and "at 32 and" in found.over
    assert at_smallest("gated", "none")(folder).value == pytest.approx(0.02 - noise[:, 0].mean())
    two = planted(tmp_path / "two", [r for r in runs if r["config"]["model"]["d_model"] < 100])
    assert str(slope_over_width("gated", "none")(two)) == "2 widths and 12 seeds, too few for a slope"
    with pytest.raises(StoreError, match="no width has two finished pairs of gated and none"):
        slope_over_width("gated", "none")(planted(tmp_path / "none", [r for r in runs if r["arm"] == "none"]))
