"""The built-in study on tasks in miniature, from the plan to the page: alone, as a stack, and taken up again where it stopped."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gatelab import lab
from gatelab.config import ConfigError, Execution, Tasks, parse_assignments
from gatelab.store import RunFolder, StudyFolder
from gatelab.studies.gates_on_tasks import recipe, study
from gatelab.study.carry_out import carry_out
from gatelab.study.grouping import shape_of
from gatelab.study.plan import make_plan
from gatelab.study.study import Study, load_study

SMALL: dict[str, list[Any]] = {
    "model.d_model": [16], "model.n_layers": [1], "model.n_heads": [2], "train.tokens": [64 * 8], "train.batch_size": [2],
    "train.seq_len": [64], "data.distractors": [3], "ask.items": [11], "ask.every": [2], "ask.times": [(1, 2)],
    "probe.times": [1], "probe.sequences": [2], "probe.eval_sequences": [2], "seed": [0, 1],
}  # fmt: skip
AS_IT_IS = Execution(device="cpu", group=1)


def miniature() -> Study:
    """One task, one rate, two arms, two seeds, four steps."""
    made = recipe(("cite",), {"1m": (1e-3,)}, ()).changed(SMALL)
    return replace(made, arms=made.arms[:2])


def never() -> bool:
    return False


def lines(run: RunFolder, source: str = "tasks") -> list[dict]:
    return [r for line in run.rows_path.read_text().splitlines() if (r := json.loads(line))["source"] == source]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    found = lab.save_plan(make_plan(miniature()), tmp_path_factory.mktemp("gates") / "alone")
    for _, run in found.planned():
        carry_out([run], AS_IT_IS, should_stop=never)
    return found


def test_the_study_is_there_by_its_name_with_its_cells_arms_and_budget() -> None:
    found = load_study("gates-on-tasks")
    tasks = ("bracket", "mqar", "cite", "track", "select")
    assert list(found.cells) == [
        *(f"{t} {lr}" for t in tasks for lr in ("0.0003", "0.001", "0.003")),
        *(f"10m {t} {lr}" for t in tasks for lr in ("0.0003", "0.001")),
        *(f"easy {t} {lr}" for t in ("mqar", "cite", "track") for lr in ("0.001", "0.003")),
    ]
    assert found.about["mqar 0.001"] == "The task mqar at learning rate 0.001, 1.3 million weights."
    assert found.about["easy mqar 0.001"] == "The task mqar of four pairs at learning rate 0.001, 1.3 million weights."
    assert found.cells["easy track 0.001"].data == Tasks(names=("track",), hardness=1, distractors=1)
    assert found.about["10m mqar 0.001"] == "The task mqar at learning rate 0.001, 10.4 million weights."
    assert [a.name for a in found.arms] == [
        "none",
        "sdpa-headwise",
        "sdpa-elementwise",
        "value-elementwise",
        "sink-logit",
    ]
    assert len(found.seed_values) == 5 and {r.train.seq_len for r in found.cells.values()} == {128}
    for cell, low, high in (("mqar 0.001", 1.2e6, 1.5e6), ("10m mqar 0.001", 10.4e6, 10.5e6)):
        (planned,) = make_plan(replace(study.changed({"cell": [cell]}), arms=study.arms[:1], seeds=1)).runs
        assert low < planned.n_parameters < high


@pytest.mark.parametrize(
    ("pattern", "n_cells", "n_runs"),
    [("[!1e]*", 15, 375), ("10m*", 10, 250), ("10m*0.0003", 5, 125), ("easy*", 6, 150), ("10m*0.001", 5, 125)],
)
def test_all_runs_of_a_size_and_an_arm_are_of_one_shape(pattern: str, n_cells: int, n_runs: int) -> None:
    some = study.changed({"cell": [pattern], "train.batch_size": [32]})
    runs = make_plan(some).runs
    assert (len(some.cells), len(runs)) == (n_cells, n_runs)
    shapes = {
        arm.name: {shape_of(p.run.model_dump(mode="json")) for p in runs if p.arm == arm.name} for arm in some.arms
    }
    assert [len(of) for of in shapes.values()] == [1] * 5 and len(set.union(*shapes.values())) == 5


def test_runs_that_were_made_before_there_were_two_sizes_are_runs_of_it() -> None:
    changes = "cell=[[!1e]*0.001,[!1e]*0.003] train.batch_size=32 train.tokens=12_288_000 ask.items=66 ask.every=500 probe.times=1"
    stored = Path(__file__).parents[2] / "docs" / "results" / "gates-on-tasks" / "runs.csv"
    with stored.open() as file:
        known = {row["fingerprint"]: (row["cell"], row["arm"], int(row["seed"])) for row in csv.DictReader(file)}
    made = {
        p.fingerprint: (p.cell, p.arm, p.seed)
        for p in make_plan(study.changed(parse_assignments(changes.split()))).runs
    }
    assert len(made) == 250 and made.items() <= known.items()


def test_cells_are_chosen_by_their_names() -> None:
    assert list(study.changed({"cell": ["bracket*"]}).cells) == ["bracket 0.0003", "bracket 0.001", "bracket 0.003"]
    some = study.changed({"cell": ["[!1e]*0.001", "cite 0.003"], "train.tokens": [81920], "seed": [0]})
    assert list(some.cells) == [
        "bracket 0.001",
        "mqar 0.001",
        "cite 0.001",
        "cite 0.003",
        "track 0.001",
        "select 0.001",
    ]
    assert {r.train.tokens for r in some.cells.values()} == {81920} and set(some.about) == set(some.cells)
    with pytest.raises(
        ConfigError, match=r"cell=bracket 0.01: no such cell; expected some of .*did you mean 'bracket 0.001'"
    ):
        study.changed({"cell": ["bracket 0.01"]})


def test_a_cell_is_not_chosen_without_what_it_goes_on_from() -> None:
    one = recipe(("cite",), {"1m": (1e-3, 3e-3)}, ())
    both = replace(one, follows={"cite 0.003": "cite 0.001"}, match=None)
    with pytest.raises(ConfigError, match=r"cell=cite 0\.003: goes on from the cell 'cite 0\.001'; choose that too"):
        both.changed({"cell": ["cite 0.003"]})
    assert both.changed({"cell": ["*0.001"]}).follows == {} and len(both.changed({"cell": ["cite*"]}).follows) == 1


def test_a_run_is_asked_before_every_so_often_and_at_its_end(folder: StudyFolder) -> None:
    for _, run in folder.planned():
        found = [
            (r["step"], r["length"], r.get("intervention"))
            for r in lines(run)
            if r["metric"] == "exact_match" and "bin" not in r
        ]
        whole = [(64, None), (128, None), (128, "yarn")]
        assert found == [*((0, *at) for at in whole), (2, 64, None), *((4, *at) for at in whole)]
        items = list(run.items())
        assert len(items) == 33 and {i["step"] for i in items} == {4} and {i["run"] for i in items} == {run.fingerprint}


def test_the_page_tells_of_it(folder: StudyFolder) -> None:
    analysis = lab.analyse(folder)
    told = {o.metric for o in analysis.outcomes}
    assert {"task_accuracy@1x", "task_margin@1x", "task_u_index@1x"} <= told and "task_accuracy@8x" not in told
    assert {s.metric for s in analysis.shares} >= {"task_accuracy@1x"}
    page = lab.report(folder, analysis).read_text()
    assert all(f'<section id="{name}">' in page for name in ("lengths", "learning", "depths", "citations", "items"))


def test_members_of_a_stack_are_asked_on_their_own(folder: StudyFolder, tmp_path: Path) -> None:
    both = lab.save_plan(make_plan(miniature()), tmp_path / "stacked")
    runs = [run for entry, run in both.planned() if entry["arm"] == "sdpa-headwise"]
    carry_out(runs, Execution(device="cpu", group=2), should_stop=never)
    for run in runs:
        assert json.loads((run.path / "environment.json").read_text())["stacked"] is True
        alone = folder.run(run.fingerprint)
        found, expected = lines(run), lines(alone)
        assert [{**r, "value": 0} for r in found] == [{**r, "value": 0} for r in expected]
        assert [r["value"] for r in found] == pytest.approx([r["value"] for r in expected], abs=1e-4)
        margins = [[i["score"] for i in r.items()] for r in (run, alone)]
        assert margins[0] == pytest.approx(margins[1], abs=1e-4)
    first, second = ([i["score"] for i in run.items()] for run in runs)
    assert first != second, "two seeds are two models"


def test_a_run_that_stopped_is_asked_as_if_it_had_not(folder: StudyFolder, tmp_path: Path) -> None:
    again = lab.save_plan(make_plan(miniature()), tmp_path / "again")
    run = next(run for _, run in again.planned())
    for step in range(6):
        calls = iter([False] * (step % 2) + [True] * 99)
        carry_out([run], AS_IT_IS, should_stop=lambda calls=calls: next(calls))
        if run.done():
            break
    expected = folder.run(run.fingerprint)
    assert run.rows_path.read_bytes() == expected.rows_path.read_bytes()
    assert run.items_path.read_bytes() == expected.items_path.read_bytes()


def test_what_positions_do_not_reach_is_said_once_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = recipe(("cite",), {"1m": (1e-3,)}, ()).changed(
        SMALL | {"model.positions": ["learned"], "ask.stretch": ["none"], "seed": [0]}
    )
    found = lab.save_plan(make_plan(replace(learned, arms=learned.arms[:1])), tmp_path / "learned")
    ((_, run),) = found.planned()
    carry_out([run], AS_IT_IS, should_stop=never)
    assert {r["length"] for r in lines(run)} == {64}
    said = capsys.readouterr().out
    assert said.count("tasks: not asked at 128 tokens: learned positions for 64 tokens (model.max_seq_len)") == 1


def test_a_run_that_asks_nothing_keeps_no_items(tmp_path: Path) -> None:
    silent = miniature().changed({"ask.items": [0], "seed": [0]})
    found = lab.save_plan(make_plan(replace(silent, arms=silent.arms[:1])), tmp_path / "silent")
    ((_, run),) = found.planned()
    carry_out([run], AS_IT_IS, should_stop=never)
    assert not lines(run) and not run.items_path.exists() and list(run.items()) == []
    assert not {o.metric for o in lab.analyse(found).outcomes if o.metric.startswith("task")}
