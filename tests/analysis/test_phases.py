"""Phases: axes are what cells differ in alone, and every run is counted or named."""

import pytest

from gatelab.analysis import Outcome, effects
from gatelab.analysis.phases import SINK, axes, phases
from gatelab.record import Metric
from gatelab.studies import gates_on_tasks, paper_long_context, quickstart


def cell(lr, layers, bos=True, **more):
    return {"optim": {"lr": lr}, "model": {"n_layers": layers}, "data": {"bos": bos}, **more}


GRID = {f"{lr} {n} {bos}": cell(lr, n, bos) for lr in (8e-3, 5e-4, 2e-3) for n in (2, 1) for bos in (True, False)}


def test_axes_are_the_keys_in_which_some_cells_differ_alone():
    found = {axis.keys: axis.levels for axis in axes(GRID)}
    assert found == {("optim.lr",): (5e-4, 2e-3, 8e-3), ("model.n_layers",): (1, 2), ("data.bos",): ("True", "False")}


def test_keys_that_split_the_cells_alike_are_one_axis():
    bases = {name: base | {"warmup": base["optim"]["lr"] / 10} for name, base in GRID.items()}
    assert ("optim.lr", "warmup") in [axis.keys for axis in axes(bases)]


def test_a_grid_may_have_holes():
    cells = {"a": cell(1, 1), "b": cell(2, 1), "c": cell(1, 2)}
    assert [axis.keys for axis in axes(cells)] == [("optim.lr",), ("model.n_layers",)]


@pytest.mark.parametrize(
    "bases",
    [
        {},
        {"one": cell(1, 1)},
        {"a": cell(1, 1), "b": cell(2, 1)},
        {"a": cell(1, 1), "b": cell(2, 2)},  # one axis of two keys
        {"a": cell(1, 1), "b": cell(1, 1)},
    ],
)
def test_cells_that_are_no_points_of_two_axes_have_none(bases):
    assert axes(bases) == []


def test_a_lone_point_that_differs_in_more_is_told_by_its_place():
    cells = {"a": cell(1, 1), "b": cell(2, 1), "c": cell(1, 2), "d": cell(3, 3, seed=1)}
    assert [axis.keys for axis in axes(cells)] == [("optim.lr",), ("model.n_layers",)]


@pytest.mark.parametrize(
    ("study", "names"),
    [
        (quickstart.study, []),
        (paper_long_context.study, []),
        (gates_on_tasks.study, ["data.distractors", "data.names", "model.d_model", "optim.lr"]),
    ],
)
def test_the_axes_of_built_in_studies(study, names):
    bases = {name: run.model_dump(mode="json") for name, run in study.cells.items()}
    assert sorted(axis.keys[0] for axis in axes(bases)) == names


def made(states):
    study = {"cells": [{"name": n, "base": b} for n, b in GRID.items()], "arms": [{"name": "none"}, {"name": "gated"}]}
    shares = [
        {"cell": c, "arm": a, "metric": SINK, "k": 1, "n": 2, "low": 0.1, "high": 0.9}
        for c in GRID
        for a in ("none", "gated")
    ]
    return study, shares, {(c, a, s): "done" for c in GRID for a in ("none", "gated") for s in range(4)} | states


def test_every_arm_has_a_point_a_cell_and_runs_that_are_not_done_are_named():
    cell_ = "0.008 1 True"
    lost = {(cell_, "gated", 3): "diverged", (cell_, "gated", 1): "diverged", (cell_, "gated", 0): "failed"}
    study, shares, states = made(lost)
    found = phases(study, [], shares, states)
    assert found.across.keys == ("optim.lr",) and [a.keys[0] for a in found.down] == ["model.n_layers", "data.bos"]
    assert len(found.of("none")) == len(found.of("gated")) == 12
    (point,) = (p for p in found.of("gated") if p.lost)
    assert (point.at, point.k, point.n) == ((8e-3, 1, "True"), 1, 2)
    assert point.said == "seed 0 failed; seeds 1, 3 diverged"


def test_what_changes_in_the_share_is_told_by_the_seeds_that_change_sides_and_not_by_the_mean():
    """Of six seeds none has a sink and the mean mass is higher; six lose theirs; all keep theirs alike."""
    study, shares, states = made({})
    none, some, kept = [0.05] * 6, [0.1 + 0.001 * i for i in range(6)], [0.5, 0.6] * 3
    never, lost, always = "0.008 1 True", "0.002 1 True", "0.0005 1 True"
    masses = {never: (none, some), lost: (kept, some), always: (kept, kept)}
    found = [
        Outcome(cell, arm, seed, SINK, value)
        for cell, both in masses.items()
        for arm, values in zip(("none", "gated"), both, strict=True)
        for seed, value in enumerate(values)
    ]
    metric = Metric(SINK, "share", "neutral", "first-token mass", bimodal=True, threshold=0.3)
    findings = effects(found, [metric], baseline="none", arms=["none", "gated"], cells=list(masses))
    assert [f.verdict for f in findings] == ["higher", "lower", "untestable"]
    changes = {p.cell: p.change for p in phases(study, findings, shares, states).of("gated")}
    assert changes[never] is None and changes[always] is None
    assert changes[lost].verdict == "lower" and changes[lost].p == pytest.approx(2 * 0.5**6)


def test_a_cell_without_a_finished_run_stays_and_an_arm_that_was_not_planned_has_no_point():
    study, shares, states = made({("0.008 1 True", "gated", s): "planned" for s in range(4)})
    shares = [s for s in shares if (s["cell"], s["arm"]) != ("0.008 1 True", "gated")]
    states = {k: v for k, v in states.items() if k[:2] != ("0.0005 2 True", "gated")}
    found = phases(study, [], shares, states)
    assert len(found.of("gated")) == 11
    assert [(p.n, p.lost) for p in found.of("gated") if p.lost] == [(0, {"planned": [0, 1, 2, 3]})]


def test_a_study_that_is_no_grid_or_has_no_finished_run_has_none():
    study, shares, states = made({})
    assert phases(study | {"cells": study["cells"][:1]}, [], shares, states) is None
    assert phases(study, [], [], states) is None
