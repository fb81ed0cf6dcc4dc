"""How much of a gate's effect another way keeps: planted losses give the verdict, missing arms and rates are written out."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import METRICS, outcomes
from test_causes import card, ledger

from gatelab import Arm
from gatelab.analysis.anomalies import Evidence
from gatelab.config import canonical, override
from gatelab.studies import tasks_causes
from gatelab.study.plan import make_plan

CELL = "encoder select"
MODELS = {
    p.arm: canonical(p.run)["model"] for p in make_plan(tasks_causes.study).runs if (p.cell, p.run.seed) == (CELL, 18)
}
NONE = (3.0, 3.4, 2.8, 3.1, 3.3, 2.9)
WIGGLE = (0.02, -0.01, 0.0, 0.01, -0.02, 0.015)
GAIN = tuple(-1 + w for w in WIGGLE)


def found(effects, *, models=MODELS, n=6, gain=GAIN):
    """The ledger of arms with these effects on the loss, beside no gate and a headwise gate called `gated`."""
    seeds = range(n)
    ways = {"gated": gain} | effects
    of = [*outcomes("val_loss", "none", NONE[:n])]
    for arm, by_seed in ways.items():
        of += outcomes("val_loss", arm, [NONE[s] + by_seed[s] for s in seeds])
    own = {("c0", a): models[a] for a in (*effects, "none")} | {("c0", "gated"): models["sdpa-headwise"]}
    return replace(ledger(), evidence=Evidence(of, METRICS, "none", ["gated"], ["c0"]), models=own)


def share(of, jitter=0.02):
    """A share of the gain, with a spread of its own."""
    return tuple(of * g + jitter * (-1) ** i for i, g in enumerate(GAIN))


@pytest.mark.parametrize(
    ("small", "begun_open", "verdicts", "says"),
    [
        (1.0, 0.1, ("supported", "supported"), ""),
        (0.0, 0.1, ("refuted", "supported"), "it takes a gate, and one that begins below one"),
        (
            0.9,
            0.9,
            ("supported", "refuted"),
            "no gate has it too where it begins smaller, and a gate where it does not",
        ),
        (0.5, 0.5, ("undecided", "undecided"), ""),
    ],
)
def test_a_smaller_start(small, begun_open, verdicts, says):
    got = card("small-start", found({"scaled": share(small), "open": share(begun_open)}))
    assert tuple(d.verdict for d in got.decisions) == verdicts and got.says == says
    assert got.decisions[0].test == "no gate, begun smaller: scaled beside gated"


def test_the_numbers_are_the_gates_effect_the_others_and_what_lies_beyond_half():
    got = card("reads-token", found({"static": share(0.2, 0.0)})).decisions[0]
    mean = float(np.mean(GAIN))
    assert got.verdict == "supported" and got.estimate == pytest.approx(0.3 * mean)
    assert got.numbers.startswith(f"gated {mean:+.4g}, static {0.2 * mean:+.4g} nats: 20% of it; ")


def test_a_share_is_of_harm_too_and_of_nothing_where_the_gate_does_nothing():
    harm = tuple(-g for g in GAIN)
    got = card("reads-token", found({"static": tuple(-x for x in share(0.9))}, gain=harm)).decisions[0]
    assert got.verdict == "refuted"
    nothing = card("reads-token", found({"static": share(0.9)}, gain=WIGGLE)).decisions[0]
    assert nothing.verdict == "undecided" and "nothing to share" in nothing.numbers


def test_a_share_that_is_the_same_in_every_seed_is_no_test():
    got = card("reads-token", found({"static": tuple(g / 2 - 0.25 for g in GAIN)})).decisions[0]
    assert got.verdict == "undecided" and "no spread" in got.numbers


def test_of_ways_with_just_half_one_in_twenty_is_called_more_and_one_in_twenty_less():
    rng, n = np.random.default_rng(0), 600
    said = []
    for _ in range(n):
        gain, own = rng.normal(-1, 0.4, 6), rng.normal(0, 0.2, 6)
        said.append(card("reads-token", found({"static": tuple(gain / 2 + own)}, gain=tuple(gain))).verdict)
    for verdict in ("supported", "refuted"):
        assert 0.02 < said.count(verdict) / n < 0.08


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (0.9, 0.1, ("supported", "refuted")),
        (0.1, 0.9, ("refuted", "supported")),
        (0.9, 0.9, ("refuted", "refuted")),
    ],
)
def test_the_halves_of_the_layers(first, last, words):
    there = found({"first-half": share(first), "last-half": share(last)})
    got = [card(name, there) for name in ("first-layers", "last-layers")]
    assert tuple(c.verdict for c in got) == words
    both = "either half of the layers alone has at least half of it"
    assert [c.says for c in got] == ([both, both] if first == last else ["", ""])


def test_of_two_seeds_in_a_study_of_tasks_agreement_may_be_luck():
    there = found({"static": share(0.1)}, n=2, gain=(-1.0, -1.001))
    assert card("reads-token", there).decisions[0].verdict == "supported"
    asked = [o for a in ("none", "gated") for o in outcomes("accuracy:select", a, (0.5, 0.6))]
    there = replace(there, evidence=Evidence([*there.evidence.outcomes, *asked], METRICS, "none", ["gated"], ["c0"]))
    got = card("reads-token", there).decisions[0]
    assert got.verdict == "undecided" and "by luck" in got.numbers


def test_missing_arms_are_written_out_as_the_study_has_them():
    base, wanted = tasks_causes.study.cells[CELL], {a.name: a for a in tasks_causes.study.arms}
    there = found({})
    for name in ("small-start", "reads-token", "first-layers"):
        for decision in card(name, there).decisions:
            (word,) = decision.arms
            arm = eval(word, {"Arm": Arm})
            assert override(base, arm.changes) == override(base, wanted[arm.name].changes), name
            assert arm.control == wanted[arm.name].control


def test_where_there_can_be_no_such_arm_it_says_why():
    one = {a: m | {"n_layers": 1} for a, m in MODELS.items()}
    assert card("first-layers", found({}, models=one)).decisions[0].to_do == ["one layer has no halves"]
    part = MODELS | {"sdpa-headwise": MODELS["first-half"]}
    assert "in a part of the layers itself" in card("last-layers", found({}, models=part)).decisions[0].to_do[0]
    begun = MODELS | {"sdpa-headwise": MODELS["open"]}
    assert "begins open itself" in card("small-start", found({}, models=begun)).decisions[1].to_do[0]
    two = MODELS | {"sdpa-headwise": MODELS["sdpa-headwise"] | {"gate": "sdpa-headwise+value-headwise"}}
    assert card("reads-token", found({}, models=two)).decisions[0].to_do == ["an arm with one gate that can be so"]


def rates(none, gated, *, lost=(), status="diverged"):
    """{rate: mean loss} of each arm, in cells c0 (at 1), c1, …; seeds that are `lost` at (rate, arm)."""
    cells = {rate: f"c{i}" for i, rate in enumerate(sorted(none, key=lambda r: (r != 1, r)))}
    of = []
    for rate, cell in cells.items():
        for arm, means in (("none", none), ("gated", gated)):
            own = outcomes(
                "val_loss",
                arm,
                [means[rate] + n + w * (arm == "gated") for n, w in zip(NONE, WIGGLE, strict=True)],
                cell,
            )
            of += [replace(o, status=status) if (rate, arm) in lost else o for o in own]
    at = {cell: ("same", float(rate)) for rate, cell in cells.items()}
    evidence = Evidence(of, METRICS, "none", ["gated"], list(at), rates=at)
    models = {(c, a): MODELS[m] for c in at for a, m in (("none", "none"), ("gated", "sdpa-headwise"))}
    return card("own-rate", replace(ledger(), evidence=evidence, models=models)).decisions[0]


def test_a_gain_that_a_rate_of_its_own_gives_no_gate_too():
    got = rates({0.3: 0.1, 1: 1.0, 3: 0.0, 10: 2.0}, {0.3: 0.2, 1: 0.0, 3: 0.1, 10: 2.0})
    assert got.verdict == "supported" and "none at 3, gated at 1" in got.numbers
    assert rates({0.3: 1.9, 1: 1.0, 3: 1.9}, {0.3: 0.2, 1: 0.0, 3: 0.2}).verdict == "refuted"


def test_a_best_rate_at_an_end_decides_against_its_arm_and_not_for_the_other():
    got = rates({0.3: 1.9, 1: 1.0, 3: 0.9}, {0.3: 0.2, 1: 0.0, 3: 0.2})
    assert got.verdict == "undecided" and "the best rate of none is an end of the ladder" in got.numbers
    assert rates({0.3: 1.9, 1: 1.0, 3: 0.1}, {0.3: 0.2, 1: 0.0, 3: 0.2}).verdict == "supported"


def test_a_rate_at_which_runs_are_lost_is_no_candidate():
    got = rates({0.3: 1.9, 1: 1.0, 3: 0.0}, {0.3: 0.2, 1: 0.0, 3: 0.2}, lost=((3, "none"),))
    assert got.verdict == "refuted" and "none at 1" in got.numbers


def test_a_rate_whose_runs_have_not_all_ended_is_none_that_was_tried():
    means = {0.3: 1.9, 1: 1.0, 3: 0.0}, {0.3: 0.2, 1: 0.0, 3: 0.2}
    got = rates(*means, lost=((3, "none"),), status="running")
    assert got.verdict == "undecided" and "none at 1" in got.numbers and "end of the ladder" in got.numbers


def test_without_other_rates_it_says_how_to_run_them():
    got = card("own-rate", found({})).decisions[0]
    run = "gatelab run quickstart cell=c0 'optim.lr=[0.000333,0.001,0.003]' seed=0..2 --out runs/x-best-lr"
    assert got.to_do == [f"{run} && gatelab find runs/x-best-lr --explain 'c0, optim.lr=0.001'"]
