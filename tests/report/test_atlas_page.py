"""The atlas in a real browser: the chooser works with the keyboard and without scripts, every chart is drawn, nothing is wider than
a phone."""

import json

import pytest
from reading import Page
from synthetic import COMPLETE, make_study

from gatelab import lab

SHOWN = "[...document.querySelectorAll('.panels > div')].map(d => getComputedStyle(d).display != 'none')"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("atlas") / "study", endings=COMPLETE)
    return lab.atlas([folder.path], folder.path / "atlas.html")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_the_page_is_whole_offline_and_as_wide_as_the_window(browser, atlas, width, dark):
    data = browser.open(atlas, width=width, dark=dark)
    assert (data["drawn"], data["problems"], data["overflow"]) == ("4/4", "[]", "0")
    assert browser.console == [] and json.loads(data["requests"]) == []
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_one_metric_is_shown_and_the_chooser_is_a_row_of_radio_buttons(browser, atlas):
    browser.open(atlas, width=1280)
    assert browser.run(SHOWN) == [True, False]
    browser.run("document.querySelectorAll('.choose input')[1].click()")
    assert browser.run(SHOWN) == [False, True]
    page = Page(atlas)
    inputs = [a for tag, a in page.elements if tag == "input"]
    labels = {a["for"] for tag, a in page.elements if tag == "label"}
    assert [a["type"] for a in inputs] == ["radio", "radio"] and labels == {a["id"] for a in inputs}


def test_a_field_has_effect_interval_and_letter_and_blanks_stay_blank(atlas):
    page = Page(atlas)
    row = next(r for r in page.rows if r and r[0] == "text (stdlib)")
    assert row[1].startswith("A bigram-backcopy ▼ −0.0") and "A stdlib ▼ −0.0" in row[1] and row[1].count(" to ") == 2
    scales = [r for r in page.rows if r and r[0] == "data"]
    assert all(len(r) == len(scales[0]) for r in scales), "maps share their columns"
    regions = [a.get("aria-label", "") for tag, a in page.elements if a.get("role") == "region"]
    assert "table of held-out loss of sdpa-headwise" in regions and "maps of first-token mass" in regions


def test_every_link_within_the_page_leads_somewhere(atlas):
    page = Page(atlas)
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert {a["href"][1:] for tag, a in page.elements if tag == "a" and a["href"].startswith("#")} <= ids


def test_all_panels_are_printed(browser, atlas, tmp_path):
    browser.open(atlas, width=1280, media="print")
    assert browser.run(SHOWN) == [True, True]
