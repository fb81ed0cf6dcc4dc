"""The atlas' phase diagrams, learning rates, curves over training, lengths and cards, from studies whose numbers are planted."""

from dataclasses import replace

import planted_tasks as planted
import pytest
from reading import Page
from synthetic import COMPLETE, make_study
from tiny import toy

from gatelab import lab
from gatelab.analysis.anomalies import Alarm
from gatelab.analysis.atlas import Atlas
from gatelab.analysis.confirmed import Anomaly, Held, Neighbour
from gatelab.analysis.registration import Claim, Verdict
from gatelab.config import override
from gatelab.lab.atlas import read_atlas
from gatelab.lab.sources import sources_in
from gatelab.record import Row
from gatelab.report.atlas import write_atlas
from gatelab.store import Appender, StudyFolder
from gatelab.study.study import Arm, Study

EVIL = "<script>alert('\"x&y')</script>"
TOY = toy()
RATES, OUT = (1e-3, 2e-3, 4e-3), ("3-layer-lr0.004",)  # what was not run
CELLS = {f"{n}-layer-lr{lr:g}": override(TOY, {"optim.lr": lr, "model.n_layers": n}) for n in (1, 2, 3) for lr in RATES}


def make_grid(path) -> StudyFolder:
    """Without a gate every run has a sink; with one none has. The gate's loss is least at the middle rate, and the others' too."""
    cells = {name: run for name, run in CELLS.items() if name not in OUT}
    arms = (Arm("none", {}, "no gate"), Arm("gated", {"model.gate": "sdpa-headwise"}, EVIL))
    folder = lab.save_plan(lab.plan(Study("grid", "Where?", cells, arms, seeds=4)), path)
    for entry, run in folder.planned():
        gated, rate = entry["arm"] == "gated", float(entry["cell"].rpartition("lr")[2])
        loss = 2 + 0.01 * entry["seed"] + abs(rate - 2e-3) * 100 + gated * (-0.05 + 0.002 * entry["seed"])
        rows = Appender(run.rows_path)
        rows.write(
            [
                Row(run.fingerprint, 1, "eval", "val_loss", loss, "nats"),
                Row(run.fingerprint, 1, "sinks", "first_token_mass", 0.1 if gated else 0.7, "share"),
            ]
        )
        rows.close()
        run.mark_done("done", {"steps": 1})
    return folder


def anomaly() -> Anomaly:
    """Of the grid's gate in one cell."""
    screen = Alarm("worse-than-none", "1-layer-lr0.001", "gated", "none", "val_loss", "nats", 4, 0.021, 0.011, 0.031, 0.004,
                   f"1-layer-lr0.001: {EVIL} is worse", q=0.04, verdict="anomaly", seeds=[0, 1, 2, 3])  # fmt: skip
    fresh = replace(screen, n_pairs=5, estimate=0.0312, low=0.0201, high=0.0423)
    claim = Claim("worse-than-none", "1-layer-lr0.001", "gated", "val_loss", 0, 0.004, 0.04)
    beside = Neighbour("1-layer-lr0.002", "optim.lr", 0.001, 0.002, [None])
    return Anomaly(
        "1-layer-lr0.001", "gated", [Held(Verdict(claim, 5, 0.0004, 0.0008, "confirmed"), fresh, screen)], [beside],
        {"val_loss": ("held-out loss", "nats")}, commands=[f"gatelab run {EVIL}", "gatelab find DIR --explain CELL"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> Atlas:
    """A grid with a page of its own, a study with five looks a run, one on tasks."""
    there = tmp_path_factory.mktemp("results")
    make_grid(there / "a")
    sections = "".join(f'<section id="{name}"></section>' for name in ("phases", "anomalies", "loss"))
    (there / "a" / "report.html").write_text(sections, encoding="utf-8")
    make_study(there / "b", endings=COMPLETE)
    planted.make_study(there / "c")
    sheets, refused = read_atlas(sources_in([there]), there / "atlas.html", lambda _: None)
    assert refused == []
    grid = replace(sheets[0], views=replace(sheets[0].views, anomalies=[anomaly()]))
    return Atlas([grid, *sheets[1:]], [])


@pytest.fixture(scope="module")
def page(atlas, tmp_path_factory) -> Page:
    return Page(write_atlas(tmp_path_factory.mktemp("page") / "atlas.html", atlas))


def charts(page: Page, words: str) -> list[dict]:
    return [c["spec"] for c in page.charts if words in c["spec"]["description"]]


def values(spec: dict) -> list[dict]:
    return [v for layer in spec["layer"] for v in layer["data"]["values"]]


def test_the_sections_are_in_the_contents_in_order(page):
    ids = [a["id"] for tag, a in page.elements if tag == "section"]
    assert ids == [
        "guide",
        "which",
        "confirmed",
        "map",
        "varies",
        "phases",
        "rates",
        "training",
        "lengths",
        "anomalies",
        "studies",
        "flags",
    ]
    links = [a["href"][1:] for tag, a in page.elements if tag == "a" and a["href"].startswith("#")]
    assert links[: len(ids)] == ids


def test_a_phase_diagram_has_shares_and_losses_with_intervals_and_blanks_where_nothing_was_run(page):
    rows = [row for row in page.rows if row and row[0].startswith("n_layers ")]
    assert [row[0] for row in rows] == ["n_layers 1", "n_layers 2", "n_layers 3"] * 2
    assert rows[0][1:] == ["4 of 440% to 100%"] * 3 and rows[2][3] == ""
    assert rows[4][1].startswith("0 of 40% to 60%▼ −0.047−0.0") and " to " in rows[4][1] and rows[5][3] == ""
    assert "lr across, n_layers down, 4 seeds" in page.text


def test_a_field_of_the_diagram_leads_to_its_anomaly_and_that_to_the_studys_page(page):
    (row,) = [row for row in page.rows if row and row[0] == "n_layers 1" and "anomaly" in row[1]]
    assert "anomaly" not in row[2]
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert "#anomaly-A1" in links and "a/report.html#anomalies" in links and "a/report.html#phases" in links
    assert "anomaly-A1" in [a.get("id") for _, a in page.elements]
    assert not any(link.endswith(("report.html#lengths", "report.html#mass")) for link in links), (
        "only sections that the page has"
    )


def test_a_card_has_both_numbers_neighbours_causes_and_a_command(page):
    for words in ("0.0312 nats (0.0201 to 0.0423) on 5 fresh seeds; 0.0210 nats (0.0110 to 0.0310) on the 4 of the screen",
                  "In neighbouring cells", "No registered explanation has rows yet", f"gatelab run {EVIL}"):  # fmt: skip
        assert words in page.text, words


def test_a_confirmed_harm_stands_before_what_gates_are_good_for_with_its_number_and_card(page):
    said = page.text.partition("What it says")[2]
    assert (
        "What gates do harm, confirmed on fresh seeds, how much with its 95% interval:the task or the loss is" in said
    )
    assert "0.031 nats (0.020 to 0.042)" in said.partition("For a lower")[0]


def test_learning_rates_have_a_chart_a_setting_and_the_lowest_rate_of_each_arm(page):
    # The third setting has two rates.
    found = charts(page, "Held-out loss by learning rate")
    assert [spec["description"].partition("setting ")[2].partition(":")[0] for spec in found] == ["1-layer", "2-layer"]
    marked = [(v["arm"], v["x"]) for v in found[0]["layer"][1]["data"]["values"]]
    assert sorted(marked) == [("gated", 0.002), ("none", 0.002)]
    said = "The best learning rate with a gate is that without one in 2 of 2 comparisons (2 settings with three learning rates"
    assert said in page.text
    assert "Fewer than 3 learning rates, so no curve: B quickstart, C planted." in page.text


def test_curves_over_training_are_medians_of_all_looks_and_what_has_none_says_so(page):
    (mass,) = charts(page, "Sink: first-token mass over training in stdlib")
    own = mass["layer"][1]["data"]["values"]
    assert [v["arm"] for v in own] == ["none", "headwise", "elementwise", "sink-logit"]
    assert all(v["x"] == [0, 100, 200, 300, 400] and v["low"] <= v["y"] <= v["high"] for v in own)
    assert len(charts(page, "Held-out loss over training in")) == 2
    assert "B quickstart: sink, drain and loss by step in 2 cells" in page.text and "stdlib (B quickstart)" in page.text
    assert "A grid: no curve stored, 1 look a run at the sink" in page.text
    assert "C planted: no curve stored, the sink was not looked at" in page.text


def test_lengths_have_every_seed_and_the_median_of_cells_that_some_arm_solves(page):
    (spec,) = charts(page, "Accuracy of cite by length, as trained")
    gated = [v for v in values(spec) if v.get("arm") == "sdpa-headwise" and isinstance(v.get("x"), list)]
    last = {seed: learned[1] for (arm, seed), learned in planted.LEARNED.items() if arm == "sdpa-headwise"}
    assert {v["seed"]: v["y"] for v in gated if "seed" in v} == {s: [a, a / 2] for s, a in last.items()}
    assert [v["y"] for v in gated if "seed" not in v] == [[0.95, 0.475]]
    (row,) = [row for row in page.rows if row and row[0] == planted.CELL and "at 2×" in row[1]]
    assert row[1:] == ["0.20 at 1×, 0.10 at 2×", "0.95 at 1×, 0.47 at 2×"]
    assert "of 1 models on tasks that solve theirs at that length, 0 still do at the longest" in page.text


def test_words_of_a_study_stay_words(page, atlas, tmp_path):
    html = write_atlas(tmp_path / "x.html", atlas).read_text(encoding="utf-8")
    assert EVIL not in html and EVIL in page.text


def test_without_any_of_it_the_sections_say_so_and_no_chart_library_is_inlined(atlas, tmp_path):
    bare = [replace(s, views=None) for s in atlas.sheets]
    path = write_atlas(tmp_path / "bare.html", Atlas(bare, []))
    text = Page(path).text
    assert path.stat().st_size < 200_000
    for words in (
        "No study here is a grid",
        "No study here asked beyond",
        "No anomaly was confirmed",
        "needs no JavaScript",
    ):
        assert words in text, words


def test_every_chart_is_drawn_and_nothing_is_fetched(browser, page, atlas, tmp_path):
    path = write_atlas(tmp_path / "atlas.html", atlas)
    for width, dark in ((1200, False), (390, True)):
        data = browser.open(path, width=width, dark=dark)
        n = len(page.charts)
        assert (data["drawn"], data["problems"], data["overflow"]) == (f"{n}/{n}", "[]", "0")
        assert data["requests"] == "[]"
