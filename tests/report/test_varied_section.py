"""The section on how effects vary: a row an arm and factor, reasons in the place of numbers, and a file with all of it."""

import csv
import io
from dataclasses import replace

import pytest
from reading import Page
from synthetic import COMPLETE, analysed, make_study

from gatelab import lab
from gatelab.analysis.anomalies.gather import gather
from gatelab.analysis.dispersion import Spread
from gatelab.analysis.varied import At, Spreading, Varied, Varying
from gatelab.report import write_report
from gatelab.report.markup import tag
from gatelab.report.varied import factor, headline, tables, varied_csv

EVIL = "<b>deep</b>"
BY = Varying("headwise", "val_loss", "nats", "model.n_layers", 17.58, 1, 8, 0.003, 0.017, "cells", 0.0082,
             At("1", -0.01, -0.02, 0.0), At(EVIL, 0.05, 0.01, 0.09), flips=True)  # fmt: skip
UNTOLD = Varying("elementwise", "val_loss", "nats", "optim.lr = train.tokens", reason="2 of 4 cells have two pairs")
MASS = replace(BY, reading="first_token_mass", unit="share", q=0.5)
ALL = Spread("(all cells)", "headwise", "val_loss", "seeds", 12, 2.0, 1.5, 3.0, 0.002, 0.004)
SPREADS = [
    Spreading("headwise", "val_loss", "seeds", 2, replace(ALL, cell="stdlib"), replace(ALL, cell=EVIL), ALL, [EVIL]),
    Spreading("headwise", "mass_spread_heads", "heads", reason="no run has two heads to compare"),
]
FOUND = Varied([BY, UNTOLD, MASS], SPREADS, {"val_loss": ("held-out loss", "nats"), "first_token_mass": ("mass", "share")},
               {"size": "all 4 cells have one"}, ["model.moe"], 0.1)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("varied") / "study")
    return Page(write_report(folder, analysed(folder)[0], shares=[], pairing=[], varied=FOUND))


def test_a_factor_has_its_test_and_its_ends(page):
    row = next(r for r in page.rows if len(r) == 9 and r[1] == "depth" and "F(1, 8)" in r[2] and r[4] == "0.017")
    assert row[2] == "F(1, 8) = 17.6" and row[5:7] == ["cells", "+0.0082"]
    assert row[7] == "−0.0100 (−0.0200 to 0.0000): 1" and row[8] == f"0.0500 (0.0100 to 0.0900): {EVIL} The sign flips."
    assert "effect on mass [share]: 1 row with q above 0.1 or none" in page.text, (
        "other readings are folded with their number"
    )


def test_of_other_readings_those_within_the_rate_stand_open_and_the_rest_is_behind_its_number():
    many = [replace(MASS, q=q, factor=f"model.k{i}") for i, q in enumerate((0.01, 0.2, float("nan"), 0.1, 0.9))]
    html = str(tag("div", tables(replace(FOUND, rows=[BY, UNTOLD, *many], lost="cells: lr9: none 5 of 5"), str, "s")))
    open_, *folded = html.split("<details>")
    assert all(k in open_ for k in ("depth", "cannot be told: 2 of 4 cells", "model.k0", "model.k3"))
    assert "effect on mass [share]: 3 more rows with q above 0.1 or none" in folded[0]
    assert all(k in folded[0].split("</details>")[0] for k in ("model.k1", "model.k2", "model.k4"))
    assert "spread: 1 more row in which no cell has a q up to 0.1" in folded[1] and "no run has two heads" in folded[1]
    assert "Not in any of these tests: cells: lr9: none 5 of 5." in html
    assert len(list(csv.DictReader(io.StringIO(varied_csv(replace(FOUND, rows=[BY, *many])))))) == 6


def test_a_slope_says_where_its_levels_lie_on_no_line():
    def doubling(p):
        return str(tag("div", tables(replace(FOUND, rows=[replace(BY, p_bend=p)]), str, "s")))

    assert "+0.0082, no line (p 0.02)" in doubling(0.02) and "no line (p" not in doubling(0.2)


def test_what_cannot_be_told_has_its_reason(page):
    row = next(r for r in page.rows if len(r) == 9 and r[1] == "learning rate = training length")
    assert row[2] == "cannot be told: 2 of 4 cells have two pairs"
    assert "Cannot be told here, size: all 4 cells have one." in page.text
    assert "The architecture stands for what varies with it alone: model.moe." in page.text


def test_spreads_are_ratios_over_seeds_heads_and_layers(page):
    assert [
        "sdpa-headwise", "seeds", "held-out loss", "2", "2.00 (1.50 to 3.00): stdlib", f"2.00 (1.50 to 3.00): {EVIL}",
        "2.00 (1.50 to 3.00)", "0.002", f"1: {EVIL}",
    ] in page.rows  # fmt: skip
    assert any(r[3:4] == ["cannot be told: no run has two heads to compare"] for r in page.rows)


def test_the_file_has_every_row(page):
    rows = list(csv.DictReader(io.StringIO(varied_csv(FOUND))))
    assert len(rows) == 3 and rows[0]["most_where"] == EVIL and float(rows[0]["f"]) == 17.58
    assert rows[1]["f"] == "" and rows[1]["reason"] == UNTOLD.reason
    assert "varied.csv" in page.text


def test_words_of_factors_and_of_a_study():
    assert factor("optim.lr = x") == "learning rate = x"
    assert headline(FOUND) == "1 test of the loss by factor, 1 with q up to 0.1"
    assert headline(replace(FOUND, rows=[UNTOLD])) == "by no factor: 2 of 4 cells have two pairs"


def test_a_study_has_its_table_on_its_own_page_and_in_the_atlas(tmp_path):
    folder = make_study(tmp_path / "study", endings=COMPLETE)
    own = Page(lab.report(folder, lab.analyse(folder)))
    assert "How the effects vary" in own.text and (folder.path / "varied.csv").is_file()
    assert any(r[1:2] == ["all cells"] and r[2].startswith("F(1, 4)") for r in own.rows)
    atlas = Page(lab.atlas([folder.path], folder.path / "atlas.html"))
    assert "How the effects vary" in atlas.text and any(r[1:2] == ["all cells"] for r in atlas.rows)
    assert "In no study here do the cells differ in size or architecture" in atlas.text


def test_a_cell_whose_runs_diverged_is_named_and_is_in_no_test(tmp_path):
    gone = {("stdlib", "headwise", seed): ("diverged", 230) for seed in (0, 1)}
    folder = make_study(tmp_path / "study", endings=gone)
    found = gather(folder)
    assert found.evidence.lost == {("stdlib", "headwise"): "headwise 2 of 3"}
    own = Page(lab.report(folder, lab.analyse(folder)))
    assert "Not in any of these tests: cells in which most runs of an arm are lost" in own.text
    rows = list(csv.DictReader(io.StringIO((folder.path / "varied.csv").read_text())))
    assert {r["left_out"] for r in rows if r["arm"] == "elementwise"} == {""}
    assert any("in 1 others most runs are lost" in r["reason"] for r in rows if r["arm"] == "headwise")
