"""The effects that fresh seeds confirmed: their list, the mark on the map that leads there, and the guide's sentence."""

from dataclasses import replace

import pytest
from reading import Page
from synthetic import COMPLETE, make_study

from gatelab.analysis.anomalies import Alarm
from gatelab.analysis.atlas import Atlas
from gatelab.analysis.confirmed import Anomaly, Held
from gatelab.analysis.registration import Claim, Verdict
from gatelab.analysis.standing import CONFIRMED
from gatelab.lab.atlas import read_atlas
from gatelab.lab.sources import sources_in
from gatelab.report.atlas import write_atlas
from gatelab.report.atlas_effects import anchors, effects_of

ARM, METRIC = "headwise", "val_loss"


def planted(sheet):
    """The sheet with one confirmed effect of the headwise gate in stdlib, which its screen is made not to see."""
    claim = Claim("effect", "stdlib", "headwise", METRIC, -1, 0.004, 0.09)
    verdict = Verdict(claim, 8, 0.0004, 0.0032, "confirmed", ["seed 7 of none diverged"])
    screen = Alarm(
        "effect", "stdlib", "headwise", "none", METRIC, "nats", 3, -0.04, -0.09, 0.01, 0.08, "?", seeds=[0, 1, 2]
    )
    fresh = replace(screen, n_pairs=8, estimate=-0.0512, low=-0.0701, high=-0.0323)
    command = "gatelab run quickstart <seed>=3..10"
    found = Anomaly(
        "stdlib",
        "headwise",
        [Held(verdict, fresh, screen)],
        [],
        {METRIC: ("held-out loss", "nats")},
        commands=[command],
    )
    told = [
        replace(t, side=1, word=CONFIRMED, finding=replace(t.finding, verdict="unclear"))
        if (t.setting, t.arm, t.use.metric) == ("stdlib", "headwise", METRIC) else t
        for t in sheet.advice.told
    ]  # fmt: skip
    return replace(
        sheet, advice=replace(sheet.advice, told=told), views=replace(sheet.views, effects=[found]), registered=[claim],
        verdicts=[verdict],
    )  # fmt: skip


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> Atlas:
    there = tmp_path_factory.mktemp("effects")
    make_study(there / "one", endings=COMPLETE)
    (sheet,), refused = read_atlas(sources_in([there]), there / "atlas.html", lambda _: None)
    assert refused == []
    return Atlas([planted(sheet)], [])


@pytest.fixture(scope="module")
def page(atlas, tmp_path_factory) -> Page:
    return Page(write_atlas(tmp_path_factory.mktemp("page") / "atlas.html", atlas))


def test_an_effect_has_its_numbers_on_both_seeds_and_one_line_that_runs_it_again(page):
    (row,) = [r for r in page.rows if "held-out loss falls" in " ".join(r)]
    assert row[0] == "sdpa-headwise", "by its label"
    assert row[1:] == [
        "decoder on text (stdlib), stdlib [A]",
        "held-out loss falls Left out: seed 7 of none diverged.",
        "−0.0512 nats (−0.0701 to −0.0323, 8 seeds)",
        "−0.0400 nats (−0.0900 to 0.0100, 3 seeds)",
        "0.0032",
        "gatelab run quickstart <seed>=3..10copy",
    ]
    assert "1 of 1 effects that a screen named" in page.text


def test_the_map_marks_it_whatever_the_screen_saw_and_the_mark_leads_there(page, atlas):
    assert anchors(atlas) == {("A stdlib", ARM, METRIC): "effect-A1"}
    ids = {a["id"] for _, a in page.elements if "id" in a}
    links = [a["href"] for tag, a in page.elements if tag == "a" and a.get("href") == "#effect-A1"]
    assert "effect-A1" in ids and len(links) == 2, "the map's and the guide's"
    fields = [cell for row in page.rows if row and row[0] == "text (stdlib)" for cell in row[1:] if "✓" in cell]
    assert len(fields) == 1 and "A stdlib ▼ −0.0" in fields[0], "with its sign and without brackets"
    assert "registered and confirmed on fresh seeds" in page.text


def test_the_guide_says_it_first_and_counts_it(page, atlas):
    assert "confirmed on fresh seeds, 1 of 1 registered effects" in page.text
    assert "held-out loss falls, for the better: " in page.text and " −0.051 nats" in page.text
    (effect,) = effects_of(atlas)
    assert effect.is_better and effect.setting == "A stdlib"


def test_an_atlas_without_any_says_so(atlas, tmp_path):
    bare = replace(atlas.sheets[0], views=None, registered=[], verdicts=[])
    text = Page(write_atlas(tmp_path / "bare.html", Atlas([bare], []))).text
    assert "No effect was confirmed on fresh seeds." in text
