"""Thirds of the depth, values at a start, and mediation: planted rows give the verdict, missing ones the command."""

from dataclasses import replace

import pytest
import torch
from simulated import METRICS, evidence, outcomes
from test_causes import MODELS, RUNS, card, ledger, of

from gatelab import Arm
from gatelab.analysis.anomalies import Evidence
from gatelab.analysis.dependence_tests import started as start_of
from gatelab.analysis.hypotheses import HYPOTHESES, edits_of
from gatelab.config import ACTIVATIONS, ModelConfig, Run, canonical, override
from gatelab.probes.interventions import parse

DEEP = {"n_layers": 6, "gate": "sdpa-headwise"}


def trained(losses, own=DEEP):
    """{arm: (changes of its model, losses by seed)} beside no gate and the gate `own` in every layer."""
    found = evidence({"val_loss": {"c0": ([3.0, 3.1, 3.2], [2.9, 3.01, 3.1])}})
    more = [o for arm, (_, values) in losses.items() for o in outcomes("val_loss", arm, values)]
    models = {("c0", "none"): {"n_layers": 6, "gate": "none"}, ("c0", "gated"): own}
    models |= {("c0", arm): own | changes for arm, (changes, _) in losses.items()}
    everything = Evidence([*found.outcomes, *more], METRICS, "none", ["gated"], ["c0"])
    return replace(ledger(), evidence=everything, models=models)


def thirds(first, last):
    return trained(
        {"early": ({"gate_layers": "first-third", "d_ff": 7}, first), "late": ({"gate_layers": "last-third"}, last)}
    )


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [
        ((2.9, 3.01, 3.1), (3.0, 3.11, 3.21), "supported"),
        ((3.0, 3.11, 3.21), (2.9, 3.01, 3.1), "supported"),
        ((2.9, 3.01, 3.1), (2.901, 3.009, 3.1), "refuted"),
        ((2.9, 3.01, 3.1), (3.0, 2.9, 3.1), "undecided"),
    ],
)
def test_a_gate_in_a_third_alone(first, last, verdict) -> None:
    found = card("depth", thirds(first, last)).decisions[1]
    assert found.verdict == verdict and found.test == "a gate in a third alone: early against late"


def test_arms_with_experts_are_matched_by_the_width_of_these() -> None:
    def experts(width: int, **changes: object) -> dict[str, object]:
        return changes | {"d_ff": width, "moe": {"n_experts": 4, "top_k": 2, "d_expert": width}}

    own, first, last = (2.9, 3.01, 3.1), (2.9, 3.01, 3.1), (3.0, 3.11, 3.21)
    arms = {
        "early": (experts(31, gate_layers="first-third"), first),
        "late": (experts(31, gate_layers="last-third"), last),
        "more": (experts(31, gate_layers="last-third") | {"moe": {"n_experts": 8, "top_k": 2, "d_expert": 15}}, own),
    }
    found = card("depth", trained(arms, DEEP | experts(30))).decisions[1]
    assert (found.verdict, found.test) == ("supported", "a gate in a third alone: early against late")
    starts = [DEEP | experts(w, gate=f"sdpa-headwise-bias-around={v}") for w, v in ((30, 0.5), (29, 0.95))]
    found = card("initial-value", trained({"open": (starts[1], (3.5, 3.61, 3.71))}, starts[0])).decisions[0]
    assert found.test == "the gate's initial value: gated 0.5, open 0.95"


def test_what_a_third_lacks_of_the_whole_gate_is_told_beside_it() -> None:
    """early is the whole gate's loss plus 0.01, 0.02, 0.03; late plus 0.11, 0.12, 0.13."""
    found = card("depth", thirds((2.91, 3.03, 3.13), (3.01, 3.13, 3.23))).decisions[1]
    assert found.numbers.startswith("-0.1 nats in each of 3 seeds") and found.verdict == "undecided"
    assert "early +0.02 (-0.004" in found.numbers and "late +0.12 (+0.09" in found.numbers


def test_arms_that_are_missing_are_written_out() -> None:
    found = card("depth", trained({"early": ({"gate_layers": "first-third"}, (1, 2, 3))})).decisions[1]
    there, word = found.arms
    arm = eval(word, {"Arm": Arm})
    assert there == "early" and "'arm=[gated,early," in found.to_do[0] and ",gated-last-third," in found.to_do[0]
    deep = Run(model=ModelConfig(n_layers=6))
    assert override(deep, arm.changes).model.gate_layers == "last-third"


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"n_layers": 1, "gate": "sdpa-headwise"}, "one layer"),
        (DEEP | {"gate_layers": [0, 2]}, "in a part of the layers"),
    ],
)
def test_where_there_are_no_thirds_nothing_is_asked(own, says) -> None:
    for found in card("depth", trained({}, own)).decisions[1:]:
        assert found.verdict == "undecided" and says in found.numbers and not found.to_do
    assert not [word for word in edits_of(own, gated=True) if ":" in word]


def edited(first, last, model=DEEP):
    words = {"gate-mean:l0,l1": first, "gate-mean:l4,l5": last}
    edits = {}
    for word, (changes, control) in words.items():
        edits |= of("g", word, changes, control)
    return replace(ledger(edits=edits), models={**MODELS, ("c0", "gated"): model})


def test_a_gate_at_its_mean_in_the_first_third_against_the_last() -> None:
    big, small, control = (0.5, 0.52, 0.51), (0.1, 0.11, 0.12), (0.1, 0.1, 0.1)
    found = card("depth", edited((big, control), (small, control))).decisions[2]
    assert (found.verdict, found.n) == ("supported", 3) and found.estimate == pytest.approx(0.4)
    assert "gate-mean:l0,l1 +0.41" in found.numbers and "gate-mean:l4,l5 +0.01" in found.numbers
    # A first third that costs no more than its own control does is not told apart from the last by its size.
    alike = card("depth", edited((big, (0.4, 0.421, 0.409)), (small, (0, 0.012, 0.019)))).decisions[2]
    assert alike.verdict == "refuted"


def test_its_words_are_those_of_the_models_layers_and_exist() -> None:
    words = edits_of(DEEP, gated=True)
    assert {"gate-mean:l0,l1", "gate-mean:l4,l5", "mask-key-frozen@first", "gate-shuffle-frozen"} < set(words)
    assert all(parse(word).at_dose(1).word == word for word in words + edits_of(DEEP, gated=False))
    todo = card("depth", replace(ledger(), models={**MODELS, ("c0", "gated"): DEEP})).decisions[2].to_do
    assert todo == ["gatelab find runs/x --explain c0 --edit"]


def test_runs_with_both_edits_are_compared_whatever_others_lack() -> None:
    found = edited(((0.5, 0.52, 0.51), (0.1, 0.1, 0.1)), ((0.1, 0.11, 0.12), (0.1, 0.1, 0.1)))
    del found.edits["g1", "gate-mean:l0,l1", 1.0]
    decision = card("depth", found).decisions[2]
    assert (decision.verdict, decision.n) == ("supported", 2) and decision.estimate == pytest.approx(0.395)


def started(values):
    """Arms of one gate that start at 0.5, 0.75 and 0.95, beside one that has no stated value and one of another gate."""
    own = DEEP | {"gate": "sdpa-headwise-bias-around=0.5"}
    arms = {"mid": "sdpa-headwise-bias-around=0.75", "open": "sdpa-headwise-bias-around=0.95"}
    losses = {arm: ({"gate": slug}, v) for (arm, slug), v in zip(arms.items(), values, strict=True)}
    losses["other"] = ({"gate": "sdpa-elementwise-bias-around=0.1"}, (9.0, 9.5, 9.1))
    losses["zero"] = ({"gate": "sdpa-headwise-bias-init=0.1"}, (9.0, 9.5, 9.1))
    losses["random"] = ({"gate": "sdpa-headwise-bias"}, (9.0, 9.5, 9.1))
    return trained(losses, own)


def test_the_effect_depends_on_the_value_at_which_the_gate_starts() -> None:
    found = card("initial-value", started([(3.2, 3.32, 3.41), (3.5, 3.61, 3.71)])).decisions[0]
    assert found.verdict == "supported" and found.test == "the gate's initial value: gated 0.5, mid 0.75, open 0.95"
    flat = card("initial-value", started([(2.901, 3.01, 3.1), (2.9, 3.011, 3.1)])).decisions[0]
    assert flat.verdict == "refuted" and "nats a doubling" in flat.numbers


def test_random_weights_start_around_the_activation_of_zero() -> None:
    losses = {"open": ({"gate": "sdpa-headwise-bias-around=0.95"}, (3.5, 3.61, 3.71))}
    losses["zero"] = ({"gate": "sdpa-headwise-bias-init=0.1"}, (9.0, 9.5, 9.1))  # no random weights
    found = card("initial-value", trained(losses, DEEP | {"gate": "sdpa-headwise"})).decisions[0]
    assert found.verdict == "supported" and found.test == "the gate's initial value: gated 0.5, open 0.95"
    for name, known in ACTIVATIONS.items():
        start = start_of({"gate": f"sdpa-headwise-{name}".replace("-sigmoid", "")})
        assert start.value == pytest.approx(float(known.apply(torch.zeros(())))) and not start.is_stated
    static, stated = (start_of({"gate": f"sdpa-headwise-static{x}"}) for x in ("", "-init=0.95"))
    assert static.value == 0.5 and static.gate == stated.gate and stated.is_stated
    assert start_of({"gate": "sdpa-headwise-lse"}).value is None


def test_two_starts_are_suggested_that_the_gate_can_have() -> None:
    own = ("sdpa-headwise", {0.95}), ("sdpa-elementwise-ns_sigmoid", {0.95})  # there at 0.5, and at 0.75
    for gate, values in (*own, ("sdpa-headwise-silu", {0.5, 0.95}), ("sdpa-headwise-bias-init=0.1", {0.5, 0.95})):
        found = card("initial-value", trained({}, DEEP | {"gate": gate})).decisions[0]
        assert found.verdict == "not run"
        arms = [eval(w, {"Arm": Arm}) for w in found.arms if w.startswith("Arm(")]
        models = [override(Run(model=ModelConfig()), arm.changes).model for arm in arms]
        assert {m.gate[0].init if m.gate[0].around is None else m.gate[0].around for m in models} == values
    own = DEEP | {"gate": "sdpa-headwise-bias-around=0.5"}
    assert not [w for w in card("initial-value", trained({}, own)).decisions[0].arms if "0.5'" in w]


@pytest.mark.parametrize("layers", ["last-third", [0, 2]])
def test_starts_are_suggested_for_the_layers_that_have_the_gate(layers) -> None:
    found = card("initial-value", trained({}, DEEP | {"gate_layers": layers})).decisions[0]
    arms = [eval(w, {"Arm": Arm}) for w in found.arms if w.startswith("Arm(")]
    models = [override(Run(model=ModelConfig(n_layers=6)), arm.changes).model for arm in arms]
    stated = layers if isinstance(layers, str) else tuple(layers)
    assert [m.gate_layers for m in models] == [stated]


def test_configurations_as_they_are_stored_are_recognised() -> None:
    """Of a run's own file, not of a test's: the gate as a slug, layers as a word."""
    base = ModelConfig(n_layers=6)
    models = {
        ("c0", "none"): base,
        ("c0", "gated"): override(base, {"gate": "sdpa-headwise-bias-around=0.5"}),
        ("c0", "open"): override(base, {"gate": "sdpa-headwise-bias-around=0.95"}),
        ("c0", "early"): override(base, {"gate": "sdpa-headwise-bias-around=0.5", "gate_layers": "first-third"}),
        ("c0", "late"): override(base, {"gate": "sdpa-headwise-bias-around=0.5", "gate_layers": "last-third"}),
    }
    losses = {"open": (3.5, 3.61, 3.71), "early": (2.9, 3.01, 3.1), "late": (3.0, 3.11, 3.21)}
    found = trained({arm: ({}, values) for arm, values in losses.items()})
    found = replace(found, models={key: canonical(model) for key, model in models.items()})
    assert card("depth", found).decisions[1].verdict == "supported"
    assert card("initial-value", found).decisions[0].test.endswith("gated 0.5, open 0.95")


def moved(sink, gate, *, gated_sink=0.6, ungated=((0.5, 0.52, 0.51), (0.1, 0.1, 0.11))):
    """Changes of the loss (edit's, control's) by moving the sink and the gate."""
    study = evidence({"first_token_mass": {"c0": ([0.7] * 3, [gated_sink] * 3)}})
    edits = of("g", "mask-key-frozen@first", *sink) | of("g", "gate-shuffle-frozen", *gate)
    return ledger(study=study, edits=edits | of("n", "mask-key@first", *ungated))


COSTS, FREE = ((0.5, 0.52, 0.51), (0.1, 0.11, 0.1)), ((0.1, 0.11, 0.12), (0.1, 0.111, 0.121))


@pytest.mark.parametrize(
    ("sink", "gate", "verdict", "says"),
    [
        (COSTS, FREE, "supported", "the gate acts through the sink alone"),
        (COSTS, COSTS, "refuted", "the gate acts through the sink, and besides it"),
        (FREE, COSTS, "refuted", "the gate acts, and not through the sink"),
        (FREE, FREE, "refuted", "neither the sink nor the gate's scores carry loss in the finished model"),
        (COSTS, ((0.1, 0.2, 0.1), (0.1, 0.11, 0.15)), "undecided", ""),
    ],
)
def test_the_table_of_mediation(sink, gate, verdict, says) -> None:
    found = card("mediation", moved(sink, gate))
    assert (found.verdict, found.says) == (verdict, says)
    assert {d.verdict for d in found.decisions} <= {"supported", "refuted", "undecided"}


def test_where_the_gate_left_no_sink_the_ungated_runs_decide_and_both_are_told() -> None:
    found = card("mediation", moved(FREE, FREE, gated_sink=0.1))
    assert found.verdict == "supported" and "mask-key@first of the ungated runs" in found.decisions[0].test
    assert "; gated runs, 0 of 3 with a sink: -0.0006667" in found.decisions[0].numbers
    study = evidence({"first_token_mass": {"c0": ([0.1] * 3, [0.1] * 3)}})
    none = card("mediation", replace(moved(COSTS, FREE), evidence=study)).decisions[0]
    assert none.verdict == "undecided" and "fewer than two runs have a sink to move" in none.numbers


def test_only_runs_with_a_sink_say_what_moving_it_costs() -> None:
    """Two gated runs keep the sink, and lose 0.4 and 0.41 with it; the third has none, and loses nothing."""
    study = evidence({"first_token_mass": {"c0": ([0.7] * 3, [0.6, 0.5, 0.1])}})
    found = replace(moved(((0.5, 0.51, 0.1), (0.1, 0.1, 0.1)), FREE), evidence=study)
    decision = card("mediation", found).decisions[0]
    assert (decision.verdict, decision.n) == ("supported", 2) and decision.estimate == pytest.approx(0.405)


def test_a_sink_of_one_layer_counts_where_layers_were_told() -> None:
    """A mean over layers of 0.2, with 0.65 in one of them."""
    study = evidence({"first_token_mass": {"c0": ([0.2] * 3, [0.2] * 3)}})
    found = replace(moved(COSTS, FREE), evidence=study)
    assert card("mediation", found).decisions[0].verdict == "undecided"
    told = {name: {"sink": [(0, 0.03), (100, 0.65)]} for runs in RUNS.values() for name in runs.values()}
    assert card("mediation", replace(found, courses=told)).verdict == "supported"
    no_op = replace(ledger(study=study, edits=of("n", "zero-value@first", (0.001, 0.002, 0.0015))), courses=told)
    assert card("no-op", no_op).decisions[0].verdict == "supported"


def test_missing_manipulations_name_their_commands() -> None:
    todo = [word for d in card("mediation", ledger()).decisions for word in d.to_do]
    assert todo == ["gatelab find runs/x --explain c0 --edit"] * 2


def test_the_table_of_the_docstring_is_that_of_the_verdicts() -> None:
    from gatelab.analysis import mediation

    (h,) = [h for h in HYPOTHESES if h.name == "mediation"]
    assert len(h.says) == 4 and mediation.__doc__.count("| refuted |") == 3
