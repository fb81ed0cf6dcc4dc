"""The page's section of anomalies: the screen, the confirmation and causes as planted, an atlas that is blank where nothing ran."""

from dataclasses import replace
from types import SimpleNamespace

import altair as alt
import pytest
from reading import Page
from synthetic import ARMS, CELLS, analysed, make_study

from gatelab.analysis.anomalies import Alarm
from gatelab.analysis.anomalies.screen import Screened
from gatelab.analysis.causes import Card, Decision
from gatelab.analysis.hunt import Hunt
from gatelab.analysis.looked import Looked, with_rows
from gatelab.analysis.registration import Claim, Registration, Verdict
from gatelab.report import write_report

NAN = float("nan")
ODD = Alarm("sink-stays", "stdlib", "headwise", "none", "first_token_mass", "share", 3, 1.0, 0.3, 1.0, 0.004,
            "stdlib: of 3 seeds whose baseline has a <sink>, 3 keep it", q=0.04, verdict="anomaly", seeds=[0, 1, 2],
            notes=["seed 2 of headwise diverged"])  # fmt: skip
PLAIN = replace(
    ODD, rule="new-bias", arm="elementwise", p=0.5, q=0.9, verdict="none", sentence="stdlib: nothing odd", notes=[]
)
UNTESTED = replace(PLAIN, p=NAN, q=NAN, verdict="untestable", sentence="stdlib: too few")
CLAIM = Claim("effect", "stdlib", "headwise", "val_loss", -1, 0.01, 0.02)
LEFT = Claim("sink-stays", "stdlib", "headwise", "first_token_mass", 0, 0.01, 0.02)
REGISTERED = Registration([CLAIM, LEFT], [5, 6], [0, 1, 2], 0.05, 0.10, [])
CARDS = [
    Card("stdlib", "headwise", "no-op", "a sink does nothing", "supported",
         [Decision("zero-value@first", "the forward pass", "changes nothing", "supported", "+0.001 nats")]),
    Card("stdlib", "headwise", "depth", "it is depth", "undecided", [Decision("model.n_layers", "cells", "depends on it")]),
]  # fmt: skip


def looked(*, registration=None, verdicts=(), alarms=(ODD, PLAIN, UNTESTED)):
    hunt = Hunt(Screened(list(alarms), [], 0.10), ["arm late was not declared"], None)
    return Looked(hunt, registration, list(verdicts), with_rows(CARDS))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("odd") / "quickstart")
    findings, _, _ = analysed(folder)
    return SimpleNamespace(folder=folder, findings=findings)


def written(study, **settings):
    return Page(write_report(study.folder, study.findings, shares=[], pairing=[], looked=looked(**settings)))


def test_the_screen_is_told_with_its_q_and_what_was_left_out(study):
    page = written(study)
    assert "1 of 2 tests at a false-discovery rate of 10%" in page.text
    assert (
        "of 3 seeds whose baseline has a <sink>, 3 keep it" in page.text and "seed 2 of headwise diverged" in page.text
    )
    assert "arm late was not declared" in page.text and "nothing odd" in page.text and "too few" not in page.text
    assert "Not tested for want of seeds or spread: new-bias (1 test; anomalies.csv has each)." in page.text
    csv = (study.folder.path / "anomalies.csv").read_text(encoding="utf-8").splitlines()
    assert len(csv) == 4 and csv[0].startswith("rule,cell,arm")
    assert "anomalies" in [a.get("id") for tag, a in page.elements if tag == "section"]


def test_claims_are_open_until_their_confirmation_is_read(study):
    page = written(study, registration=REGISTERED)
    assert "have not all ended" in page.text and "held-out loss falls" in page.text
    verdicts = [
        Verdict(CLAIM, 2, 0.01, 0.02, "confirmed"), Verdict(LEFT, 0, NAN, NAN, "untestable", ["refused: two versions"])
    ]  # fmt: skip
    page = written(study, registration=REGISTERED, verdicts=verdicts)
    assert "confirmed" in page.text and "refused: two versions" in page.text and "have not all ended" not in page.text


def test_only_causes_with_rows_have_a_card(study):
    page = written(study)
    assert "a sink does nothing" in page.text and "it is depth" not in page.text


def test_the_atlas_is_blank_where_nothing_was_run_and_grey_without_an_interval(study):
    kept = [f for f in study.findings if (f.cell, f.arm) != ("stdlib", "sink-logit")]
    kept = [replace(f, low=NAN, high=NAN) if f.arm == "elementwise" and f.cell == "stdlib" else f for f in kept]
    page = written(SimpleNamespace(folder=study.folder, findings=kept))
    (spec,) = [c["spec"] for c in page.charts if c["spec"]["description"].startswith("Effect on held-out loss")]
    values = spec["data"]["values"]
    assert {(v["cell"], v["arm"]) for v in values} == {
        (c, ARMS[a][0]) for c in CELLS for a in ARMS if a != "none" and (c, a) != ("stdlib", "sink-logit")
    }
    found = {(v["cell"], v["arm"]): v for v in values}
    assert found["stdlib", "sdpa-elementwise"]["reach"] is None
    f = next(f for f in kept if (f.cell, f.arm, f.metric) == ("stdlib", "headwise", "val_loss"))
    assert found["stdlib", "sdpa-headwise"]["reach"] == pytest.approx(2 * f.effect / (f.high - f.low), rel=1e-4)
    assert spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == [ARMS[a][0] for a in ARMS if a != "none"]
    alt.Chart.from_dict({**spec, "$schema": "https://vega.github.io/schema/vega-lite/v5.json"})


def test_a_page_without_a_search_has_no_section_of_it(reported):
    assert "anomalies" not in [a.get("id") for tag, a in reported.page.elements if tag == "section"]
