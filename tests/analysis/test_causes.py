"""Verdict cards: planted rows give the verdict, missing rows the command that makes them."""

from dataclasses import replace

import pytest
from simulated import METRICS, evidence, outcomes

from gatelab.analysis.anomalies import Evidence
from gatelab.analysis.causes import Ledger, cards
from gatelab.analysis.hypotheses import HYPOTHESES, edits_of

RUNS = {("c0", "none"): {0: "n0", 1: "n1", 2: "n2"}, ("c0", "gated"): {0: "g0", 1: "g1", 2: "g2"}}
BASES = {"c0": {"model": {"n_layers": 4, "norm_position": "pre"}, "optim": {"lr": 1e-3}, "train": {"tokens": 1000}}}
MODELS = {("c0", "none"): {"gate": "none"}, ("c0", "gated"): {"gate": "sdpa-headwise"}}


def ledger(*, edits=(), arms=None, factors=None, study=None):
    """`edits` {(run, word): change}; `arms` {arm: (model, reading, values)}."""
    found = study or evidence({"val_loss": {"c0": ([3.0, 3.1, 3.2], [2.9, 3.01, 3.1])}})
    models, more = dict(MODELS), []
    for arm, (model, reading, values) in (arms or {}).items():
        models["c0", arm] = model
        more += outcomes(reading, arm, values)
    everything = Evidence([*found.outcomes, *more], METRICS, "none", ["gated"], found.cells)
    dosed = {(run, word, 1.0): value for (run, word), value in dict(edits).items()}
    return Ledger(everything, factors or {}, RUNS, models, BASES, dosed, "runs/x", "quickstart")


def card(name, found):
    return next(c for c in cards(found, HYPOTHESES, "c0", "gated") if c.hypothesis == name)


def of(runs, word, values, control=None):
    edits = {(f"{runs}{i}", word): v for i, v in enumerate(values)}
    return edits | {(f"{runs}{i}", f"control of {word}"): v for i, v in enumerate(control or ())}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [((0.001, 0.002, 0.0015), "supported"), ((0.3, 0.31, 0.29), "refuted"), ((0.0, 0.03, 0.01), "undecided")],
)
def test_an_edit_that_should_do_nothing(changes, verdict):
    first = card("no-op", ledger(edits=of("n", "zero-value@first", changes))).decisions[0]
    assert (first.verdict, first.n) == (verdict, 3)
    assert "95% interval" in first.numbers


@pytest.mark.parametrize(
    ("changes", "control", "verdict"),
    [
        ((0.5, 0.52, 0.51), (0.1, 0.11, 0.1), "supported"),
        ((0.5, 0.52, 0.51), (0.5, 0.519, 0.511), "refuted"),
        ((0.5, 0.1, 0.3), (0.1, 0.11, 0.1), "undecided"),
    ],
)
def test_an_edit_that_should_cost_more_than_its_control(changes, control, verdict):
    first = card("sparsity", ledger(edits=of("g", "gate-shuffle", changes, control))).decisions[0]
    assert first.verdict == verdict


def test_the_same_edit_with_and_without_frozen_norms():
    edits = of("n", "clip-massive=100x", (0.5, 0.52, 0.5)) | of("n", "clip-massive-frozen=100x", (0.01, 0.02, 0.0))
    found = card("rescaling", ledger(edits=edits))
    assert found.verdict == "supported" and found.decisions[0].estimate == pytest.approx(0.49667, abs=1e-5)


def test_an_arm_is_known_by_its_model_and_compared_seed_by_seed():
    """+0.1 nats of a static gate over the gate of the same seed."""
    static = ({"gate": "sdpa-elementwise-static"}, "val_loss", (3.0, 3.12, 3.2))
    decision = card("sparsity", ledger(arms={"fixed": static})).decisions[2]
    assert decision.verdict == "supported" and decision.estimate == pytest.approx(0.10333, abs=1e-5)
    assert decision.test == "a gate that is the same for every token: fixed against gated"
    better = ({"gate": "sdpa-elementwise-static"}, "val_loss", (2.0, 2.12, 2.2))
    assert card("sparsity", ledger(arms={"fixed": better})).verdict == "refuted"


def test_a_refused_arm_is_not_compared():
    found = ledger(arms={"fixed": ({"gate": "sdpa-elementwise-static"}, "val_loss", (3.0, 3.12, 3.2))})
    found.evidence.refused = {("c0", "fixed"): "refused: seed 0 sees other tokens"}
    decision = card("sparsity", found).decisions[2]
    assert decision.verdict == "not run" and decision.to_do == ["refused: seed 0 sees other tokens"]


def test_cells_of_several_depths_decide_and_a_flat_slope_refutes():
    layers = {"c0": 2, "c1": 4, "c2": 8, "c3": 16, "c4": 32}
    wiggle = (0.0, 0.001, -0.001)

    def depth(slope):
        cells = {c: ([0.0] * 3, [slope * i + w for w in wiggle]) for i, c in enumerate(layers)}
        # Seeds wiggle alike in every cell, as their blocks do; one cell stands a little off, else nothing is left over.
        cells["c2"] = ([0.0] * 3, [slope * 2 + 2 * w + 0.0005 for w in wiggle])
        found = ledger(study=evidence({"val_loss": cells}), factors={"model.n_layers": layers})
        return card("depth", found).decisions[0]

    assert depth(0.1).verdict == "supported" and "nats a doubling" in depth(0.1).numbers
    assert depth(0.0).verdict == "refuted"


def test_factors_that_differ_alike_are_undecided_and_named():
    cells = {c: ([0.0, 0.1, 0.3], [i, i + 0.2 * i, i + 0.3]) for i, c in enumerate(("c0", "c1"))}
    both = {"model.n_layers": {"c0": 1, "c1": 2}, "model.d_model": {"c0": 64, "c1": 128}}
    decision = card("depth", ledger(study=evidence({"val_loss": cells}), factors=both)).decisions[0]
    assert decision.verdict == "undecided" and "differ alike in model.n_layers = model.d_model" in decision.numbers


def test_a_folder_with_a_space_is_quoted_in_commands():
    found = card("no-op", replace(ledger(), folder="my runs")).decisions[0]
    assert found.to_do == ["gatelab find 'my runs' --explain c0 --edit"]


def test_what_is_missing_says_what_makes_it():
    todo = [word for c in cards(ledger(), HYPOTHESES, "c0", "gated") for d in c.decisions for word in d.to_do]
    assert "gatelab find runs/x --explain c0 --edit" in todo
    depth = "gatelab run quickstart cell=c0 'model.n_layers=[2,4,8]' seed=0..2 --out runs/x-n_layers"
    assert f"{depth} && gatelab find runs/x-n_layers --explain 'c0, model.n_layers=4'" in todo
    arms = {w for w in todo if w.startswith("printf ")}
    assert len(arms) == 1 and "Arm('sink-logit', {'model.softmax': 'sink-logit'}, control=True)" in arms.pop()
    every = {c.hypothesis: c.verdict for c in cards(ledger(), HYPOTHESES, "c0", "gated")}
    assert every.pop("depth") == "undecided" and set(every.values()) == {"not run"}  # of one layer there are no thirds


def test_the_words_of_the_table_are_interventions_and_arms_that_exist():
    from gatelab import Arm
    from gatelab.config import ModelConfig, Run, override
    from gatelab.probes.interventions import parse

    for c in cards(ledger(), HYPOTHESES, "c0", "gated"):
        for word in (w for d in c.decisions for w in d.arms if w.startswith("Arm(")):
            assert override(Run(model=ModelConfig()), eval(word, {"Arm": Arm}).changes) != Run()
    for word in edits_of({"n_layers": 4}, gated=True) + edits_of({"n_layers": 4}, gated=False):
        assert parse(word).at_dose(1).word == word


def test_without_a_sink_doing_nothing_to_it_says_nothing():
    for mass, verdict in ((0.05, "undecided"), (0.5, "supported")):
        study = evidence({"first_token_mass": {"c0": ([mass] * 3, [0.01] * 3)}})
        found = ledger(study=study, edits=of("n", "zero-value@first", (0.001, 0.002, 0.0015)))
        assert card("no-op", found).decisions[0].verdict == verdict


def test_an_arm_that_lowers_the_mass_is_told_with_its_sign():
    study = evidence({"first_token_mass": {"c0": ([0.5, 0.52, 0.51], [0.01] * 3)}})
    slot = ({"gate": "none", "softmax": {"kind": "sink-logit"}}, "first_token_mass", (0.1, 0.11, 0.12))
    decision = card("no-op", ledger(study=study, arms={"slot": slot})).decisions[1]
    assert decision.verdict == "supported" and decision.estimate == pytest.approx(-0.4)
    assert decision.numbers.startswith("-0.4 share (95% interval -0.4")


def test_a_comparison_that_is_refused_decides_nothing():
    found = ledger(edits=of("n", "zero-value@first", (0.001, 0.002, 0.0015)))
    found.evidence.refused = {("c0", "gated"): "refused: made by 2 versions of the code"}
    every = [d for c in cards(found, HYPOTHESES, "c0", "gated") for d in c.decisions]
    assert {d.verdict for d in every} == {"not run"} and every[0].to_do == ["refused: made by 2 versions of the code"]


def test_seeds_of_two_versions_are_not_compared_with_another_arm():
    """The static gate is 0.1 nats above the gate, and 5 in the seed whose run another version made."""
    found = ledger(arms={"fixed": ({"gate": "sdpa-elementwise-static"}, "val_loss", (3.0, 3.12, 8.1))})
    why = "seed 2 is of two versions of the code"
    made = [replace(o, unpaired=why) if (o.arm, o.seed) == ("fixed", 2) else o for o in found.evidence.outcomes]
    evidence = replace(found.evidence, outcomes=made)
    assert evidence.comparable_runs("val_loss", "c0", "fixed") == {0: 3.0, 1: 3.12}
    decision = card("sparsity", replace(found, evidence=evidence)).decisions[2]
    assert decision.n == 2 and decision.estimate == pytest.approx(0.105)


def test_a_range_around_one_layer_names_each_number_once():
    one = {"c0": {**BASES["c0"], "model": {"n_layers": 1, "norm_position": "pre"}}}
    todo = card("depth", replace(ledger(), bases=one)).decisions[0].to_do[0]
    assert "'model.n_layers=[1,2]' " in todo


def test_one_run_cannot_decide():
    decision = card("no-op", ledger(edits=of("n", "zero-value@first", (0.001,)))).decisions[0]
    assert (decision.verdict, decision.n) == ("not run", 1)
    assert decision.to_do == ["gatelab find runs/x --explain c0 --edit"]


def test_many_missing_edits_are_one_command():
    runs = {("c0", "none"): {s: f"m{s}" for s in range(9)}, ("c0", "gated"): {s: f"g{s}" for s in range(9)}}
    decision = card("no-op", replace(ledger(), runs=runs, edits={})).decisions[0]
    command = "gatelab find runs/x --explain c0 --edit    #"
    assert decision.to_do == [f"{command} 9 runs lack it; --seeds 0,1,2,3,4 makes some"]
    # Of seeds that were edited, or are not there, none would be made.
    runs = {key: {s + 10: name for s, name in of_arm.items()} for key, of_arm in runs.items()}
    edits = {("m2", f"{of}zero-value@first", 1.0): 0.0 for of in ("", "control of ")}
    decision = card("no-op", replace(ledger(), runs=runs, edits=edits)).decisions[0]
    assert decision.to_do == [f"{command} 8 runs lack it; --seeds 10,11,13,14,15 makes some"]


def test_a_bigram_cell_is_asked_for_another_process():
    base = {"data": {"kind": "bigram-backcopy"}}
    decision = card("data-domain", replace(ledger(), factors={}, bases={"c0": base, "c1": base})).decisions[0]
    assert "data.process_seed=[0,1]" in decision.to_do[0]


def test_a_task_cell_is_asked_beside_a_second_task_that_its_knobs_fit():
    def asked(**data):
        base = {"data": {"kind": "tasks", **data}, "train": {"seq_len": 64}}
        return card("data-domain", replace(ledger(), factors={}, bases={"c0": base, "c1": base})).decisions[0].to_do[0]

    assert "'data.names=[cite,needle]'" in asked(names=["cite"]) and "#" not in asked(names=["cite"])
    assert "--explain 'c0, data.names=cite'" in asked(names=["cite"])
    assert "'data.names=[[needle,bracket],multikey]'" in asked(names=["needle", "bracket"])
    assert "'data.names=[needle,multivalue]'" in asked(names=["needle"], hardness=8)  # multikey takes 4 at most
    assert asked(names=["needle"], knobs={"needle": {"hardness": 2}}).endswith("# fill in ANOTHER")


def test_other_texts_are_said_to_be_filled_in():
    base = {"data": {"kind": "text", "paths": ["train.bin"]}}
    decision = card("data-domain", replace(ledger(), factors={}, bases={"c0": base, "c1": base})).decisions[0]
    assert "data.paths=OTHER_TEXTS" in decision.to_do[0] and decision.to_do[0].endswith("    # fill in OTHER_TEXTS")
