"""The study of depth: its arms differ in where the gate is and how it starts, and have as many weights as no gate."""

from gatelab.analysis.dependence_tests import started
from gatelab.analysis.hypotheses import edits_of
from gatelab.config import canonical
from gatelab.models.sizes import count_parameters
from gatelab.studies.backcopy_depth import study
from gatelab.study.plan import make_plan


def test_its_arms_are_what_the_cards_compare() -> None:
    runs = {p.arm: p.run for p in make_plan(study).runs if p.seed == 0}
    models = {arm: canonical(run.model) for arm, run in runs.items()}
    layers = {arm: model["gate_layers"] for arm, model in models.items()}
    assert layers == {a: a if a.endswith("third") else "all" for a in runs}
    half, opened = started(models["headwise"]), started(models["headwise-open"])
    assert half.gate == opened.gate and (half.value, opened.value) == (0.5, 0.95)
    assert {"gate-mean:l0", "gate-mean:l2"} < set(edits_of(models["headwise"], gated=True))
    assert not {"gate-mean:l0", "gate-mean:l2"} & set(edits_of(models["first-third"], gated=True))


def test_they_are_matched_and_looked_at_often_enough() -> None:
    runs = {p.arm: p.run for p in make_plan(study).runs if p.seed == 0}
    weights = {arm: count_parameters(run.model) for arm, run in runs.items()}
    # To the nearest channel of the three feed-forward layers, each of 2 × 64 weights.
    assert all(abs(n - weights["none"]) <= 3 * 128 / 2 for n in weights.values())
    assert all(len(run.probe_steps()) == 21 for run in runs.values())
