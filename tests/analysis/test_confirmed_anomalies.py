"""What is gathered of confirmed claims: groups in order, numbers on either seeds, neighbours by one key."""

import numpy as np
import pytest
from simulated import METRICS, evidence, outcomes, pairs

from gatelab.analysis.anomalies import RULES, Evidence, screen
from gatelab.analysis.confirmed import anomalies, effect_of, once
from gatelab.analysis.registration import Claim, Registration, Verdict
from gatelab.analysis.stages import confirm, on_fresh
from gatelab.analysis.student import interval

RATES = {"a": 1e-3, "b": 1e-2, "c": 1e-3, "d": 1e-2}
DATA = {"a": "text", "b": "text", "c": "code", "d": "code"}
FACTORS = {"optim.lr": RATES, "data.kind": DATA, "data.name": DATA}


def study(rng):
    """Four cells on a square; in `a` a gate whose layers are shut, and which lowers the loss."""
    shut = {"gate_shut": {c: (None, np.full(6, 0.99 if c == "a" else 0.2)) for c in RATES}}
    return evidence({"val_loss": {c: pairs(rng, 6, -8.0 if c == "a" else 0.0) for c in RATES}, **shut})


def fresh_of(screened, rng):
    base, gated = pairs(rng, 5, -8.0)
    found = [*outcomes("val_loss", "none", base, "a", 6), *outcomes("val_loss", "gated", gated, "a", 6)]
    found += outcomes("gate_shut", "gated", [0.99] * 4 + [0.1], "a", 6)
    return Evidence([*screened.outcomes, *found], METRICS, "none", ["gated"], list(RATES))


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    screened = study(rng)
    claims = [
        Claim("gate-collapse", "a", "gated", "gate_shut", 0, 0.01, 0.02),
        Claim("effect", "a", "gated", "val_loss", -1, 0.01, 0.02),
    ]
    registration = Registration(claims, list(range(6, 11)), list(range(6)), 0.05, 0.1, [])
    both = fresh_of(screened, rng)
    verdicts, fresh = confirm(registration, both, RULES), on_fresh(registration, both)
    assert [v.verdict for v in verdicts] == ["confirmed"] * 2
    return screened, fresh, verdicts, screen(screened, RULES).alarms


def test_claims_of_one_cell_and_arm_are_one_anomaly_the_surest_first(found):
    screened, fresh, verdicts, alarms = found
    (one,) = anomalies(verdicts, screened, alarms, fresh, RULES, FACTORS)
    assert [h.claim.rule for h in one.held] == ["effect", "gate-collapse"]
    assert one.held[0].verdict.p < one.held[1].verdict.p
    assert one.words["gate_shut"] == ("share of shut scores in the layer most shut", "share")


def test_each_number_is_of_its_own_seeds(found):
    screened, fresh, verdicts, alarms = found
    ((effect, collapse),) = [a.held for a in anomalies(verdicts, screened, alarms, fresh, RULES, FACTORS)]
    assert (collapse.fresh.estimate, collapse.fresh.n_pairs) == (0.8, 5)
    assert (collapse.screen.estimate, collapse.screen.n_pairs) == (1.0, 6)
    for alarm, of, seeds in ((effect.fresh, fresh, range(6, 11)), (effect.screen, screened, range(6))):
        assert alarm.seeds == list(seeds)
        e = of.estimate("val_loss", "a", "gated")
        assert (alarm.estimate, alarm.low, alarm.high) == pytest.approx((e.mean, *interval(e, 0.95)))


def test_neighbours_differ_in_one_key_and_keys_that_go_together_are_one(found):
    screened, fresh, verdicts, alarms = found
    (one,) = anomalies(verdicts, screened, alarms, fresh, RULES, FACTORS)
    assert [(n.cell, n.key, n.here, n.there) for n in one.neighbours] == [
        ("b", "optim.lr", 1e-3, 1e-2), ("c", "data.kind = data.name", "text", "code")
    ]  # fmt: skip
    effect, collapse = one.neighbours[0].found
    assert effect.cell == "b" and collapse.estimate == 0.0


def test_what_was_not_confirmed_has_no_card_and_cells_alone_no_neighbour(found):
    screened, fresh, verdicts, alarms = found
    lost = [Verdict(v.claim, v.n_pairs, 0.5, 1.0, "not confirmed") for v in verdicts]
    assert anomalies(lost, screened, alarms, fresh, RULES, FACTORS) == []
    (one,) = anomalies(verdicts[:1], screened, alarms, fresh, RULES, {})
    assert one.neighbours == []


def test_an_effect_on_what_changes_regime_is_a_share_of_seeds():
    """Of six seeds four lose the sink and none gains it."""
    of = evidence({"first_token_mass": {"a": ([0.5] * 6, [0.1] * 4 + [0.5] * 2)}})
    lost = effect_of(Claim("effect", "a", "gated", "first_token_mass", -1, 0.01, 0.02), "a", of)
    assert lost.estimate == pytest.approx(4 / 6) and lost.unit == "share" and "4 lose" in lost.sentence
    assert effect_of(Claim("effect", "a", "gated", "val_loss", -1, 0.01, 0.02), "a", of) is None


def test_an_effect_without_spread_has_no_number():
    of = evidence({"val_loss": {"a": ([1.0] * 3, [2.0] * 3)}})
    assert effect_of(Claim("effect", "a", "gated", "val_loss", 1, 0.01, 0.02), "a", of) is None


def verdict(rule, *, cell="a", p=0.01, n_pairs=8, reading="val_loss"):
    return Verdict(Claim(rule, cell, "gated", reading, 0, 0.01, 0.02), n_pairs, p, 8 * p, "confirmed")


def test_a_test_that_two_claims_have_is_there_once():
    worse, shut = verdict("worse-than-none"), verdict("gate-collapse", reading="gate_shut")
    assert once([verdict("removed-but-worse"), shut, worse, verdict("effect")]) == [shut, worse]


@pytest.mark.parametrize("differs", [{"cell": "b"}, {"p": 0.011}, {"n_pairs": 7}, {"reading": "accuracy"}])
def test_other_seeds_cells_and_readings_are_other_tests(differs):
    both = [verdict("worse-than-none"), verdict("removed-but-worse", **differs)]
    assert once(both) == both


def test_rules_that_test_other_things_are_each_there_though_their_p_is_the_same():
    both = [verdict("gate-collapse", reading="gate_shut"), verdict("dead-heads", reading="gate_shut")]
    assert once(both) == both
