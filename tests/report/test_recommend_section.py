"""The section of recommendations: a row a use, the words of its rule, what speaks against it, and a CSV of every comparison."""

import csv
from dataclasses import replace

import pytest
from reading import Page
from synthetic import ARMS, CELLS, COMPLETE, METRICS, analysed, make_study, outcomes

from gatelab.analysis.recommend import advise
from gatelab.analysis.registration import Claim, Verdict
from gatelab.report import write_report


def advice_of(folder, findings, **more):
    study = folder.study()
    bases = {c["name"]: c["base"] for c in study["cells"]}
    given = {"rates": {}, "refused": {}, **more}
    return advise(outcomes(folder), findings, METRICS, baseline="none", arms=list(ARMS), bases=bases, **given)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("which") / "study", endings=COMPLETE)
    return folder, analysed(folder)


def written(study, advice):
    folder, (findings, shares, pairing) = study
    return Page(write_report(folder, findings, shares=shares, pairing=pairing, advice=advice))


def test_a_use_has_a_row_with_arm_strength_settings_seeds_and_counter_evidence(study):
    folder, (findings, _, _) = study
    claim = Claim("worse-than-none", "stdlib", "elementwise", "val_loss", 0, 0.01, 0.02)
    advice = advice_of(folder, findings, verdicts=[Verdict(claim, 5, 0.001, 0.002, "confirmed")])
    page = written(study, advice)
    at = next(i for i, r in enumerate(page.rows) if r and r[0] == "a lower held-out loss" and len(r) == 7)
    first, second = page.rows[at][1:], page.rows[at + 1]
    assert [r[0] for r in (first, second)] == ["sdpa-headwise", "sdpa-elementwise"], (
        "arms of one rank, under one heading"
    )
    assert first[1:4] == second[1:4] == ["screen", "2 of 2", "3"]
    assert second[4].startswith("−0.04") and second[4].endswith("nats")
    assert (first[5], second[5]) == ("nothing seen", "confirmed worse-than-none in stdlib")
    assert "No pair of runs has it here, so nothing tells: " in page.text and "reach to eight times" in page.text
    assert "which" in [a.get("id") for tag, a in page.elements if tag == "section"]


def test_the_csv_has_every_comparison(study):
    folder, (findings, _, _) = study
    advice = advice_of(folder, findings)
    page = written(study, advice)
    assert "recommendations.csv" in page.text
    with (folder.path / "recommendations.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(advice.told)
    told = next(t for t in advice.told if (t.setting, t.arm, t.use.metric) == ("stdlib", "headwise", "val_loss"))
    (row,) = [r for r in rows if (r["setting"], r["arm"], r["metric"]) == ("stdlib", "headwise", "val_loss")]
    assert float(row["effect"]) == told.finding.effect and row["word"] == told.word and row["cell"] == "stdlib"


def test_too_few_seeds_and_no_effect_recommend_nothing_and_say_so(tmp_path):
    folder = make_study(
        tmp_path / "study", endings={(c, a, s): ("planned", -1) for c in CELLS for a in ARMS for s in (1, 2)}
    )
    found = analysed(folder)
    page = written((folder, found), advice_of(folder, found[0]))
    (row,) = [r for r in page.rows if r and r[0] == "a lower held-out loss" and len(r) == 7]
    assert row[1] == "nothing here tells" and row[2] == "pilot"


def test_a_study_that_recommends_nothing_says_why(study):
    page = written(study, "its <baseline> has a gate")
    assert "Nothing is recommended: its <baseline> has a gate." in page.text


def test_names_are_text_and_notes_are_shown(study):
    folder, (findings, _, _) = study
    advice = replace(advice_of(folder, findings), notes=["<script>alert(1)</script> in a cell is refused"])
    page = written(study, advice)
    assert "<script>alert(1)</script> in a cell is refused" in page.text
    assert not [s for s in page.scripts if "alert(1)" in s and not s.startswith('{"theme"')]


def test_a_page_without_advice_has_no_section_of_it(reported):
    assert "which" not in [a.get("id") for tag, a in reported.page.elements if tag == "section"]
