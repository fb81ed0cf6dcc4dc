"""What an effect depends on: planted slopes, states and starts give the verdict of their own hypothesis, and of no other."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest
from simulated import METRICS, outcomes
from test_causes import card as of_loss
from test_causes import ledger

from gatelab.analysis.anomalies import Evidence
from gatelab.analysis.causes import LOSS, MASS, Decision, Ledger, cards
from gatelab.analysis.confirmed import Anomaly, Held, is_about
from gatelab.analysis.dependence_tests import Scale, depending
from gatelab.analysis.heterogeneity import fit
from gatelab.analysis.hypotheses import HYPOTHESES
from gatelab.analysis.registration import Claim, Verdict
from gatelab.analysis.two_states import contrasts

RATES, TOKENS, STARTS = (5e-4, 2e-3, 8e-3), (1000, 2000, 4000), {"gated": 0.5, "open": 0.95}
CELLS = {f"{r:g} {n}": (r, n) for r, n in product(RATES, TOKENS)}
AT = "0.002 2000"
TRAINING = ("training-length", "learning-rate", "initial-value")
NONE = dict.fromkeys(TRAINING, 0.0)


def planted(value, n_seeds: int, reading: str = LOSS, ungated: float = 0.0) -> Ledger:
    """Nine cells of rates and tokens and a gate from two starts; `value` of (seed, log2 tokens, log2 rate, start) above the
    middle cell's is a gated run's reading, `ungated` any other's."""
    found = []
    for cell, (rate, tokens) in CELLS.items():
        found += outcomes(reading, "none", [ungated] * n_seeds, cell)
        for arm, start in STARTS.items():
            where = (np.log2(tokens / 2000), np.log2(rate / 2e-3), np.log2(start / 0.5))
            found += outcomes(reading, arm, [value(seed, *where) for seed in range(n_seeds)], cell)
    evidence = Evidence(found, METRICS, "none", list(STARTS), list(CELLS))
    factors = {
        "optim.lr": {c: rate for c, (rate, _) in CELLS.items()},
        "train.tokens": {c: n for c, (_, n) in CELLS.items()},
    }
    models = {(c, arm): {"gate": f"sdpa-headwise-bias-around={start}"} for c in CELLS for arm, start in STARTS.items()}
    runs = {(c, arm): {s: f"{c}{arm}{s}" for s in range(n_seeds)} for c in CELLS for arm in ("none", *STARTS)}
    return replace(ledger(), evidence=evidence, factors=factors, models=models, runs=runs)


def card(name: str, found: Ledger, reading: str = LOSS, cell: str = AT, arm: str = "gated"):
    return next(c for c in cards(found, HYPOTHESES, cell, arm, [reading]) if c.hypothesis == name)


def verdicts(found: Ledger, reading: str = LOSS) -> dict[str, str]:
    return {name: card(name, found, reading).verdict for name in TRAINING}


def losses(slopes: dict[str, float], seed: int = 0, sigma: float = 0.001) -> Ledger:
    rng = np.random.default_rng(seed)

    def value(_, tokens, rate, start):
        return np.dot([slopes[name] for name in TRAINING], [tokens, rate, start]) + rng.normal(0, sigma)

    return planted(value, 6)


@pytest.mark.parametrize("true", TRAINING)
def test_of_the_loss_each_cause_alone_is_supported_and_the_others_refuted(true) -> None:
    expected = dict.fromkeys(TRAINING, "refuted") | {true: "supported"}
    assert verdicts(losses(NONE | {true: 0.02})) == expected


def test_a_change_that_counts_as_nothing_only_a_doubling_is_held_over_the_whole_range() -> None:
    """0.006 nats a doubling, four doublings: 0.024, where the bound is 0.01."""
    decision = card("learning-rate", losses(NONE | {"learning-rate": 0.006})).decisions[0]
    assert decision.verdict == "supported" and decision.estimate == pytest.approx(0.024, abs=0.002)
    assert decision.low < decision.estimate < decision.high and "from 0.0005 to 0.008" in decision.numbers
    assert "count as nothing" not in decision.numbers
    # The same slope where it is not seen for noise is not refuted, though a doubling's interval is within the bound.
    noisy = card("learning-rate", losses(NONE, seed=1, sigma=0.012)).decisions[0]
    assert noisy.verdict == "undecided" and max(abs(noisy.low), abs(noisy.high)) / 4 < 0.01


@pytest.mark.parametrize("name", ["learning-rate", "initial-value"])
def test_a_dependence_that_is_seen_is_never_refuted_and_is_said_to_be_small(name) -> None:
    decision = card(name, losses(NONE | {name: 0.002}, sigma=0.0003)).decisions[0]
    assert decision.verdict == "supported" and decision.numbers.endswith("within the 0.01 that count as nothing")


def rates_alone(effects, n_seeds: int, sigma: float, rng: np.random.Generator):
    """The verdict on three cells that differ in their learning rate alone."""
    cells = {
        f"{r:g}": dict(enumerate(rng.normal(effect, sigma, n_seeds))) for r, effect in zip(RATES, effects, strict=True)
    }
    (found,) = fit(cells, {"optim.lr": {c: float(c) for c in cells}})
    return depending(Decision("", "", ""), found, 3, Scale("nats", 0.01))


def verdict_shares(effects, n_seeds: int, sigma: float, n_studies: int = 150) -> dict[str, float]:
    rng = np.random.default_rng([n_seeds, n_studies])
    found = [rates_alone(effects, n_seeds, sigma, rng).verdict for _ in range(n_studies)]
    return {verdict: found.count(verdict) / n_studies for verdict in ("supported", "refuted", "undecided")}


BENT = (0.010, -0.005, 0.012)  # by rate: a line over these is level


def test_an_effect_that_bends_with_the_rate_is_seen_and_never_refuted() -> None:
    """Tested along a line over log2 of the rate, 80% of such studies would refute it."""
    assert verdict_shares(BENT, 64, 0.01)["supported"] == 1.0
    few = verdict_shares(BENT, 5, 0.01)
    assert few["refuted"] == 0.0 and few["supported"] > 0.3


def test_supported_and_refuted_keep_their_levels() -> None:
    n = 600
    none = verdict_shares((0.0, 0.0, 0.0), 16, 0.004, n)
    assert none["supported"] <= 0.05 + 3 * (0.05 * 0.95 / n) ** 0.5 and none["refuted"] > 0.9
    # Levels as far apart as just counts, seen against so much noise that F hardly sees them.
    edge = verdict_shares((0.0, 0.005, 0.01), 16, 0.01, n)
    assert edge["refuted"] <= 0.025 + 3 * (0.025 * 0.975 / n) ** 0.5


def test_the_numbers_say_the_largest_difference_and_whether_a_line_tells_it() -> None:
    decision = rates_alone(BENT, 64, 0.002, np.random.default_rng(0))
    assert decision.estimate == pytest.approx(0.017, abs=0.001) and decision.low < 0.017 < decision.high
    assert (
        " nats at most from 0.002 to 0.008; " in decision.numbers
        and "a doubling, which is no line (p = " in decision.numbers
    )
    flat = rates_alone((0.0, 0.0, 0.0), 64, 0.002, np.random.default_rng(0))
    assert flat.verdict == "refuted" and flat.numbers.endswith(
        "every such difference within the 0.01 that count as nothing"
    )


def test_rates_at_which_most_runs_are_lost_are_in_no_test_and_are_named() -> None:
    """All cells of the largest rate, where the effect would be one of five nats."""
    found = losses(NONE)
    lost = {(f"0.008 {n}", "none"): "none 5 of 6" for n in TOKENS}
    made = [
        replace(o, value=5.0 + o.seed) if o.cell.startswith("0.008") and o.arm == "gated" else o
        for o in found.evidence.outcomes
    ]
    with_them = replace(found, evidence=replace(found.evidence, outcomes=made))
    assert card("learning-rate", with_them).verdict == "supported"
    decision = card(
        "learning-rate", replace(found, evidence=replace(found.evidence, outcomes=made, lost=lost))
    ).decisions[0]
    assert decision.verdict == "refuted" and decision.n == 6 and "from 0.0005 to 0.002" in decision.numbers
    named = "; ".join(f"0.008 {n} (none 5 of 6)" for n in TOKENS)
    assert decision.test.endswith(f"without those most runs of which are lost: {named}")


def states(shares, n_seeds: int = 40, seed: int = 0) -> Ledger:
    """Runs that keep the sink with the probability `shares` gives of (log2 tokens, log2 rate, start above one half)."""
    rng = np.random.default_rng(seed)
    return planted(lambda _, *where: 0.6 if rng.random() < shares(*where) else 0.05, n_seeds, MASS, ungated=0.7)


@pytest.mark.parametrize("true", TRAINING)
def test_of_a_state_each_cause_alone_is_supported_and_the_others_are_not(true) -> None:
    found = verdicts(states(lambda *where: 0.1 + 0.8 * (where[TRAINING.index(true)] > 0)), MASS)
    assert found == dict.fromkeys(TRAINING, "undecided") | {true: "supported"}


def test_the_start_decides_whether_the_sink_stays_as_counted_by_hand() -> None:
    """Of 63 seeds 5 keep it from one half, and these and 33 more from 0.95; one seed has no sink without a gate."""

    def value(seed, tokens, rate, start):
        return 0.5 if seed < (38 if start else 5) else 0.1

    found = planted(value, 64, MASS, ungated=0.7)
    made = [replace(o, value=0.2) if (o.arm, o.seed) == ("none", 63) else o for o in found.evidence.outcomes]
    found = replace(found, evidence=replace(found.evidence, outcomes=made))
    decision = card("initial-value", found, MASS).decisions[0]
    assert (decision.verdict, decision.n, decision.estimate) == ("supported", 63, 1.0)
    assert decision.predicts == "whether the first-token sink stays depends on the value at which the gate starts"
    assert decision.numbers == (
        "5 of 63 at 0.5, 38 of 63 at 0.95; 0.5 against 0.95, 63 seeds: at the first alone in 0, at the other alone in 33; exact"
        f" p = {2 / 2**33:.2g}"
    )
    assert decision.reading == "first_token_mass > 0.3"


def test_levels_are_compared_seed_by_seed_and_p_is_that_of_the_exact_test() -> None:
    rng = np.random.default_rng(3)
    levels = {at: {int(s): bool(rng.random() < 0.5) for s in rng.permutation(30)[:25]} for at in (1.0, 2.0, 4.0)}
    found = contrasts(levels)
    assert [(c.one, c.other) for c in found] == [(1.0, 2.0), (1.0, 4.0), (2.0, 4.0)]
    for c in found:
        pairs = [
            (levels[c.one][s], levels[c.other][s]) for s in range(30) if s in levels[c.one] and s in levels[c.other]
        ]
        alone = [pairs.count((True, False)), pairs.count((False, True))]
        assert (c.n, [c.alone_at_one, c.alone_at_other]) == (len(pairs), alone)
        assert c.p == pytest.approx(binomtest(alone[0], sum(alone)).pvalue)


def test_of_three_rates_the_smallest_p_is_times_three() -> None:
    """Eight seeds keep it at the largest rate alone: 2/2⁸ of either pair, three pairs."""
    found = planted(lambda seed, _, rate, __: 0.6 if rate > 0 and seed < 8 else 0.1, 12, MASS, ungated=0.7)
    decision = card("learning-rate", found, MASS).decisions[0]
    assert decision.numbers.endswith(f"exact p = {3 * 2 / 2**8:.2g} after Holm over 3 pairs of levels")
    assert (
        decision.verdict == "supported" and "0 of 12 at 0.0005, 0 of 12 at 0.002, 8 of 12 at 0.008" in decision.numbers
    )


def test_five_seeds_that_agree_cannot_decide_and_ask_for_more() -> None:
    decision = card("initial-value", planted(lambda _, __, ___, s: 0.6 if s else 0.1, 5, MASS, 0.7), MASS).decisions[0]
    assert decision.verdict == "undecided" and "exact p = 0.062" in decision.numbers
    assert decision.to_do == [
        "gatelab run quickstart 'cell=0.002 2000' seed=5..14 --out runs/x-seeds"
        " && gatelab find runs/x-seeds --explain '0.002 2000'"
    ]


def test_where_no_ungated_run_has_a_sink_nothing_can_stay() -> None:
    for name in ("learning-rate", "initial-value"):
        decision = card(name, planted(lambda *_: 0.6, 8, MASS, ungated=0.1), MASS).decisions[0]
        assert (
            decision.verdict == "undecided"
            and "no seed has an ungated run that has it at two levels" in decision.numbers
        )


def test_a_state_of_the_gate_alone_is_asked_of_all_its_runs() -> None:
    found = planted(lambda seed, _, rate, __: 0.99 if rate > 0 else 0.2, 9, "gate_shut")
    decision = card("learning-rate", found, "gate_shut").decisions[0]
    assert decision.verdict == "supported" and decision.reading == "gate_shut > 0.95"
    assert "whether a layer's gate is shut nearly everywhere depends on the learning rate" in decision.predicts


def test_states_and_thirds_leave_out_the_seeds_of_two_versions() -> None:
    own = {"n_layers": 6, "gate": "sdpa-headwise"}
    models = {("c0", "gated"): own, ("c0", "early"): own | {"gate_layers": "first-third"}}
    models |= {("c0", "late"): own | {"gate_layers": "last-third"}}
    for reading in (LOSS, "gate_shut"):
        made = [o for arm in ("none", "gated", "early", "late") for o in outcomes(reading, arm, [0.1, 0.3, 0.2, 0.1])]
        made = [replace(o, unpaired="two versions", value=9.0) if (o.arm, o.seed) == ("late", 3) else o for o in made]
        study = replace(ledger(), evidence=Evidence(made, METRICS, "none", ["gated"], ["c0"]), models=models)
        decision = card("depth", study, reading, "c0").decisions[1]
        assert decision.n == 3 and "at the other alone in 1" not in decision.numbers


def test_a_refused_arm_is_not_judged_where_two_factors_vary() -> None:
    """Refused in the cell that is asked about, of which no test then has a level."""
    why = "refused: no pair of its runs is of one version"
    found = states(lambda *_: 0.5, 4)
    found = replace(found, evidence=replace(found.evidence, refused={(AT, "gated"): why}))
    for c in cards(found, HYPOTHESES, AT, "gated", [LOSS, MASS]):
        assert c.verdict == "not run" and [d.to_do for d in c.decisions] == [[why]], c.hypothesis


def test_a_continuous_reading_has_its_own_unit_and_no_bound_that_was_not_declared() -> None:
    rng = np.random.default_rng(5)

    def study(slope):
        return planted(lambda _, __, rate, ___: slope * rate + rng.normal(0, 0.001), 6, "sink_elsewhere")

    steep, flat = (card("learning-rate", study(slope), "sink_elsewhere").decisions[0] for slope in (0.1, 0.0))
    assert (
        steep.verdict == "supported"
        and "share at most from 0.0005 to 0.008" in steep.numbers
        and steep.reading == "sink_elsewhere"
    )
    assert flat.verdict == "undecided" and "count as nothing" not in flat.numbers


def test_two_seeds_that_agree_by_luck_are_not_certain_where_runs_have_two_states() -> None:
    def value(seed, tokens, rate, start):
        return 0.5 * (start > 0) + 0.0001 * seed * (1 + start)

    decision = card("initial-value", planted(value, 2, "sink_elsewhere"), "sink_elsewhere").decisions[0]
    assert "p = 0.062" in decision.numbers and decision.verdict == "undecided"


def test_what_has_no_such_reading_is_not_run_and_says_why() -> None:
    found = losses(NONE | {"learning-rate": 0.02})
    for name in (*TRAINING, "depth"):
        of_mass = card(name, found, MASS)
        assert of_mass.verdict == "not run" and {d.verdict for d in of_mass.decisions} == {"not run"}
        why = "no finished run of this study has first_token_mass, and no other reading decides for it"
        assert all(d.to_do == [why] for d in of_mass.decisions)
    for name in ("sparsity", "mediation"):
        (decision,) = card(name, found, MASS).decisions
        assert decision.verdict == "not run" and decision.to_do == ["none of them reads the first-token mass"]
    edits = card("depth", states(lambda *_: 0.5), MASS).decisions[2]
    assert edits.verdict == "not run" and "change in loss alone" in edits.to_do[0]


def test_thirds_are_compared_by_the_state_too() -> None:
    own = {"n_layers": 6, "gate": "sdpa-headwise"}
    models = {("c0", "gated"): own, ("c0", "early"): own | {"gate_layers": "first-third"}}
    models |= {("c0", "late"): own | {"gate_layers": "last-third"}}
    values = {"none": [0.7] * 9, "gated": [0.1] * 9, "early": [0.1] * 9, "late": [0.6] * 8 + [0.1]}
    found = [o for arm, of in values.items() for o in outcomes(MASS, arm, of)]
    study = replace(ledger(), evidence=Evidence(found, METRICS, "none", ["gated"], ["c0"]), models=models)
    decision = card("depth", study, MASS, "c0").decisions[1]
    assert decision.verdict == "supported" and "0 of 9 at early, 8 of 9 at late" in decision.numbers


def test_every_test_says_what_it_read() -> None:
    found = states(lambda *_: 0.5)
    for c in cards(found, HYPOTHESES, AT, "gated", [LOSS, MASS]):
        assert all(d.reading for d in c.decisions), c.hypothesis
    marks = {
        (c.hypothesis, c.reading): [d.reading for d in c.decisions] for c in cards(ledger(), HYPOTHESES, "c0", "gated")
    }
    assert marks["no-op", ""] == ["loss_change", "first_token_mass"]
    assert marks["sparsity", LOSS] == ["loss_change", "loss_change", "val_loss", "val_loss"]
    assert marks["sink-before-drain", ""] == ["first_token_mass, value_drain"]
    assert of_loss("depth", ledger()).reading == LOSS


def test_an_anomaly_is_explained_by_what_its_claims_are_about() -> None:
    claim = Claim("sink-stays", AT, "gated", MASS, 0, 0.001, 0.01)
    one = Anomaly(AT, "gated", [Held(Verdict(claim, 9, 0.001, 0.002, "confirmed"), None, None)], [], {})
    found = cards(states(lambda *_: 0.5), HYPOTHESES, AT, "gated", [LOSS, MASS])
    assert {c.reading for c in found if is_about(c, one)} == {"", MASS}
    assert not any(is_about(replace(c, arm="open"), one) for c in found)


def found_in(n_studies: int, n_seeds: int, share) -> dict[str, float]:
    """{hypothesis: the share of studies that support it} where a sink stays with the probability `share` gives."""
    names = ("learning-rate", "initial-value")
    studies = [states(share, n_seeds, seed) for seed in range(n_studies)]
    return {n: float(np.mean([card(n, study, MASS).verdict == "supported" for study in studies])) for n in names}


def planted_share(_, rate, start) -> float:
    return 0.8 if rate > 0 or start > 0 else 0.2


def test_the_exact_tests_keep_their_level_and_see_what_is_there() -> None:
    alarms, seen = found_in(150, 20, lambda *_: 0.5), found_in(150, 20, planted_share)
    assert max(alarms.values()) <= 0.05 and min(seen.values()) >= 0.85, (alarms, seen)
