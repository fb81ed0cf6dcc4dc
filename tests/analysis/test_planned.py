"""What was planned and not run: of the built-in studies, those without rows, in part or whole, and the command."""

from pathlib import Path

import pytest

from gatelab.analysis.planned import KEPT, still_open
from gatelab.study.study import built_in, load_study


def keys(name):
    study = load_study(name)
    runs = ((c, a.name, s) for c in study.cells for a in study.arms_of(c) for s in study.seed_values)
    return {run: study.cells[run[0]].train.steps for run in runs}


def waiting(results, stored=None):
    return {o.study: o for o in still_open(results, stored or {})}


def test_of_an_empty_folder_every_study_waits_with_all_of_its_runs(tmp_path):
    found = waiting(tmp_path)
    assert [*found] == [*built_in()]
    toy = found["quickstart"]
    assert (toy.n_open, toy.n_runs, toy.command) == (24, 24, "gatelab run quickstart")
    assert toy.question == load_study("quickstart").question


def test_of_a_stored_folder_the_runs_wait_that_it_has_not_planned(tmp_path):
    there = {key: n for key, n in keys("tasks-by-architecture").items() if key[0].startswith("1m")}
    found = waiting(tmp_path, {"quickstart": keys("quickstart"), "tasks-by-architecture": there})
    assert "quickstart" not in found
    half = found["tasks-by-architecture"]
    assert (half.n_open, half.n_runs) == (600, 1200)
    assert half.command == "gatelab run tasks-by-architecture 'cell=5m *'"


def test_cells_that_no_pattern_has_alone_are_not_named(tmp_path):
    missing = {"1m dense needle", "5m dense needle"}
    there = {key: n for key, n in keys("tasks-by-architecture").items() if key[0] not in missing}
    found = waiting(tmp_path, {"tasks-by-architecture": there})["tasks-by-architecture"]
    assert (found.n_open, found.command) == (50, "gatelab run tasks-by-architecture")


def test_a_stored_run_of_fewer_steps_is_not_the_run(tmp_path):
    found = waiting(tmp_path, {"quickstart": dict.fromkeys(keys("quickstart"), 10)})["quickstart"]
    assert found.n_open == 24 and found.note.startswith("made shorter: 24, 10 of ")


def write(path: Path, columns, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in (columns, *rows)), encoding="utf-8")


def test_rows_without_a_folder_are_read_and_runs_cut_short_or_stopped_still_wait(tmp_path):
    columns = ("cell", "arm", "seed", "status", "steps")
    whole, cut, stopped = sorted(key for key in keys("text-rates") if key[0] == "prose lr0.001")[:3]
    rows = [(*whole, "done", 4000), (*cut, "done", 600), (*stopped, "stopped", 600)]
    write(tmp_path / "text-rates" / "runs.csv", columns, rows)
    found = waiting(tmp_path)["text-rates"]
    assert (found.n_open, found.n_runs, found.note) == (80, 81, "made shorter: 1, 600 of 4,000 steps")
    write(tmp_path / "sinkless-seeds" / "seeds.csv", ("arm", "seed"), [key[1:] for key in keys("sinkless-seeds")])
    assert "sinkless-seeds" not in waiting(tmp_path)


@pytest.mark.parametrize("name", sorted(KEPT))
def test_rows_that_lie_elsewhere_are_found_there(tmp_path, name):
    write(tmp_path / KEPT[name], ("cell", "arm", "seed"), keys(name))
    assert name in built_in() and name not in waiting(tmp_path)


def test_a_folder_without_a_list_of_runs_says_that_the_study_was_run(tmp_path):
    (tmp_path / "gated-pair").mkdir()
    assert "gated-pair" not in waiting(tmp_path)


def test_cells_that_train_nothing_wait_too_until_they_are_there(tmp_path):
    every = keys("text-longer-context")
    assert waiting(tmp_path)["text-longer-context"].n_open == len(every) == 27
    assert "text-longer-context" not in waiting(tmp_path, {"text-longer-context": every})
