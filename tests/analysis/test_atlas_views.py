"""What the atlas draws: axes turned, settings as ladders of rates, the runs that have curves, rows at more than one length."""

from dataclasses import replace

import pytest

from gatelab.analysis.atlas_views import along, by_length, courses, ladders, stated
from gatelab.analysis.best_rate import Setting
from gatelab.analysis.phases import Axis, Phases, Point
from gatelab.record import Finding, Row
from gatelab.store import Appender, StudyFolder

DEPTH, RATE = Axis(("model.n_layers",), (1, 2, 3)), Axis(("optim.lr", "optim.warmup"), (0.1, 0.2))


def point(*at):
    return Point(f"{at[0]} {at[1]}", at, "gated", 1, 2, 0.1, 0.9, None, None, {})


def finding(cell: str, metric: str = "val_loss") -> Finding:
    numbers = {
        "baseline_mean": 1.0,
        "arm_mean": 1.1,
        "effect": 0.1,
        "low": 0.0,
        "high": 0.2,
        "confidence": 0.95,
        "p": 0.5,
    }
    return Finding(
        cell=cell, arm="gated", baseline="none", metric=metric, unit="nats", primary=False, direction="lower-is-better", n_pairs=3,
        q=None, equivalence=None, p_equivalence=None, detectable=0.2, verdict="unclear", sentence="", **numbers,
    )  # fmt: skip


def test_an_axis_is_turned_to_run_across_and_points_go_with_it():
    found = Phases(DEPTH, (RATE,), [point(1, 0.1), point(3, 0.2)])
    turned = along(found, "optim.lr")
    assert (turned.across, turned.down) == (RATE, (DEPTH,))
    assert [p.at for p in turned.points] == [(0.1, 1), (0.2, 3)]
    assert along(turned, "model.n_layers") == found


@pytest.mark.parametrize("found", [None, Phases(DEPTH, (Axis(("data.bos",), ("True", "False")),), [])])
def test_without_that_axis_there_is_none(found):
    assert along(found, "optim.lr") is None


def test_settings_of_three_rates_are_ladders_and_those_of_two_are_not():
    settings = [
        Setting("a", {0.1: "a1", 0.2: "a2", 0.4: "a4"}),
        Setting("b", {0.1: "b1", 0.2: "b2", 0.4: "b4"}),
        Setting("c", {0.1: "c1", 0.2: "c2"}),
        Setting("d", {0.1: "d1", 0.2: "d2", 0.8: "d8"}),
    ]
    found = [finding(c) for c in ("a1", "a2", "a4", "b1", "c1", "d8")] + [finding("a1", metric="first_token_mass")]
    ab, d = ladders(settings, found)
    assert ab.across.levels == (0.1, 0.2, 0.4) and ab.down[0].levels == ("a", "b")
    assert [(p.cell, p.at) for p in ab.points] == [
        ("a1", (0.1, "a")), ("a2", (0.2, "a")), ("a4", (0.4, "a")), ("b1", (0.1, "b")),
    ]  # fmt: skip
    assert d.across.levels == (0.1, 0.2, 0.8) and [p.at for p in d.points] == [(0.8, "d")]
    (none,) = ladders([replace(settings[0], arms=frozenset({"none", "static"}))], found)
    assert none.points == []  # of arms that do not stand in the setting


def folder_of(path, rows_of: dict[tuple[str, str, int], list[tuple]]) -> StudyFolder:
    """A study whose runs have these rows: (step, source, metric, value, coordinates)."""
    plan = [
        {"cell": c, "arm": a, "seed": s, "fingerprint": f"{i:012x}", "n_parameters": 1, "remainder": 0, "steps": 4}
        for i, (c, a, s) in enumerate(rows_of)
    ]
    folder = StudyFolder.create(path, {"name": "made", "plan": plan})
    for (_, run), rows in zip(folder.planned(), rows_of.values(), strict=True):
        run.create({})
        out = Appender(run.rows_path)
        out.write([Row(run.fingerprint, step, source, metric, v, "1", **at) for step, source, metric, v, at in rows])
        out.close()
        run.mark_done("done", {"steps": 4})
    return folder


def test_curves_are_of_cells_with_three_looks_and_of_the_runs_that_count(tmp_path):
    def looks(n: int):
        return [(step, "sinks", "first_token_mass", step / 10, {}) for step in range(n)]

    runs = {
        ("long", "none", 0): looks(4),
        ("long", "none", 1): looks(2),
        ("long", "none", 9): looks(4),
        ("short", "none", 0): looks(2),
    }
    folder = folder_of(tmp_path / "made", runs)
    found, most = courses(folder, {key for key in runs if key[2] != 9})
    assert most == 4 and set(found) == {
        ("long", "none", 0, "first_token_mass"),
        ("long", "none", 1, "first_token_mass"),
    }
    assert found["long", "none", 0, "first_token_mass"] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]


def test_rows_by_length_are_those_of_the_end_and_of_before_training(tmp_path):
    def asked(step: int, value: float, **at):
        return (step, "tasks", "exact_match", value, {"task": "cite", "length": 8, **at})

    rows = [asked(0, 0.0), asked(2, 0.5), asked(4, 1.0), asked(4, 0.25, length=16), asked(4, 0.75, bin=3)]
    folder = folder_of(tmp_path / "made", {("c", "none", 0): rows, ("c", "none", 1): rows})
    found = by_length(folder, {("c", "none", 0)})
    assert sorted((r.seed, r.step, r.times, r.value) for r in found) == [
        (0, 0, 1, 0.0),
        (0, 4, 1, 1.0),
        (0, 4, 2, 0.25),
    ]


def test_a_study_is_told_without_its_plan_and_with_the_seeds_that_count():
    assert stated({"name": "x", "plan": [1], "seeds": [0, 1, 5]}, [0, 1]) == {"name": "x", "seeds": [0, 1]}
