"""What other studies say of the causes of what one confirmed: planted rows of `tasks-causes` and `tasks-rates`, and none."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gatelab import lab
from gatelab.analysis.atlas import Atlas
from gatelab.analysis.atlas_views import Views, stated
from gatelab.analysis.confirmed import Anomaly, Held
from gatelab.analysis.registration import EFFECT, Claim, Verdict
from gatelab.analysis.sights import setting, settings
from gatelab.cli import app
from gatelab.config import canonical
from gatelab.lab import reporting
from gatelab.lab.atlas import read_atlas
from gatelab.lab.companions import EXPLAINED_BY, among, beside, explained, planned_settings
from gatelab.lab.sources import Source, sources_in
from gatelab.record import Row
from gatelab.report.anomaly_cards import curves_for, short_card
from gatelab.report.atlas_book import book_of
from gatelab.report.atlas_effects import confirmed_effects
from gatelab.report.atlas_words import Words
from gatelab.report.document import Charts
from gatelab.store import Appender, StudyFolder, write_json
from gatelab.study.plan import make_plan
from gatelab.study.study import built_in, load_study

CELL, GATE = "1m encoder select", "sdpa-headwise"
NAME = "tasks-by-architecture"
# Planted: arm -> what it changes the loss by.
CAUSES = {"none": 0, "scaled": -0.95, "static": -0.1, GATE: -1.0, "first-half": -0.9, "last-half": -0.05, "open": -0.1}
RATES = {"none": {3e-4: 0.8, 1e-3: 0.0, 3e-3: 0.9}, GATE: {3e-4: 0.1, 1e-3: -1.0, 3e-3: 0.2}}


def anomaly(cell: str = CELL, arm: str = GATE, reading: str = "val_loss") -> Anomaly:
    claim = Claim(EFFECT, cell, arm, reading, -1, 0.001, 0.099)
    words = {"val_loss": ("held-out loss", "nats")}
    return Anomaly(cell, arm, [Held(Verdict(claim, 8, 0.0001, 0.0007, "confirmed"), None, None)], [], words)


def folder(out: Path, name: str, cells: str, effect, **more) -> StudyFolder:
    """The built-in study's cells of this pattern, every run done, with the loss that `effect` of (arm, rate) says."""
    made = load_study(name).changed({"cell": [cells], **more})
    there = lab.save_plan(make_plan(made), out)
    for entry, run in there.planned():
        rate, seed = run.config()["optim"]["lr"], entry["seed"]
        jitter = ((seed * 7 + len(entry["arm"]) * 3) % 11 - 5) / 100
        loss = 3 + seed / 10 + effect(entry["arm"], rate) + jitter
        appender = Appender(run.rows_path)
        appender.write(
            [
                Row(run.fingerprint, step, "eval", "val_loss", loss + (6000 - step) / 6000, "nats")
                for step in (0, 3000, 6000)
            ]
        )
        appender.close()
        write_json(
            run.path / "environment.json",
            {"versions": {"gatelab": "1"}, "git": {"commit": "a" * 40, "modified": False}},
        )
        run.mark_done("done", {"steps": 6000})
    return there


@pytest.fixture(scope="module")
def causes(tmp_path_factory) -> StudyFolder:
    there = tmp_path_factory.mktemp("stored")
    return folder(there / "tasks-causes", "tasks-causes", "encoder select", lambda arm, _: CAUSES[arm])


@pytest.fixture(scope="module")
def rates(causes) -> StudyFolder:
    words = {"arm": [GATE]}
    return folder(
        causes.path.parent / "tasks-rates",
        "tasks-rates",
        "encoder select*",
        lambda arm, rate: RATES[arm][rate],
        **words,
    )


@pytest.fixture(scope="module")
def confirmed(causes, rates) -> StudyFolder:
    """The study whose claims they explain, beside them."""
    return folder(causes.path.parent / NAME, NAME, CELL, lambda arm, _: -1.0 * (arm == GATE), seed=[0, 1, 2])


def text(html: object) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", str(html)))


def card(a: Anomaly, study: dict) -> str:
    book = book_of(SimpleNamespace(views=Views(study=stated(study, [0]))), Charts())
    return text(short_card(book, a, "anomaly-A1", None, None))


def test_a_study_explains_its_own_planted_causes(causes):
    verdicts = {
        c.hypothesis: c.verdict
        for c in lab.explain(causes, "encoder select")
        if c.arm == GATE and c.reading == "val_loss"
    }
    assert {name: verdicts[name] for name in ("small-start", "reads-token", "first-layers", "last-layers", "own-rate")} == {
        "small-start": "supported", "reads-token": "supported", "first-layers": "supported", "last-layers": "refuted",
        "own-rate": "not run",
    }  # fmt: skip


def test_rates_say_whether_the_gain_is_one_of_the_rate(rates):
    (found,) = [
        c for c in lab.explain(rates, "encoder select lr0.001") if (c.hypothesis, c.reading) == ("own-rate", "val_loss")
    ]
    assert found.verdict == "refuted" and "none at 0.001, sdpa-headwise at 0.001" in found.decisions[0].numbers


def test_what_confirmed_it_takes_the_verdicts_of_the_folders_beside_it(confirmed):
    (found,), _ = beside(confirmed, [anomaly()])
    assert [(c.study, c.cell) for c in found.elsewhere] == [
        ("tasks-causes", "encoder select"), ("tasks-rates", "encoder select lr0.001"),
    ]  # fmt: skip
    assert found.waiting == [] and [c.seeds for c in found.elsewhere] == [list(range(18, 24)), list(range(13, 18))]
    verdicts = [{c.hypothesis: c.verdict for c in of.cards} for of in found.elsewhere]
    assert verdicts[0]["small-start"] == "supported" and verdicts[1]["own-rate"] == "refuted"
    assert all(c.reading in ("", "val_loss") for of in found.elsewhere for c in of.cards)
    said = card(found, confirmed.study())
    assert "Of tasks-causes, encoder select: runs of the same configuration, seeds 18" in said
    assert "small-start of held-out loss: supported" in said and "own-rate of held-out loss: refuted" in said
    assert "not run" not in said.partition("Planned to test")[2]


def test_an_arm_that_a_companion_has_not_run_waits_and_of_one_that_none_has_nothing_is_said(confirmed):
    (elementwise, other), _ = beside(confirmed, [anomaly(arm="sdpa-elementwise"), anomaly(arm="value-elementwise")])
    assert (elementwise.elsewhere, elementwise.waiting, other.elsewhere, other.waiting) == ([], ["tasks-rates"], [], [])


def test_what_was_not_run_is_said_to_be_planned(tmp_path):
    alone = folder(tmp_path / NAME, NAME, "1m encoder select", lambda *_: 0.0, seed=[0])
    found, _ = beside(alone, [anomaly(), anomaly(arm="sdpa-elementwise"), anomaly(arm="value-elementwise")])
    assert [a.waiting for a in found] == [["tasks-causes", "tasks-rates"], ["tasks-rates"], []]
    words = "Planned to test causes of this, and not run: gatelab run tasks-causes, gatelab run tasks-rates."
    assert words in card(found[0], alone.study()) and "Planned" not in card(found[2], alone.study())


def test_a_companion_without_a_finished_run_waits_too(tmp_path):
    alone = folder(tmp_path / NAME, NAME, "1m encoder select", lambda *_: 0.0, seed=[0])
    made = load_study("tasks-causes").changed({"cell": ["encoder select"]})
    lab.save_plan(make_plan(made), tmp_path / "tasks-causes")
    (found,), _ = beside(alone, [anomaly()])
    assert found.waiting == ["tasks-causes", "tasks-rates"] and found.elsewhere == []


def test_every_companion_is_a_built_in_study_that_has_runs_of_the_one_it_explains():
    # The words with which the stored folder of that study was run.
    stored = {"gates-on-tasks": {"train.batch_size": [32], "train.tokens": [12_288_000]}}
    for name, companions in EXPLAINED_BY.items():
        made = (
            load_study(name).changed({"cell": ["easy cite*"], **stored[name]}) if name in stored else load_study(name)
        )
        own = {setting(canonical(p.run)) for p in make_plan(made).runs}
        for companion in companions:
            assert companion in built_in() and own & {*planned_settings(companion).values()}
    assert planned_settings("a study of somebody") == {}


def test_the_atlas_has_them_whatever_their_folders_are_called(confirmed, causes, rates, tmp_path):
    there = sources_in([confirmed.path, causes.path])
    sheets, refused = read_atlas(there, tmp_path / "atlas.html", lambda _: None)
    assert refused == []
    first = replace(sheets[0], views=replace(sheets[0].views, effects=[anomaly()]))
    told = among([first, *sheets[1:]], {s.letter: Source(x.path) for s, x in zip(sheets, there, strict=True)})
    (found,) = told[0].views.effects
    assert [c.study for c in found.elsewhere] == ["tasks-causes"] and found.waiting == ["tasks-rates"]
    atlas = Atlas(told, [])
    said = text(confirmed_effects(atlas, Words(atlas)))
    assert (
        "small-start supported [tasks-causes]" in said
        and "Planned to test its causes, and not run: tasks-rates." in said
    )


def test_a_baseline_of_other_settings_is_no_companion(causes, confirmed):
    own = settings(confirmed)
    moved = {key: (f"other {found}" if key[1] == "none" else found) for key, found in own.items()}
    (found,), _ = explained(NAME, "none", moved, [anomaly()], {"tasks-causes": causes})
    assert found.elsewhere == [] and found.waiting == []


def test_where_its_own_runs_have_two_looks_the_curves_are_of_the_companion(confirmed, causes):
    (found,), _ = beside(confirmed, [anomaly()])
    of = {c.study: c for c in found.elsewhere}["tasks-causes"]
    assert of.n_looks == 3 and [*of.sides] == ["none", GATE]
    assert [*of.sides[GATE].curves["val_loss"]] == list(range(18, 24))
    book = book_of(SimpleNamespace(views=Views(study=stated(confirmed.study(), [0]))), Charts())
    two = {
        side: replace(s, curves={"val_loss": {n: c[::2] for n, c in s.curves["val_loss"].items()}})
        for side, s in of.sides.items()
    }
    said = text(curves_for(book, found, two))
    assert "Of tasks-causes, encoder select: runs of the same configuration" in said
    assert len(book.charts.placed) == 2, "its own line from start to end, and the companion's curve"
    assert "Of tasks-causes" not in text(curves_for(book, found, of.sides)), "where its own have three they do"


def test_a_companion_that_cannot_be_read_breaks_no_other_page_and_is_named(tmp_path, confirmed, causes, rates):
    there = folder(tmp_path / NAME, NAME, CELL, lambda *_: 1.0)
    (tmp_path / "tasks-causes").mkdir()
    (tmp_path / "tasks-causes" / "study.json").write_text("{", encoding="utf-8")
    (found,), (why,) = beside(there, [anomaly()])
    assert found.cell == CELL
    assert why.startswith(
        "what tasks-causes says of causes is left out, since it cannot be read: tasks-causes/study.json"
    )
    assert str(tmp_path) not in why
    assert beside(confirmed, [anomaly()])[1] == []


def test_in_an_atlas_it_is_a_flag_and_told(confirmed, causes, tmp_path):
    """It was read when its sheet was made, and cannot be when it is asked for causes."""
    there = sources_in([confirmed.path, causes.path])
    sheets, _ = read_atlas(there, tmp_path / "atlas.html", lambda _: None)
    first = replace(sheets[0], views=replace(sheets[0].views, effects=[anomaly()]))
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "study.json").write_text("{", encoding="utf-8")
    told = []
    own, other = among([first, *sheets[1:]], {"A": there[0], "B": Source(tmp_path / "gone")}, told.append)
    (flag,) = [f for f in own.flags if "tasks-causes" in f]
    assert (
        "cannot be read: gone/study.json" in flag and told == [f"A {NAME}: {flag}"] and other.flags == sheets[1].flags
    )


def test_a_page_says_which_cannot_be_read_and_so_does_stderr(confirmed, monkeypatch, capsys):
    why = "what tasks-causes says of causes is left out, since it cannot be read: tasks-causes/study.json: cut"
    monkeypatch.setattr(reporting, "with_anomalies", lambda _, looked: replace(looked, unread=[why]))
    assert app(["report", str(confirmed.path)]) in (0, None)
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"{confirmed.path}: {why}"]
    page = text(Path(said.out.strip()).read_text(encoding="utf-8"))
    assert page.count(f"W{why[1:]}.") == 1


def explained_on_a_terminal(folder: StudyFolder | Path, capsys, *more: str) -> tuple[str, str]:
    path = folder if isinstance(folder, Path) else folder.path
    assert app(["find", str(path), "--explain", CELL, "--arm", GATE, *more]) in (0, None)
    found = capsys.readouterr()
    return found.out, found.err


def test_find_says_what_the_studies_beside_it_decided_in_the_place_of_what_it_has_no_rows_of(confirmed, capsys):
    said, notes = explained_on_a_terminal(confirmed, capsys)
    own, _, beside_it = said.partition(
        "\ntasks-causes, runs of the same configuration: encoder select, sdpa-headwise\n"
    )
    assert "small-start" not in own and "supported  small-start of val_loss" in beside_it
    assert "refuted    own-rate of val_loss" in said.partition("\ntasks-rates, runs of the same configuration: ")[2]
    lacking = said.partition("not run, or nothing to decide by")[2]
    assert "shut-scores" in lacking, "what nobody has rows of is still asked for"
    assert all(f"  {name}:" not in lacking for name in ("small-start", "first-layers", "last-layers", "own-rate"))
    assert "model.init" not in said and notes == ""


def test_in_json_a_card_names_the_study_whose_runs_it_is_of(confirmed, capsys):
    said, _ = explained_on_a_terminal(confirmed, capsys, "--json")
    cards = [json.loads(line) for line in said.splitlines()]
    of = {
        c["study"]: c
        for c in cards
        if (c["hypothesis"], c["reading"]) in (("small-start", "val_loss"), ("own-rate", "val_loss"))
    }
    assert {name: c["verdict"] for name, c in of.items()} == {"tasks-causes": "supported", "tasks-rates": "refuted"}
    assert {c["study"] for c in cards} == {"", "tasks-causes", "tasks-rates"}


def test_find_names_what_was_planned_for_its_causes_and_not_run(tmp_path, capsys):
    alone = folder(tmp_path / NAME, NAME, CELL, lambda *_: 0.0, seed=[0, 1])
    said, notes = explained_on_a_terminal(alone, capsys)
    assert "small-start" in said and "runs of the same configuration" not in said
    assert notes.splitlines() == [
        f"note: planned to test causes of this, and not run: gatelab run {name}"
        for name in ("tasks-causes", "tasks-rates")
    ]


def test_packs_beside_a_pack_are_companions_too(confirmed, causes, tmp_path, capsys):
    for there in (confirmed, causes):
        (tmp_path / there.path.name).mkdir()
        lab.pack(there.path, tmp_path / there.path.name / "folder.parquet")
    said, notes = explained_on_a_terminal(tmp_path / NAME, capsys)
    assert "supported  small-start of val_loss" in said.partition("\ntasks-causes, runs of the same configuration: ")[2]
    assert notes == "note: planned to test causes of this, and not run: gatelab run tasks-rates\n"
