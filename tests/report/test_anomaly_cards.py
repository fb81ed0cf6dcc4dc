"""The cards of confirmed anomalies: what is in one, what is said where rows lack, how many there are, and hostile names."""

from dataclasses import replace
from types import SimpleNamespace

import altair as alt
import pytest
from reading import Page
from synthetic import analysed, make_study

from gatelab.analysis.anomalies import Alarm
from gatelab.analysis.anomalies.screen import Screened
from gatelab.analysis.causes import Card, Decision
from gatelab.analysis.confirmed import Anomaly, Held, Neighbour, Seen
from gatelab.analysis.hunt import Hunt
from gatelab.analysis.looked import Looked
from gatelab.analysis.registration import Claim, Verdict
from gatelab.report import write_report
from gatelab.report.anomaly_cards import MOST_CARDS, headline
from gatelab.report.measured import measure

NAN = float("nan")
EVIL = "<script>alert('\"x&y')</script>"
SCREEN = Alarm("worse-than-none", "stdlib", "elementwise", "none", "val_loss", "nats", 3, 0.021, 0.011, 0.031, 0.004,
               f"stdlib: with {EVIL} it is worse", q=0.04, verdict="anomaly", seeds=[0, 1, 2])  # fmt: skip
FRESH = replace(SCREEN, n_pairs=5, estimate=0.0312, low=0.0201, high=0.0423, seeds=[5, 6, 7, 8, 9])
CLAIM = Claim("worse-than-none", "stdlib", "elementwise", "val_loss", 0, 0.004, 0.04)
SHUT = Claim("gate-collapse", "stdlib", "elementwise", "gate_shut", 0, 0.004, 0.04)
HELD = Held(Verdict(CLAIM, 5, 0.0004, 0.0008, "confirmed", ["seed 9 of none diverged"]), FRESH, SCREEN)
UNMEASURED = Held(Verdict(SHUT, 4, 0.001, 0.001, "confirmed"), None, None)
SEEN = Seen(
    {"gate_shut": {("elementwise", s): [(step, 0.1 * s + step / 1000) for step in (0, 200, 400)] for s in (0, 1, 2)}},
    {("elementwise", s): {0: 0.2, 1: 0.4 + 0.1 * s, 2: 0.99} for s in (0, 1, 2)},
)
CAUSE = Card("stdlib", "elementwise", EVIL, "a sink does nothing", "refuted",
             [Decision("zero-value@first", "the pass", "changes nothing", "refuted", "+0.1 nats", reading="loss_change"),
              Decision("drop-first", "the pass", "costs")])  # fmt: skip
START = Card(
    "stdlib",
    "elementwise",
    "initial-value",
    "it depends on the start",
    "supported",
    [Decision("the start", "arms", "it does", "supported", "p = 0.01", reading="val_loss")],
    reading="val_loss",
)
ONE = Anomaly(
    "stdlib", "elementwise", [HELD, UNMEASURED],
    [Neighbour(EVIL, "optim.lr", 0.001, 0.01, [replace(SCREEN, estimate=-0.5, low=-0.6, high=-0.4, verdict="none"), None]),
     Neighbour("other", "data.kind = data.name", "a", "b", [None, None])],
    {"val_loss": ("held-out loss", "nats"), "gate_shut": ("share of shut scores", "share")},
    SEEN, [CAUSE, START], [f"gatelab run {EVIL} 'cell=stdlib'", "gatelab find runs/x --explain stdlib"],
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("cards") / "quickstart")
    return SimpleNamespace(folder=folder, findings=analysed(folder)[0])


def write(study, *confirmed):
    looked = Looked(Hunt(Screened([SCREEN], [], 0.10), [], None), None, [], [CAUSE], None, list(confirmed))
    return write_report(study.folder, study.findings, shares=[], pairing=[], looked=looked)


@pytest.fixture(scope="module")
def page(study):
    return Page(write(study, ONE))


def test_the_headline_is_the_number_on_fresh_seeds_beside_the_screens():
    words = headline(HELD)
    assert words == (
        f"with {EVIL} it is worse: 0.0312 nats (0.0201 to 0.0423) on 5 fresh seeds; 0.0210 nats (0.0110 to 0.0310) on the 3 of"
        " the screen."
    )
    assert headline(UNMEASURED) == "gate_shut, confirmed on 4 fresh seeds (p 0.001)."


def test_a_card_is_folded_under_its_headline_and_nothing_of_a_name_is_markup(page):
    assert f"sdpa-elementwise in stdlib: worse-than-none: {headline(HELD)} And 1 more claim." in page.text
    cards = [a for tag, a in page.elements if tag == "details" and a.get("class") == "anomaly print"]
    assert len(cards) == 1 and "open" in cards[0]
    assert EVIL in page.text and not any("alert(" in script and "charts" not in script for script in page.scripts)
    assert "seed 9 of none diverged" in page.text


def test_curves_are_medians_in_the_band_of_finished_seeds(page):
    (spec,) = [
        c["spec"] for c in page.charts if c["spec"]["description"].startswith("share of shut scores over training")
    ]
    (curve,) = spec["layer"][0]["data"]["values"]
    assert curve["x"] == [0, 200, 400]
    assert curve["y"] == pytest.approx([0.1, 0.3, 0.5]) and curve["low"] == pytest.approx([0.0, 0.2, 0.4])
    assert curve["high"] == pytest.approx([0.2, 0.4, 0.6])
    loss = next(c["spec"] for c in page.charts if c["spec"]["description"].startswith("held-out loss over training"))
    assert [v["arm"] for v in loss["layer"][1]["data"]["values"]] == ["none", "elementwise"]
    for c in (spec, loss):
        alt.Chart.from_dict({**c, "$schema": "https://vega.github.io/schema/vega-lite/v5.json"})
    assert ["share of shut scores", "400", "–", "0.5000 (0.4000 to 0.6000) (3 seeds)"] in page.rows


def test_gate_scores_are_a_map_of_histograms_and_a_table(page):
    begins = "Gate scores of sdpa-elementwise in stdlib by"
    (spec,) = [c["spec"] for c in page.charts if c["spec"]["description"].startswith(begins)]
    assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [0, 1, 2]
    by_layer = {}
    for v in spec["layer"][0]["data"]["values"]:
        by_layer[v["l"]] = by_layer.get(v["l"], 0) + v["v"]
    assert by_layer == pytest.approx(dict.fromkeys(range(3), 1.0), abs=1e-2)
    alt.Chart.from_dict({**spec, "$schema": "https://vega.github.io/schema/vega-lite/v5.json"})
    assert ["1", "0.28 (0.28 to 0.28)", "0.50 (0.40 to 0.60)"] in page.rows


def test_maps_neighbours_causes_and_commands_are_there(page):
    said = [c["spec"]["description"] for c in page.charts]
    maps = [
        d for d in said if d.startswith("First-token mass by layer and head") and " in stdlib: median of 3 seeds" in d
    ]
    assert len(maps) == 2
    assert [EVIL, "optim.lr: 0.01 for 0.001", "−0.500 nats (−0.600 to −0.400), 3 seeds", "–"] in page.rows
    assert ["other", "data.kind (and 1 more that goes with it)", "–", "–"] in page.rows
    assert "zero-value@first [loss_change]: refuted (+0.1 nats); 1 not run." in page.text
    assert "initial-value of held-out loss: supported, it depends on the start" in page.text
    assert "the start [val_loss]: supported (p = 0.01)." in page.text
    assert page.text.count("a sink does nothing") == 1, "a cause stands in its card alone"
    assert f"gatelab run {EVIL} 'cell=stdlib'" in page.text and "gatelab find runs/x --explain stdlib" in page.text


def test_what_the_rows_lack_is_said(study):
    bare = Anomaly("bigram-backcopy", "sink-logit", [UNMEASURED], [], {}, commands=["gatelab find runs/x --explain b"])
    page = Page(write(study, bare))
    for words in (
        "have no gate scores of this arm", "No cell of this study differs from this one in one key alone",
        "No registered explanation has rows yet", "gatelab find runs/x --explain b --edit", "Without rows: gate shut.",
    ):  # fmt: skip
        assert words in page.text


def test_a_study_without_histograms_has_its_means_and_shares(study, monkeypatch):
    from gatelab.report import page as of_page

    monkeypatch.setattr(of_page, "measure", lambda folder, state: replace(measure(folder, state), histograms={}))
    page = Page(write(study, ONE))
    assert "The rows of this study have no histograms." in page.text
    assert ["2", "0.36 (0.36 to 0.36)", "0.99 (0.99 to 0.99)"] in page.rows


def test_twelve_have_a_card_and_the_rest_a_row_with_their_file(study):
    many = [replace(ONE, commands=[], causes=[]) for _ in range(MOST_CARDS + 2)]
    page = Page(write(study, *many))
    cards = [a for tag, a in page.elements if tag == "details" and a.get("class") == "anomaly print"]
    assert len(cards) == MOST_CARDS and ["open" in a for a in cards] == [True] + [False] * (MOST_CARDS - 1)
    assert sum(a.get("href") == "confirmed.csv" for tag, a in page.elements if tag == "a") == 2 * 2
    assert "14 in all" in page.text and "2 more are in the table below" in page.text
    csv = (study.folder.path / "confirmed.csv").read_text(encoding="utf-8").splitlines()
    assert len(csv) == 1 + 2 * 14 and csv[0].startswith("rule,cell,arm,reading,fresh_estimate,fresh_low")


def test_the_same_in_gives_the_same_bytes(study):
    first = write(study, ONE).read_bytes()
    assert write(study, ONE).read_bytes() == first


def test_without_a_confirmed_claim_there_is_no_card(study):
    assert "Confirmed anomalies" not in Page(write(study)).text


@pytest.mark.parametrize("width", [1280, 390])
def test_cards_draw_and_are_not_wider_than_a_phone(browser, study, width):
    path = write(study, ONE, replace(ONE, arm="headwise"))
    data, n = browser.open(path, width=width), len(Page(path).charts)
    assert (data["drawn"], data["problems"], data["overflow"]) == (f"{n}/{n}", "[]", "0")
    assert browser.console == []
