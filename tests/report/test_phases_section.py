"""The page's section of phases: a grid an arm, exact intervals, costs, and the runs that diverged by name."""

import csv
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from reading import Page
from tiny import toy

from gatelab import lab
from gatelab.config import override
from gatelab.record import Row
from gatelab.report import write_report
from gatelab.store import Appender
from gatelab.study.study import Arm, Study

TOY = toy()
CELLS = {
    f"{lr:g} {n} {v}": override(TOY, {"optim.lr": lr, "model.n_layers": n, "data.n_triggers": v})
    for lr in (1e-3, 2e-3, 4e-3)
    for n in (1, 2)
    for v in (2, 3)
}
LOST = ("0.004 1 2", "gated", 1)
NEVER = "0.002 2 3"  # no run has a sink, and the mean mass is higher with the gate


@pytest.fixture(scope="module")
def paged(tmp_path_factory):
    arms = (Arm("none", {}, "no gate"), Arm("gated", {"model.gate": "sdpa-headwise"}, "a <gate>"))
    study = Study(name="grid", question="Where?", cells=CELLS, arms=arms, seeds=4)
    folder = lab.save_plan(lab.plan(study), tmp_path_factory.mktemp("phases") / "grid")
    for entry, run in folder.planned():
        where, is_gated = (entry["cell"], entry["arm"], entry["seed"]), entry["arm"] == "gated"
        mass = 0.1 if is_gated and entry["cell"].startswith("0.001") else 0.6
        if entry["cell"] == NEVER:
            mass = 0.1 + 0.001 * entry["seed"] if is_gated else 0.05
        cost = is_gated * (0.05 if entry["cell"].startswith("0.004") else -0.01) + 0.001 * entry["seed"] * is_gated
        rows = Appender(run.rows_path)
        rows.write(
            [
                Row(run.fingerprint, 1, "eval", "val_loss", 2.0 + cost, "nats"),
                Row(run.fingerprint, 1, "sinks", "first_token_mass", mass, "share"),
            ]
        )
        rows.close()
        run.mark_done("diverged" if where == LOST else "done", {"steps": 1})
    analysis = lab.analyse(folder)
    path = write_report(folder, analysis.findings, shares=[asdict(s) for s in analysis.shares], pairing=[])
    return SimpleNamespace(path=path, page=Page(path), findings=analysis.findings)


def test_the_section_counts_sinks_and_costs_by_cell(paged):
    text = paged.page.text
    assert "points of lr, n_layers, n_triggers" in text and "above 0.3" in text
    assert "4 of 4 (40% to 100%)" in text and "0 of 4 (0% to 60%)" in text
    assert "0.0515 (0.0502 to 0.0528)" in text  # t of 36 degrees of freedom: twelve cells share one variance


def test_the_sign_beside_a_share_is_of_the_seeds_that_change_sides(paged):
    mean = next(f for f in paged.findings if (f.cell, f.metric) == (NEVER, "first_token_mass"))
    assert mean.verdict == "higher"
    rows = {row[0]: row[1:] for row in paged.page.rows if len(row) == 3 and " of 4 (" in row[1]}
    assert rows["lr 0.002, n_layers 2, n_triggers 3"] == ["0 of 4 (0% to 60%)", "0 of 4 (0% to 60%)"]
    assert rows["lr 0.001, n_layers 2, n_triggers 3"] == ["4 of 4 (40% to 100%)", "0 of 4 (0% to 60%) ?unclear"]
    assert "the sign beside a share is McNemar's exact test of the seeds" in paged.page.text
    with (paged.path.parent / "phases.csv").open(newline="") as file:
        told = {(r["cell"], r["arm"]): r["sink_verdict"] for r in csv.DictReader(file)}
    assert (told[NEVER, "gated"], told["0.001 2 3", "gated"]) == ("", "unclear")


def test_a_run_that_diverged_is_named_and_in_no_number(paged):
    text = paged.page.text
    assert "1 runs are not done" in text and "seed 1 diverged" in text and "3 of 3 (29% to 100%)" in text
    said = [c["spec"]["description"] for c in paged.page.charts]
    assert sum("0.004 1 2 3 of 3, seed 1 diverged" in words for words in said) == 1
    (row,) = [line for line in (paged.path.parent / "phases.csv").read_text().splitlines() if "diverged" in line]
    assert row.startswith("0.004 1 2,gated,0.004,1,2,3,3,0.29") and row.endswith("seed 1 diverged")


def test_there_is_a_grid_of_the_sink_for_each_arm_and_of_the_cost_for_each_but_the_control(paged):
    charts = [c["spec"].get("data", {}).get("values", [{}]) for c in paged.page.charts]
    grids = [values for values in charts if "below" in values[0]]
    assert len(grids) == 3
    assert all(len(values) == 12 for values in grids)


def test_it_draws_and_is_not_wider_than_a_phone(paged, browser):
    for width in (390, 1280):
        data = browser.open(paged.path, width=width)
        assert (json.loads(data["problems"]), data["overflow"], browser.console) == ([], "0", [])


def test_a_study_of_cells_that_are_no_grid_has_none(reported):
    assert "phases" not in [a.get("id") for _, a in reported.page.elements]
    assert not (reported.folder.path / "phases.csv").exists()


def test_each_arms_best_level_is_told_with_what_is_at_an_end_of_the_range(paged):
    text = paged.page.text
    assert "Each arm's best lr" in text and "0.001: 1.9915 (an end of the range)" in text
    said = [c["spec"]["description"] for c in paged.page.charts]
    assert sum("Held-out loss by lr" in words and "a <gate> lowest at 0.001" in words for words in said) == 4
