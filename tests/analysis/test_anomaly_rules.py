"""Every rule: how often it cries wolf in studies where its null hypothesis holds, and whether it sees what was planted.

The nulls are the hardest ones: a rule about a quarter of runs is tried at a quarter exactly. 1,000 studies tell 5% from 10%.
"""

from collections.abc import Callable

import numpy as np
import pytest
from simulated import evidence, outcomes, pairs

from gatelab.analysis.anomalies import RULES, Evidence, screen
from gatelab.analysis.anomalies.seeds import p_split

Draw = Callable[[np.random.Generator, bool], Evidence]
N = 6
REPETITIONS = 1000
MOST = 0.05 + 3 * (0.05 * 0.95 / REPETITIONS) ** 0.5


def events(rng, is_planted, n=N):
    return rng.random(n) < (0.9 if is_planted else 0.25)


def sign_flip(rng, is_planted):
    cells = {f"c{i}": pairs(rng, N, -4) for i in range(1, 5)}
    return evidence({"val_loss": {"c0": pairs(rng, N, 4 if is_planted else 0), **cells}})


def worse(rng, is_planted):
    return evidence({"val_loss": {"c0": pairs(rng, N, 2.5 if is_planted else 0)}})


def sink_stays(rng, is_planted):
    return evidence({"first_token_mass": {"c0": (np.full(N, 0.6), np.where(events(rng, is_planted), 0.6, 0.05))}})


def removed(rng, is_planted):
    mass = {"c0": (np.full(N, 0.6), np.full(N, 0.05))}
    return evidence({"first_token_mass": mass, "val_loss": {"c0": pairs(rng, N, 2.5 if is_planted else 0)}})


def massive_alone(rng, is_planted):
    ratio = np.where(events(rng, is_planted), 2000, 20)
    return evidence(
        {"first_token_mass": {"c0": (np.zeros(N), np.zeros(N))}, "massive_ratio": {"c0": (np.full(N, 20), ratio)}}
    )


def sink_alone(rng, is_planted):
    mass = np.where(events(rng, is_planted), 0.6, 0.05)
    return evidence(
        {"first_token_mass": {"c0": (np.zeros(N), mass)}, "massive_ratio": {"c0": (np.full(N, 20), np.full(N, 20))}}
    )


def bias(rng, is_planted):
    return evidence({"sink_elsewhere": {"c0": pairs(rng, N, 0.3 if is_planted else 0.05, 0.05)}})


def collapse(rng, is_planted):
    return evidence({"gate_shut": {"c0": (None, np.where(events(rng, is_planted), 0.99, 0.3))}})


def dead(rng, is_planted):
    return evidence({"gate_dead": {"c0": (None, np.where(events(rng, is_planted), 0.5, 0.0))}})


def regimes(rng, is_planted):
    return evidence({"val_loss": {"c0": (rng.random(8), rng.random(8) + 4 * is_planted * (np.arange(8) < 4))}})


def unstable(rng, is_planted):
    chances = (0.1, 0.95) if is_planted else (0.5, 0.5)
    return evidence({"unstable": {"c0": tuple((rng.random(8) < p).astype(float) for p in chances)}})


def at_length(rng, is_planted):
    cells = {"short": pairs(rng, N, -1), "long": pairs(rng, N, 3 if is_planted else -1)}
    return evidence({"val_loss": cells}, longer={"long": "short"})


def rates(rng, is_planted):
    """The rates 1, 2, 4 in c0, c1, c2: the gate gains 0.5 at 4, where the baseline does badly, and at its own best the bound."""
    base = {"c0": 1.0, "c1": 0.5, "c2": 1.2}
    gated = {"c0": 1.0, "c1": 0.5 + (0.05 if is_planted else -0.01), "c2": 0.7}
    shared = rng.normal(0, 0.1, N)
    cells = {c: tuple(v[c] + shared + rng.normal(0, 0.01, N) for v in (base, gated)) for c in base}
    return evidence({"val_loss": cells}, rates={c: ("", 2.0**i) for i, c in enumerate(base)})


STUDIES: dict[str, Draw] = {
    "sign-flip": sign_flip, "worse-than-none": worse, "sink-stays": sink_stays, "removed-but-worse": removed,
    "massive-without-sink": massive_alone, "sink-without-massive": sink_alone, "new-bias": bias, "gate-collapse": collapse,
    "dead-heads": dead, "two-regimes": regimes, "instability": unstable, "worse-at-length": at_length, "gain-vanishes": rates,
}  # fmt: skip
CELLS = {"worse-at-length": "long", "gain-vanishes": "c2"}


def alarms(rule, is_planted, repetitions, level=0.05):
    """The share of studies in which the rule's p is below the level in the cell it is about."""
    rng = np.random.default_rng(5)
    cell = CELLS.get(rule.name, "c0")
    found = 0
    for _ in range(repetitions):
        p = [a.p for a in rule.test(STUDIES[rule.name](rng, is_planted), cell, "gated")]
        found += any(x < level for x in p)
    return found / repetitions


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_a_rule_gives_false_alarms_in_five_percent_of_studies_at_most(rule):
    assert alarms(rule, False, REPETITIONS) <= MOST


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_a_rule_sees_what_was_planted(rule):
    assert alarms(rule, True, 200) >= 0.8


def test_a_long_tail_is_seldom_taken_for_two_regimes():
    """6.5% of 2,000 lognormal samples of 8, as docs/statistics.md says; normal ones 1.2%."""
    rng = np.random.default_rng(0)
    assert np.mean([p_split(rng.lognormal(size=8)) < 0.05 for _ in range(1000)]) < 0.09
    assert np.mean([p_split(rng.standard_normal(8)) < 0.05 for _ in range(1000)]) < 0.03


def test_of_thirty_cells_without_any_effect_a_screen_seldom_names_one():
    """One family over rules and cells: some anomaly in 10% of null studies at most."""
    rng, named = np.random.default_rng(1), 0
    for _ in range(150):
        cells = {f"c{i}": pairs(rng, 5, 0) for i in range(30)}
        other = {c: pairs(rng, 5, 0, 0.01) for c in cells}
        named += bool(screen(evidence({"val_loss": cells, "sink_elsewhere": other}), RULES).anomalies)
    assert named / 150 <= 0.10 + 3 * (0.09 / 150) ** 0.5


def test_planted_anomalies_are_named_with_their_q():
    rng = np.random.default_rng(2)
    cells = {f"c{i}": pairs(rng, 5, -2, 0.5) for i in range(12)} | {"c3": pairs(rng, 5, 4, 0.5)}
    found = screen(evidence({"val_loss": cells}), RULES).anomalies
    assert {(a.rule, a.cell) for a in found[:2]} == {("sign-flip", "c3"), ("worse-than-none", "c3")}
    assert all(a.q <= 0.10 and a.n_pairs == 5 for a in found)
    assert "in the mean of the 11 other cells" in next(a.sentence for a in found if a.rule == "sign-flip")


def test_a_task_that_is_lost_in_some_seeds_is_counted_and_not_averaged():
    solved, failed = [0.99, 1.0, 0.98, 1.0, 0.99], [0.1, 0.2, 0.1, 0.3, 0.2]
    study = evidence({"accuracy:needle": {"c0": (solved, failed)}})
    (alarm,) = (a for a in screen(study, RULES).alarms if a.rule == "worse-than-none")
    assert alarm.p == pytest.approx(0.5**5)
    assert "of 5 seeds 5 lose accuracy at the shortest length (needle) above 0.9" in alarm.sentence


def test_a_rule_without_enough_seeds_says_how_many_it_needs():
    study = evidence({"val_loss": {"c0": ([1, 2, 3], [1.1, 2.3, 3.2])}})
    (alarm,) = (a for a in screen(study, RULES).alarms if a.rule == "two-regimes")
    assert (alarm.verdict, alarm.n_pairs) == ("untestable", 3)
    assert alarm.sentence == "c0: two-regimes of gated needs 5 pairs and has 3; add seeds"


def test_a_reading_that_half_of_the_cells_lack_is_flagged_and_not_pooled():
    rng = np.random.default_rng(0)
    have = {"val_loss": {f"c{i}": pairs(rng, 5, -3) for i in range(5)}, "value_drain": {}}
    have["massive_max"] = {f"d{i}": pairs(rng, 5, -3) for i in range(5)}
    found = screen(evidence(have), RULES)
    assert any(
        f.startswith("val_loss is missing in 5 of 10 cells (d0, d1, d2 …)") and "nothing is pooled" in f
        for f in found.flags
    )
    assert not [a for a in found.alarms if a.rule == "sign-flip"]


def test_a_refused_comparison_enters_no_test():
    rng = np.random.default_rng(0)
    cells = {f"c{i}": pairs(rng, 5, -3) for i in range(5)}
    found = screen(evidence({"val_loss": cells}, refused={("c0", "gated"): "refused: unequal tokens"}), RULES)
    assert not [a for a in found.alarms if a.cell == "c0"]
    assert found.flags == ["c0, gated: refused: unequal tokens"]
    flips = [a for a in found.alarms if a.rule == "sign-flip"]
    assert len(flips) == 4 and all("3 other cells" in a.sentence for a in flips)


def test_the_runs_of_one_seed_are_one_pair():
    study = evidence({"val_loss": {"c0": ([1, 2], [1, 2])}})
    with pytest.raises(ValueError, match="two outcomes"):
        Evidence([*study.outcomes, *outcomes("val_loss", "none", [5])], study.metrics, "none", ["gated"], ["c0"])


def test_a_false_discovery_rate_is_between_zero_and_one():
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        screen(evidence({"val_loss": {"c0": ([1, 2], [1, 3])}}), RULES, fdr=10)
