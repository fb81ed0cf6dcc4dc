"""Which arm for which use: planted effects are recommended with their word, and nothing from too few seeds or against evidence."""

from dataclasses import replace

import numpy as np
import pytest

from gatelab.analysis.effects import effects
from gatelab.analysis.paired import Outcome
from gatelab.analysis.recommend import advise
from gatelab.analysis.registration import Claim, Verdict
from gatelab.analysis.shares import exact_interval
from gatelab.analysis.standing import (
    CONFIRMED,
    DIVERGED,
    EXPLORATORY,
    NO_CASE,
    NOTHING,
    PILOT,
    SCREEN,
    Against,
    answers,
)
from gatelab.analysis.uses import USES
from gatelab.record import Metric

LOSS = Metric("val_loss", "nats", "lower-is-better", "held-out loss", equivalence=0.01, primary=True)
SINK = Metric("first_token_mass", "share", "neutral", "first-token mass", bimodal=True, threshold=0.3, primary=True)
PEAK = Metric("massive_max", "1", "neutral", "largest activation")
SOLVED = Metric("task_accuracy@1x", "share", "higher-is-better", "accuracy", bimodal=True, threshold=0.9)
METRICS = [LOSS, SINK, PEAK, SOLVED]
TEXT, TASKS = {"data": {"kind": "text"}}, {"data": {"kind": "tasks", "names": ["needle"]}}


def rows(effect, metric="val_loss", *, seeds=6, base=2.0, sigma=0.01, baseline=None):
    """Outcomes of {cell: {arm: mean difference, or the values of its seeds}} beside a baseline; `baseline` are its values."""
    out = []
    for cell, arms in effect.items():
        for seed in range(seeds):
            rng = np.random.default_rng([seed, *cell.encode()])
            own = base + rng.normal(0, 0.1) if baseline is None else baseline[seed]
            out.append(Outcome(cell, "none", seed, metric, own))
            for i, (arm, by) in enumerate(arms.items()):
                noise = np.random.default_rng([seed, i, *cell.encode()]).normal(0, sigma)
                out.append(Outcome(cell, arm, seed, metric, by[seed] if isinstance(by, list) else own + by + noise))
    return out


def advised(outcomes, bases, *, metrics=METRICS, **more):
    arms = list(dict.fromkeys(["none", *(o.arm for o in outcomes)]))
    found = effects(outcomes, metrics, baseline="none", arms=arms, cells=list(bases))
    given = {"rates": {}, "refused": {}, **more}
    return advise(outcomes, found, metrics, baseline="none", arms=arms, bases=bases, **given)


def answer(advice, name):
    return next(a for a in advice.answers if a.use.name == name)


def standing(found, arm):
    return next(s for s in found.standings if s.arm == arm)


CELLS = dict.fromkeys("abc", TEXT)


def test_an_arm_that_helps_in_most_settings_is_favoured_and_the_others_are_not():
    planted = {c: {"good": -0.2, "once": -0.2 if c == "a" else 0.0, "bad": 0.2, "flat": 0.0} for c in CELLS}
    found = answer(advised(rows(planted), CELLS), "a lower held-out loss")
    assert (found.word, found.favoured) == ("favoured", ["good"])
    good, bad = standing(found, "good"), standing(found, "bad")
    assert (len(good.on(1)), len(good.on(-1)), good.strength) == (3, 0, SCREEN)
    assert (len(bad.on(1)), len(bad.on(-1)), bad.strength) == (0, 3, NOTHING)
    assert [s.arm for s in found.standings] == ["good", "once", "flat", "bad"]
    assert [s.arm for s in found.worse] == ["bad"]


def test_where_no_arm_helps_in_most_settings_none_is_favoured():
    found = answer(
        advised(rows({c: {"gate": -0.2 if c == "a" else 0.0} for c in CELLS}), CELLS), "a lower held-out loss"
    )
    assert (found.word, found.favoured, [s.arm for s in found.shown]) == ("in places", [], ["gate"])


@pytest.mark.parametrize(("seeds", "word"), [(1, PILOT), (2, PILOT), (3, "favoured")])
def test_nothing_is_recommended_from_fewer_than_three_seeds(seeds, word):
    found = answer(advised(rows({c: {"gate": -5.0} for c in CELLS}, seeds=seeds), CELLS), "a lower held-out loss")
    assert found.word == word
    assert bool(found.favoured) == (seeds >= 3)


def test_where_nothing_is_seen_the_smallest_gain_that_is_excluded_is_told():
    found = answer(advised(rows({c: {"gate": 0.0} for c in CELLS}), CELLS), "a lower held-out loss")
    bound, n, of = found.excluded
    lows = [t.finding.low for t in found.standings[0].told]
    assert (found.word, n, of) == (NOTHING, 3, 3)
    assert bound == pytest.approx(max(-low for low in lows)) and 0 < bound < 0.05


def test_a_secondary_effect_is_exploratory_and_a_loss_within_the_bound_is_marked():
    found = advised(rows({c: {"gate": -20.0} for c in CELLS}, "massive_max", base=50), CELLS)
    assert standing(answer(found, "lower peaks of activations"), "gate").strength == EXPLORATORY
    small = answer(advised(rows({c: {"gate": -0.005} for c in CELLS}, sigma=0.0005), CELLS), "a lower held-out loss")
    assert small.favoured == ["gate"] and all(t.is_within_nothing for t in small.standings[0].told)


SINKS = [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1]


def test_a_sink_has_ended_where_seeds_change_and_not_where_the_mean_is_lower():
    ends = [0.1] * 8
    lower = [v - 0.2 + 0.01 * i for i, v in enumerate(SINKS)]
    outcomes = rows({"a": {"ends": ends, "lower": lower}}, "first_token_mass", seeds=8, baseline=SINKS)
    found = answer(advised(outcomes, {"a": TEXT}), "no first-token sink")
    assert found.favoured == ["ends"]
    (told,) = standing(found, "ends").told
    assert told.changed == (7, 7, 0)
    (kept,) = standing(found, "lower").told
    assert (kept.side, kept.word, kept.changed) == (0, NOTHING, (0, 7, 0))
    assert kept.excluded == pytest.approx(exact_interval(0, 7)[1])


def test_where_the_baseline_has_no_sink_there_is_nothing_to_tell():
    baseline = [0.10 + 0.001 * i for i in range(8)]
    outcomes = rows({"a": {"gate": [v - 0.05 + 0.0005 * i for i, v in enumerate(baseline)]}}, "first_token_mass", seeds=8,
                    baseline=baseline)  # fmt: skip
    found = answer(advised(outcomes, {"a": TEXT}), "no first-token sink")
    assert found.word == NO_CASE and not found.standings[0].telling


def test_losses_of_tasks_are_a_use_of_their_own_and_a_task_is_learnt_where_seeds_change():
    bases = {"text": TEXT, "needle": TASKS}
    outcomes = rows({c: {"gate": -0.3} for c in bases})
    outcomes += rows({"needle": {"gate": [1.0] * 8}}, "task_accuracy@1x", seeds=8, baseline=[0.2] * 8)
    found = advised([o for o in outcomes if o.seed < 6 or o.metric != "val_loss"], bases)
    assert {a.use.name: [t.setting for t in a.standings[0].told] for a in found.answers if a.use.metric == "val_loss"} == {
        "a lower held-out loss": ["text"], "a lower loss on tasks": ["needle"],
    }  # fmt: skip
    assert answer(found, "tasks that are learnt").favoured == ["gate"]


RATES = {"r1": ("r", 1e-3), "r2": ("r", 4e-3)}
AT_RATES = {"r1": {"gate": -0.3}, "r2": {"gate": 0.5}}


def at_rates():
    """The baseline is best at r1 by 1 nat; there the gate helps, at r2 it harms."""
    out = rows(AT_RATES)
    return [replace(o, value=o.value + 1.0) if o.cell == "r2" else o for o in out]


def test_what_happens_at_another_rate_is_evidence_against_and_a_large_rate_is_a_use():
    found = advised(at_rates(), dict.fromkeys(RATES, TEXT), rates=RATES)
    lower, rate = answer(found, "a lower held-out loss"), answer(found, "a larger learning rate")
    assert lower.favoured == ["gate"] and [(a.cell, a.is_confirmed) for a in lower.standings[0].against] == [
        ("r2", False)
    ]
    (told,) = rate.standings[0].told
    assert told.side == -1 and told.finding.effect == pytest.approx(0.8, abs=0.05)


def test_what_happens_at_another_rate_is_evidence_against_in_every_use():
    peaks = rows({"r1": {"gate": 0.0}, "r2": {"gate": 30.0}}, "massive_max", base=50)
    found = advised([*at_rates(), *peaks], dict.fromkeys(RATES, TEXT), rates=RATES)
    for use in ("a lower held-out loss", "lower peaks of activations"):
        assert [a.cell for a in answer(found, use).standings[0].against] == ["r2"], use


def without(outcomes, lost, status="diverged"):
    """The outcomes, those of `lost` (cell, arm, seeds) without a number."""
    cell, arm, seeds = lost
    return [
        replace(o, value=float("nan"), status=status) if (o.cell, o.arm) == (cell, arm) and o.seed in seeds else o
        for o in outcomes
    ]


@pytest.mark.parametrize("status", ["diverged", "done"])
def test_what_is_left_of_an_arm_that_lost_runs_is_not_for_it(status):
    outcomes = without(rows({"a": {"gate": -0.3}}), ("a", "gate", (0, 1, 2)), status)
    advice = advised(outcomes, {"a": TEXT})
    found = answer(advice, "a lower held-out loss")
    assert (found.word, found.favoured, found.standings[0].strength) == (DIVERGED, [], DIVERGED)
    assert advice.notes == [
        "gate in a: seeds 0, 1, 2 diverged or gave no finite number, which the means of the others do not show"
    ]
    worse = without(rows({"a": {"gate": 0.3}}), ("a", "gate", (0, 1, 2)), status)
    assert answer(advised(worse, {"a": TEXT}), "a lower held-out loss").standings[0].told[0].side == -1
    both = without(outcomes, ("a", "none", (0, 1, 2)), status)
    assert answer(advised(both, {"a": TEXT}), "a lower held-out loss").favoured == ["gate"], (
        "the baseline lost them too"
    )


def test_an_arm_whose_runs_diverge_at_the_largest_rate_does_not_bear_it():
    planted = {"r1": {"gate": 0.0}, "r2": {"gate": -0.5}}
    outcomes = [replace(o, value=o.value + 1.0) if o.cell == "r2" else o for o in rows(planted)]
    bases = dict.fromkeys(RATES, TEXT)
    assert answer(advised(outcomes, bases, rates=RATES), "a larger learning rate").favoured == ["gate"]
    lost = advised(without(outcomes, ("r2", "gate", (0, 1))), bases, rates=RATES)
    assert answer(lost, "a larger learning rate").word == DIVERGED


def test_an_arm_that_helps_at_a_rate_and_hurts_at_its_best_is_worse():
    planted = {"r1": {"gate": 0.3}, "r2": {"gate": -0.5}}
    outcomes = [replace(o, value=o.value + 1.0) if o.cell == "r2" else o for o in rows(planted)]
    found = answer(advised(outcomes, dict.fromkeys(RATES, TEXT), rates=RATES), "a lower held-out loss")
    assert [t.side for t in found.standings[0].told] == [-1] and [s.arm for s in found.worse] == ["gate"]


def test_a_bound_that_excludes_nothing_is_not_told():
    outcomes = rows({"a": {"gate": [0.1] * 4}}, "first_token_mass", seeds=4, baseline=[0.8] * 4)
    found = answer(advised(outcomes, {"a": TEXT}), "no first-token sink")
    assert found.word == NOTHING and np.isnan(found.excluded[0]), "all four seeds changed, of which four tell nothing"


def verdict(rule, cell, reading, direction=0, word="confirmed"):
    return Verdict(Claim(rule, cell, "gate", reading, direction, 0.01, 0.02), 5, 0.001, 0.002, word)


def test_a_confirmed_effect_of_this_very_comparison_has_the_strongest_word():
    bases = dict.fromkeys(RATES, TEXT)
    same = advised(at_rates(), bases, rates=RATES, verdicts=[verdict("effect", "r1", "val_loss", -1)])
    assert answer(same, "a lower held-out loss").standings[0].strength == CONFIRMED
    for other in (
        verdict("effect", "r2", "val_loss", -1),  # another cell than the best
        verdict("effect", "r1", "massive_max", -1),
        verdict("effect", "r1", "val_loss", -1, "not confirmed"),
    ):
        found = answer(advised(at_rates(), bases, rates=RATES, verdicts=[other]), "a lower held-out loss")
        assert found.standings[0].strength == SCREEN


def test_a_confirmed_effect_takes_a_side_where_the_screen_saw_none():
    outcomes = rows({"a": {"gate": 0.0, "other": 0.0}, "b": {"gate": 0.0, "other": 0.0}})
    seen = advised(outcomes, dict.fromkeys("ab", TEXT), verdicts=[verdict("effect", "a", "val_loss", -1)])
    found = answer(seen, "a lower held-out loss")
    assert (found.word, [s.arm for s in found.shown]) == ("in places", ["gate"])
    gate, other = standing(found, "gate"), standing(found, "other")
    assert (gate.strength, [t.setting for t in gate.confirmed], other.strength) == (CONFIRMED, ["a"], NOTHING)
    assert {t.setting: t.finding.verdict for t in gate.told}["a"] == "unclear", "the numbers stay the screen's"


def test_a_confirmed_effect_for_the_worse_is_against_and_one_of_two_fresh_seeds_says_nothing():
    outcomes = rows({"a": {"gate": 0.0}})
    for one, side, word in (
        (verdict("effect", "a", "val_loss", 1), -1, CONFIRMED),
        (replace(verdict("effect", "a", "val_loss", -1), n_pairs=2), 0, NOTHING),
    ):
        (told,) = answer(advised(outcomes, {"a": TEXT}, verdicts=[one]), "a lower held-out loss").standings[0].told
        assert (told.side, told.word) == (side, word)


def test_what_is_left_of_diverged_runs_is_not_confirmed():
    outcomes = without(rows({"a": {"gate": -0.3}}), ("a", "gate", (0, 1)))
    found = answer(
        advised(outcomes, {"a": TEXT}, verdicts=[verdict("effect", "a", "val_loss", -1)]), "a lower held-out loss"
    )
    assert found.word == DIVERGED


def test_each_arm_with_a_confirmed_effect_is_shown_beside_the_best():
    outcomes = rows({c: {"often": -0.2 if c in "ab" else 0.0, "sure": 0.0} for c in "abcde"})
    claim = Claim("effect", "e", "sure", "val_loss", -1, 0.01, 0.02)
    seen = advised(outcomes, dict.fromkeys("abcde", TEXT), verdicts=[Verdict(claim, 5, 0.001, 0.002, "confirmed")])
    assert [s.arm for s in answer(seen, "a lower held-out loss").shown] == ["often", "sure"]


def test_confirmed_anomalies_and_opposite_effects_speak_against():
    bases = dict.fromkeys(RATES, TEXT)
    claims = [
        verdict("worse-than-none", "r2", "val_loss"), verdict("effect", "r2", "val_loss", 1),
        verdict("gate-collapse", "r1", "gate_shut"), verdict("worse-than-none", "r1", "val_loss", word="not confirmed"),
    ]  # fmt: skip
    found = advised(at_rates(), bases, rates=RATES, verdicts=claims)
    of_loss = answer(found, "a lower held-out loss").standings[0].against
    assert [(a.rule, a.cell) for a in of_loss if a.is_confirmed] == [
        ("worse-than-none", "r2"),
        ("the opposite effect", "r2"),
    ]
    of_rate = answer(found, "a larger learning rate").standings[0].against
    assert [(a.rule, a.cell) for a in of_rate] == [("worse-than-none", "r2")]


def test_an_anomaly_in_a_cell_that_is_not_the_largest_rate_says_nothing_of_large_rates():
    found = advised(
        at_rates(), dict.fromkeys(RATES, TEXT), rates=RATES, verdicts=[verdict("worse-than-none", "r1", "val_loss")]
    )
    assert answer(found, "a larger learning rate").standings[0].against == []


def test_a_refused_comparison_is_named_and_enters_nothing():
    why = {("a", "gate"): "refused: seed 0 sees 8 tokens with gate and 16 with none; give both as many"}
    found = advised(rows({c: {"gate": -0.2} for c in CELLS}), CELLS, refused=why)
    assert [t.setting for t in found.told if t.use.metric == "val_loss"] == ["b", "c"]
    assert found.notes == [f"gate in a is {why['a', 'gate']}"]


def test_a_spread_that_shrinks_is_seen_by_pitman_and_morgans_test():
    rng = np.random.default_rng(5)
    wide, narrow = rng.normal(2, 1, 24), rng.normal(2, 0.1, 24)
    outcomes = [
        Outcome("a", arm, s, "val_loss", float(v[s]))
        for arm, v in (("none", wide), ("gate", narrow))
        for s in range(24)
    ]
    (told,) = answer(advised(outcomes, {"a": TEXT}), "seeds that end alike").standings[0].told
    assert told.side == 1 and told.word == EXPLORATORY
    assert told.finding.effect == pytest.approx(np.log(narrow.std(ddof=1) / wide.std(ddof=1)))


@pytest.mark.parametrize("n", [8, 32])
def test_skewed_losses_are_no_spread_that_differs(n):
    rng, seen = np.random.default_rng(n), 0
    for _ in range(100):
        values = np.exp(rng.normal(0, 0.7, (2, n)))
        outcomes = [
            Outcome("a", arm, s, "val_loss", float(v[s]))
            for arm, v in zip(("none", "gate"), values, strict=True)
            for s in range(n)
        ]
        seen += answer(advised(outcomes, {"a": TEXT}), "seeds that end alike").standings[0].told[0].side != 0
    assert seen <= 10, "Pitman and Morgan's test alone sees 19 and 41 of these"


def test_losses_of_a_task_that_some_seeds_solve_are_asked_for_no_spread():
    outcomes = rows({"needle": {"gate": 0.0}})
    assert not [a for a in advised(outcomes, {"needle": TASKS}).answers if a.use.metric == "loss_spread"]


def test_many_settings_of_many_count_for_more_than_few_of_few():
    def told(arm, k, n):
        found = answer(advised(rows({f"c{i}": {arm: -0.3 if i < k else 0.0} for i in range(n)}), {f"c{i}": TEXT for i in range(n)}),
                       "a lower held-out loss")  # fmt: skip
        return found.standings[0].told

    ranked = answers([*told("one of one", 1, 1), *told("four of four", 4, 4), *told("five of seven", 5, 7)], [])[0]
    assert [s.arm for s in ranked.standings] == ["four of four", "five of seven", "one of one"]
    assert ranked.favoured == ["four of four"]


def test_arms_of_one_rank_are_favoured_together_unless_one_is_worse_somewhere():
    def told(arm, worse):
        planted = {c: {arm: -0.3} for c in "abc"} | {"d": {arm: worse}}
        return answer(advised(rows(planted), dict.fromkeys("abcd", TEXT)), "a lower held-out loss").standings[0].told

    (found,) = answers([*told("one", 0.0), *told("two", 0.0), *told("three", 0.3)], [])
    assert found.favoured == ["one", "two"]


def test_what_speaks_against_an_arm_elsewhere_stays_with_its_use():
    use = next(u for u in USES if u.name == "a lower held-out loss")
    found = advised(rows({"a": {"gate": -0.3}}), {"a": TEXT})
    (one,) = [a for a in answers(found.told, [Against(use, "gate", "worse-than-none", "z", True)]) if a.use is use]
    assert [a.cell for a in one.standings[0].against] == ["z"]


def test_a_study_without_a_finished_baseline_tells_nothing():
    lost = [replace(o, value=float("nan"), status="planned") for o in rows({"a": {"gate": -0.2}}) if o.arm == "gate"]
    found = advise(lost, [], METRICS, baseline="none", arms=["none", "gate"], bases={"a": TEXT}, rates={}, refused={})
    assert found.told == [] and found.answers == []


@pytest.mark.parametrize("use", USES, ids=lambda u: u.name)
def test_each_use_names_a_metric_that_a_study_has(use):
    from gatelab.analysis.uses import LOSS_SPREAD, RATE_COST
    from gatelab.study.metrics import STUDY_METRICS

    assert use.metric in {*STUDY_METRICS, RATE_COST.name, LOSS_SPREAD.name}
