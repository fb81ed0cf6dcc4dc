"""In a real browser: the charts draw, the console is clean, nothing is requested, nothing is wider than a phone."""

import json

import pytest
from reading import Page
from synthetic import ARMS, CELLS, SEEDS, analysed, make_study

from gatelab.report import write_report


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_all_charts_draw_and_nothing_goes_wrong(browser, reported, width, dark):
    data = browser.open(reported.path, width=width, dark=dark)
    n = len(reported.page.charts)
    assert n > 40
    assert data["drawn"] == f"{n}/{n}"
    assert json.loads(data["problems"]) == []
    assert browser.console == []
    shapes = "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('svg path[d]').length)"
    assert min(browser.run(shapes)) > 0
    marks = (
        "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('.role-mark path[d]')).map(c => c.id)"
    )
    assert browser.run(marks) == []


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_study_with_few_finished_seeds_draws_too(browser, tmp_path, finished):
    unfinished = {(c, a, s): ("planned", -1) for c in CELLS for a in ARMS for s in SEEDS[finished:]}
    folder = make_study(tmp_path / "study", endings=unfinished, steps=20)
    findings, shares, pairing = analysed(folder)
    path = write_report(folder, findings, shares=shares, pairing=pairing)
    data = browser.open(path, width=390)
    n = len(Page(path).charts)
    assert (data["drawn"], data["problems"], data["overflow"]) == (f"{n}/{n}", "[]", "0")


def test_nothing_is_requested_but_the_page_itself(browser, reported):
    data = browser.open(reported.path, width=1280)
    assert json.loads(data["requests"]) == []
    assert browser.requests == [reported.path.resolve().as_uri()]


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(browser, reported, width):
    data = browser.open(reported.path, width=width)
    assert browser.run("innerWidth") == width
    assert data["overflow"] == "0"
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_charts_stay_readable_on_a_phone(browser, reported):
    browser.open(reported.path, width=390)
    drawn = "[...document.querySelectorAll('.chart svg')].filter(s => s.clientWidth)"
    scale = f"{drawn}.map(s => s.clientWidth / s.viewBox.baseVal.width)"
    assert min(browser.run(scale)) > 0.9, "charts are drawn for the space there is, not shrunk into it"


def test_folded_figures_are_printed_and_configurations_are_not(browser, reported, tmp_path):
    browser.open(reported.path, width=1280)
    browser.run(
        "addEventListener('beforeprint', () => { window.opened = document.querySelectorAll('details[open]').length; })"
    )
    folded = browser.run("document.querySelectorAll('details.print').length")
    browser.print(tmp_path / "report.pdf")
    assert folded == 3
    assert browser.run("window.opened") == folded
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and len(printed) < 3_000_000


def test_the_page_notices_what_goes_wrong(browser, reported, tmp_path):
    broken = tmp_path / "report.html"
    text = reported.path.read_text(encoding="utf-8")
    broken.write_text(text.replace('"type":"rule"', '"type":"rul"', 1), encoding="utf-8")
    data = browser.open(broken, width=1280)
    n = len(reported.page.charts)
    assert data["drawn"] == f"{n - 1}/{n}"
    assert json.loads(data["problems"])
    assert "could not be drawn" in browser.run("document.body.innerText")


def test_a_foreign_script_is_refused(browser, reported, tmp_path):
    attacked = tmp_path / "report.html"
    text = reported.path.read_text(encoding="utf-8")
    attacked.write_text(text.replace("<h1>", "<script>window.owned = true;</script><h1>", 1), encoding="utf-8")
    data = browser.open(attacked, width=1280)
    assert browser.run("window.owned === undefined")
    assert "refused: script-src" in data["problems"]
