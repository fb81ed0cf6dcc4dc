"""The page says what was found and what is missing, cannot be broken by names, and is the same twice."""

import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise

import pytest
from reading import Page
from synthetic import ARMS, CELLS, COMPLETE, ENDINGS, SEEDS, analysed, make_study

from gatelab.analysis.say_power import in_common
from gatelab.record import Finding, Row
from gatelab.report import write_report
from gatelab.report.measured import measure
from gatelab.store import Appender, StoreError, StudyFolder


def report(folder):
    findings, shares, pairing = analysed(folder)
    return Page(write_report(folder, findings, shares=shares, pairing=pairing))


def test_every_primary_sentence_is_on_the_page(reported):
    primary = [f for f in reported.findings if f.primary]
    assert len(primary) == 2 * 2 * 3
    for place in dict.fromkeys((f.cell, f.metric) for f in primary):
        sentences, after = in_common([f for f in primary if (f.cell, f.metric) == place])
        assert all(said in reported.page.text for said in [*sentences, *after])


def test_question_note_and_sections_come_in_order(reported):
    text = reported.page.text
    places = [text.index(words) for words in ("Does a gate on the attention output", "Made for a test.", "Few seeds")]
    heads = [a["id"] for tag, a in reported.page.elements if tag == "section"]
    assert places == sorted(places)
    assert heads == [
        "verdicts", "loss", "mass", "maps", "gates", "massive", "effects", "shares", "pairing", "runs", "how"
    ]  # fmt: skip


def test_runs_that_are_not_done_are_named_with_their_state(reported):
    text = reported.page.text
    assert "21 of 24" in text
    assert "stdlib, sdpa-headwise, seed 2: diverged, up to step 231" in text
    assert "stdlib, learned sink logit, seed 1: not finished, up to step 150" in text
    assert "bigram-backcopy, sdpa-elementwise, seed 2: not finished, nothing measured" in text
    frames = [a for tag, a in reported.page.elements if tag == "div" and a.get("class") == "absent"]
    assert len(frames) == 1, "the run without a map keeps its place among the seeds"


def test_the_state_of_a_run_can_be_told_by_the_caller(tmp_path):
    folder = make_study(tmp_path / "study")
    findings, shares, pairing = analysed(folder)
    path = write_report(
        folder,
        findings,
        shares=shares,
        pairing=pairing,
        state=lambda run: (run.done() or {"status": "out of memory"})["status"],
    )
    assert "seed 1: out of memory, up to step 150" in Page(path).text


def test_the_facts_say_which_code_ran_and_when(reported):
    assert "commit 5eed5eed5eed with uncommitted changes" in reported.page.text
    assert "torch 2.13.0" in reported.page.text
    assert "Data from2025-03-04" in reported.page.text


def test_a_complete_study_has_no_holes(tmp_path):
    page = report(make_study(tmp_path / "study", endings=COMPLETE))
    assert "are not done" not in page.text and "Not done:" not in page.text
    assert not [a for tag, a in page.elements if a.get("class") == "absent"]


def test_a_study_that_has_not_begun_still_has_a_page(tmp_path):
    nothing = {(c, a, s): ("planned", -1) for c in CELLS for a in ARMS for s in SEEDS}
    page = report(make_study(tmp_path / "study", endings=nothing))
    assert page.charts and all("no finished pair" in json.dumps(chart) for chart in page.charts)
    assert "0 of 24" in page.text
    assert page.text.count("not finished, nothing measured") >= 24
    assert len([a for tag, a in page.elements if a.get("class") == "absent"]) >= 10


def test_runs_that_only_looked_show_their_held_out_loss(tmp_path):
    nothing = {(c, a, s): ("planned", -1) for c in CELLS for a in ARMS for s in SEEDS}
    folder = make_study(tmp_path / "study", endings=nothing)
    for _, run in folder.planned():
        run.create({"model": {"arch": "encoder"}})
        rows = Appender(run.rows_path)
        rows.write([Row(run.fingerprint, 0, "eval", "val_loss", 2.5, "nats")])
        rows.close()
        run.mark_done("done", {"steps": 0})
    page = report(folder)
    assert "No loss yet" not in page.text and page.text.count("Training and held-out loss") == len(CELLS)
    assert "[0,0]" not in page.scripts[1].replace(" ", "")
    assert "masked (encoder)" in page.text


def test_maps_and_gates_are_of_one_stack_and_one_site(tmp_path):
    folder = make_study(tmp_path / "study", endings=COMPLETE)
    entry, run = next((e, r) for e, r in folder.planned() if e["arm"] == "headwise")
    before = measure(folder)
    last = max(step for step, _ in before.curves[entry["cell"], entry["arm"], entry["seed"], "first_token_mass"])
    elsewhere = [{"stack": "cross"}, {"stack": "encoder", "site": "sdpa"}, {"site": "value"}]
    rows = Appender(run.rows_path, run.rows_path.stat().st_size)
    rows.write(
        Row(run.fingerprint, last, "x", metric, 9.0, "1", layer=0, **at, **where)
        for metric, at in (("first_token_mass", {"head": 0}), ("gate_mean", {}), ("gate_histogram", {"bin": 3}))
        for where in elsewhere
    )
    rows.close()
    (run.path / "rows.parquet").unlink(missing_ok=True)
    after = measure(folder)
    assert (after.heads, after.layers, after.histograms) == (before.heads, before.layers, before.histograms)


def test_a_run_that_diverged_at_once_is_drawn_as_far_as_it_came(tmp_path):
    page = report(make_study(tmp_path / "study", endings={("stdlib", "none", 0): ("diverged", 0)}))
    assert "stdlib, no gate, seed 0: diverged, up to step 1" in page.text
    assert "NaN" not in page.scripts[1]


def test_names_cannot_become_markup(tmp_path):
    name = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"
    folder = make_study(tmp_path / "study", name=name)
    page = report(folder)
    titles = [tag for tag, _ in page.elements if tag in ("script", "img")]
    assert titles == ["script"] * 4
    assert name in page.text


def test_the_page_asks_nothing_of_the_network(reported):
    policy = next(a["content"] for tag, a in reported.page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    links = [a[k] for _, a in reported.page.elements for k in ("src", "href") if k in a]
    assert links and all(link.startswith(("#", "data:")) for link in links)


def test_every_link_leads_somewhere(reported):
    anchors = {a["id"] for _, a in reported.page.elements if "id" in a}
    targets = {a["href"][1:] for tag, a in reported.page.elements if tag == "a"}
    assert targets and targets <= anchors


def test_headings_do_not_skip_a_level(reported):
    levels = [int(tag[1]) for tag, _ in reported.page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_chart_is_described_in_words(reported):
    places = {a["id"]: a["aria-label"] for _, a in reported.page.elements if a.get("class") == "chart"}
    assert list(places) == [chart["id"] for chart in reported.page.charts]
    assert all(len(words) > 20 for words in places.values())


def test_same_folder_in_same_bytes_out(reported):
    kept = {p.name: p.read_bytes() for p in reported.folder.path.iterdir() if p.suffix in (".html", ".csv")}
    assert set(kept) == {"report.html", "effects.csv", "runs.csv", "curves.csv"}
    folder = StudyFolder.open(reported.folder.path)
    write_report(folder, reported.findings, shares=reported.shares, pairing=reported.pairing, note="Made for a test.")
    assert {name: (folder.path / name).read_bytes() for name in kept} == kept


def test_effects_csv_holds_every_number_in_full(reported):
    with open(reported.folder.path / "effects.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(reported.findings)
    assert list(rows[0]) == [f.name for f in fields(Finding)]
    for row, finding in zip(rows, reported.findings, strict=True):
        assert float(row["effect"]) == finding.effect
        assert float(row["low"]) == pytest.approx(finding.low, rel=0, abs=0, nan_ok=True)
        assert [float(d) for d in row["differences"].split(";")] == finding.differences


def test_curves_csv_has_every_step_and_runs_csv_every_run(reported):
    with open(reported.folder.path / "curves.csv", encoding="utf-8", newline="") as file:
        curves = list(csv.DictReader(file))
    one = [r for r in curves if (r["cell"], r["arm"], r["seed"], r["metric"]) == ("stdlib", "headwise", "2", "loss")]
    assert [int(r["step"]) for r in one] == list(range(1, 232))
    assert math.isnan(float(one[-1]["value"])), "the step that diverged is kept as it was"
    with open(reported.folder.path / "runs.csv", encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 24
    assert [r["state"] for r in runs].count("done") == 24 - len(ENDINGS)


def test_every_run_has_the_command_that_repeats_it(reported):
    for entry, _ in reported.folder.planned():
        assert entry["command"] in reported.page.text
        assert entry["fingerprint"] in reported.page.text


def test_a_folder_of_another_version_is_refused(tmp_path):
    folder = make_study(tmp_path / "study", endings=COMPLETE)
    text = (folder.path / "study.json").read_text().replace('"schema": 1', '"schema": 99')
    (folder.path / "study.json").write_text(text)
    with pytest.raises(StoreError, match="schema 99"):
        write_report(folder, [], shares=[], pairing=[])
    assert not (folder.path / "report.html").exists()


def test_importing_the_report_loads_nothing_heavy():
    code = "import gatelab.report, sys; print([m for m in ('torch', 'altair', 'duckdb', 'scipy', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
